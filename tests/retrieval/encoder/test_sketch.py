"""The lexical sketch: exact words count, the same in every process, and int8 never wraps."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.retrieval.encoder.shipped import load_sketch
from penstock.retrieval.encoder.sketch import IDF_BUCKETS, SCALE, WIDTH, LexicalSketch, SketchParameters
from penstock.schemas.events import PostingText
from penstock.schemas.text import stable_hash, terms

WORDS = st.sampled_from(
    ["nurse", "gs-12", "c++", "reno", "hydraulic", "policy", "analyst", "remote", "wg-10", "data", "guard", "night"]
)
PROSE = st.lists(WORDS, max_size=60).map(" ".join)


@pytest.fixture(scope="module")
def sketch() -> LexicalSketch:
    return LexicalSketch(load_sketch().parameters)


def score(sketch: LexicalSketch, query: str, posting: PostingText) -> float:
    return float(sketch.posting(posting).astype(np.float32) @ sketch.query(query))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("GS-12", ["gs-12"]),
        ("GS 12 or gs-012", ["gs-12", "gs-12"]),
        ("GS-9/11 preferred", ["gs-9", "gs-11", "prefer"]),
        ("C++, C# and .NET", ["c++", "c#", ".net"]),
        ("nurses nursing Nurse", ["nurs", "nurs", "nurs"]),
        ("the of and", []),
        ("covid-19 full-time 2210", ["covid-19", "full", "time", "2210"]),
        ("", []),
    ],
)
def test_terms(text: str, expected: list[str]) -> None:
    assert terms(text) == expected


def test_hash_is_fixed_for_ever() -> None:
    assert stable_hash("nurs") == int.from_bytes(bytes.fromhex("47e987dd5b674633"), "little")


@pytest.mark.parametrize("query", ["GS-12", "C++", "hydraulics", "Reno", ".NET"])
def test_the_posting_with_the_exact_word_is_above_one_without(sketch: LexicalSketch, query: str) -> None:
    text = "Plans and reviews the work of a team, keeps records, and answers questions of the public. "
    held = PostingText(title="Specialist", description=f"{text}{query} {text}")
    other = PostingText(title="Specialist", description=text + text)
    assert score(sketch, query, held) > score(sketch, query, other) + 0.01


def test_a_word_in_the_title_counts_more_than_one_in_the_text(sketch: LexicalSketch) -> None:
    filler = "duties as assigned in the office. " * 5
    title = PostingText(title="Welder", description=filler)
    body = PostingText(title="Worker", description=filler + "welder")
    assert score(sketch, "welder", title) > score(sketch, "welder", body) > 0


def test_order_and_repetition_of_a_query_do_not_matter(sketch: LexicalSketch) -> None:
    np.testing.assert_array_equal(sketch.query("reno nurse"), sketch.query("Nurses, nurse in RENO"))


def test_empty_sides_are_zero(sketch: LexicalSketch) -> None:
    assert not sketch.query("the of").any()
    assert not sketch.posting(PostingText(title="", description="")).any()


@settings(max_examples=50)
@given(PROSE, PROSE, PROSE)
def test_planes_have_their_shape_and_bounds(sketch: LexicalSketch, title: str, body: str, query: str) -> None:
    plane = sketch.posting(PostingText(title=title, description=body))
    assert plane.shape == (WIDTH,) and plane.dtype == np.int8
    assert np.abs(plane.astype(int)).max() <= 127
    asked = sketch.query(query)
    assert asked.shape == (WIDTH,) and asked.dtype == np.float32
    assert np.isfinite(asked).all()
    assert bool(asked.any()) == bool(terms(query))


@settings(max_examples=50)
@given(st.permutations(["nurse", "reno", "c++", "policy", "gs-12", "nurse", "guard"]))
def test_word_order_never_changes_a_plane(sketch: LexicalSketch, shuffled: list[str]) -> None:
    one = sketch.posting(PostingText(title="x", description="nurse reno c++ policy gs-12 nurse guard"))
    np.testing.assert_array_equal(one, sketch.posting(PostingText(title="x", description=" ".join(shuffled))))


@settings(max_examples=50)
@given(st.sets(WORDS, min_size=1, max_size=5), PROSE)
def test_score_is_bm25_of_the_shared_terms_but_for_collisions(wanted: set[str], body: str) -> None:
    parameters = SketchParameters(np.full(IDF_BUCKETS, 64, np.uint8), 20.0, 1.0)  # idf 4 for every term
    sketch = LexicalSketch(parameters)
    posting = PostingText(title="chief", description=body)
    all_terms = set(terms("chief " + body + " " + " ".join(wanted)))
    if len({stable_hash(t) % WIDTH for t in all_terms}) < len(all_terms):
        return
    total = 3 + len(terms(body))
    expected = 0.0
    for found in set(terms(" ".join(wanted))):
        count = terms(body).count(found)
        expected += 4 * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * total / 20.0))
    norm = (16 * len(set(terms(" ".join(wanted))))) ** 0.25
    rounding = 0.5 / SCALE * 2 * len(wanted) / norm
    assert abs(score(sketch, " ".join(wanted), posting) - expected / norm) <= rounding + 1e-4


def test_colliding_terms_clip_and_never_wrap() -> None:
    parameters = SketchParameters(np.full(IDF_BUCKETS, 255, np.uint8), 1000.0, 1.0)
    slots: dict[tuple[int, int], list[str]] = {}
    for number in range(40_000):
        word = f"x{number}y"
        key = stable_hash(word)
        slots.setdefault((key % WIDTH, key >> 63), []).append(word)
    (slot, negative), crowd = max(slots.items(), key=lambda pair: len(pair[1]))
    plane = LexicalSketch(parameters).posting(PostingText(title=" ".join(crowd[:20]), description=""))
    assert plane[slot] == (-127 if negative else 127)


def test_another_process_makes_the_same_planes(sketch: LexicalSketch) -> None:
    program = (
        "import zlib\n"
        "from penstock.retrieval.encoder.shipped import load_sketch\n"
        "from penstock.retrieval.encoder.sketch import LexicalSketch\n"
        "from penstock.schemas.events import PostingText\n"
        "s = LexicalSketch(load_sketch().parameters)\n"
        "p = PostingText(title='Nurse GS-12', description='C++ in Reno, night guard')\n"
        "print(zlib.crc32(s.posting(p).tobytes()), zlib.crc32(s.query('nurse in Reno').tobytes()))\n"
    )
    import zlib

    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}
    )
    posting = PostingText(title="Nurse GS-12", description="C++ in Reno, night guard")
    mine = zlib.crc32(sketch.posting(posting).tobytes()), zlib.crc32(sketch.query("nurse in Reno").tobytes())
    assert ran.stdout.split() == [str(value) for value in mine]
