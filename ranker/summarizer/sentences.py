"""A description as sentences: split at line ends and sentence ends, list markers taken off. Pure.

Each sentence is a substring of the description once its white space is single blanks.
"""

from __future__ import annotations

import functools
import re

MAX_READ = 16_384  # characters; sentences past it are not considered, so that one huge posting delays nobody
MAX_SENTENCES = 240
LINES_REMEMBERED = 8_192
LONGEST_REMEMBERED = 500  # characters: what is remembered stays within some 10 MB
_LONGEST_MARKED = 2_000  # characters of one sentence that are looked at

_END = re.compile(r"(?<=[.!?])[\"')\]]?\s+(?=[A-Z0-9(\"'•*-])|(?<=;)\s+(?=[A-Z(])|\s+(?=[•▪●◦]\s)")
_MARKER = re.compile(r"^(?:[•▪●◦*–-]+\s*|\(?(?:\d{1,3}|[A-Za-z]|[ivx]{1,4})[.)]\s+)+")
# What ends with a full stop and does not end a sentence.
_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|etc|U\.S|No|Dr|Mr|Ms|St|vs|approx|incl|Inc|Ph\.D|[A-Z])|^\d{1,3}|^[A-Z])\.$"
)


def sentences(text: str) -> list[str]:
    """In order, no empty ones, at most MAX_SENTENCES."""
    found: list[str] = []
    for line in text[:MAX_READ].splitlines():
        found += _remembered(line) if len(line) <= LONGEST_REMEMBERED else _of_line(line)
        if len(found) >= MAX_SENTENCES:
            break
    return found[:MAX_SENTENCES]


def _of_line(line: str) -> tuple[str, ...]:
    found: list[str] = []
    joined = ""
    for piece in _END.split(" ".join(line.split())):
        joined = f"{joined} {piece}" if joined else piece
        if len(joined) < _LONGEST_MARKED and _ABBREVIATION.search(joined[-8:]):
            continue
        _keep(joined, found)
        joined = ""
    _keep(joined, found)
    return tuple(found)


# Half of the lines of real postings stand in another posting too.
_remembered = functools.lru_cache(LINES_REMEMBERED)(_of_line)


def _keep(sentence: str, found: list[str]) -> None:
    bare = _MARKER.sub("", sentence.strip(), count=1)
    if bare:
        found.append(bare)
