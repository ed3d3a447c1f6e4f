"""Words of several threads at once: the stemmer keeps a word's state while it works, and each thread needs its own."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from penstock.schemas import text

WORDS = [
    f"{stem}{end}"
    for stem in ("operat", "nurs", "psycholog", "administrat", "organiz", "electric", "manag", "relat", "hop", "weld")
    for end in ("ed", "ing", "ation", "ational", "iveness", "fulness", "izer", "ies", "ously", "ement", "e", "s", "al")
]
THREADS = 4


@pytest.fixture
def threads_that_change_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_threads_stem_apart(threads_that_change_often):
    stem = text.term.__wrapped__  # not from the cache
    right = [stem(word) for word in WORDS]
    assert len(set(right)) < len(WORDS)

    def stems(_):
        return [[stem(word) for word in WORDS] for _ in range(20)]

    with ThreadPoolExecutor(THREADS) as pool:
        for found in pool.map(stems, range(THREADS)):
            assert found == [right] * 20
