"""Words as every lexical part counts them: split, stemmed, hashed. Pure, and the same in every process.

Shared by retrieval's sketch and the ranker's features, which may not import each other. Imports nothing of ours, and
the stemmer belongs to the `serve` extra: the jobs never come here.

A term is a stemmed word, or one of the exact forms that a stemmer would ruin: pay grades (gs-12, however written:
"GS 12", "GS-012", "GS-9/12"), c++, c#, .net. A word with a number behind a hyphen stays whole (covid-19).
"""

from __future__ import annotations

import functools
import hashlib
import re
import threading

import snowballstemmer

# Pay plans that people write with a blank before the grade. With a hyphen, any word counts.
_PLANS = "gs|gg|gl|gm|wg|wl|ws|nf|na|nl|ns|ad|es|fv|sv|vn|vm|nh|dr|db|ia"
_SPACED_GRADE = re.compile(rf" (?=\d{{1,3}}\b)(?<=\b(?:{_PLANS}) )")
_GRADE_RANGE = re.compile(r"(?<=\b[a-z]{2})-(\d{1,2})/(\d{1,2})\b")
_WORD = re.compile(r"[^\W_]+(?:-\d{1,3}\b|\+\++|#)?|\.net\b")
_GRADE = re.compile(r"([^\W_]+)-0*(\d+)")


class _Stemmers(threading.local):
    """One a thread: a stemmer keeps the word it is at in itself, so two threads would spoil each other's."""

    def __init__(self) -> None:
        self.english = snowballstemmer.stemmer("english")


_STEMMERS = _Stemmers()

STOPWORDS = frozenset(
    [
        "a",
        "about",
        "also",
        "am",
        "an",
        "and",
        "any",
        "are",
        "as",
        "at",
        "be",
        "been",
        "but",
        "by",
        "can",
        "could",
        "d",
        "did",
        "do",
        "does",
        "either",
        "for",
        "from",
        "get",
        "had",
        "has",
        "have",
        "he",
        "her",
        "his",
        "how",
        "i",
        "if",
        "in",
        "into",
        "is",
        "it",
        "its",
        "ll",
        "m",
        "me",
        "more",
        "my",
        "near",
        "not",
        "of",
        "on",
        "or",
        "other",
        "our",
        "out",
        "over",
        "own",
        "re",
        "s",
        "she",
        "should",
        "so",
        "some",
        "such",
        "t",
        "than",
        "that",
        "the",
        "their",
        "them",
        "then",
        "there",
        "these",
        "they",
        "this",
        "those",
        "through",
        "to",
        "too",
        "under",
        "up",
        "us",
        "ve",
        "very",
        "was",
        "we",
        "were",
        "what",
        "when",
        "where",
        "which",
        "while",
        "who",
        "whom",
        "whose",
        "why",
        "will",
        "with",
        "within",
        "without",
        "would",
        "you",
        "your",
    ]
)


def words(text: str) -> list[str]:
    """The text's words in order, lower case, not yet stemmed. Stop words are kept: a caller may want positions."""
    lowered = _SPACED_GRADE.sub("-", text.lower())
    lowered = _GRADE_RANGE.sub(_both_grades, lowered)
    return _WORD.findall(lowered)


def _both_grades(found: re.Match[str]) -> str:
    """gs-9/11 says two grades: gs-9 and gs-11."""
    plan = found.string[found.start() - 2 : found.start()]
    return f"-{found[1]} {plan}-{found[2]}"


@functools.lru_cache(maxsize=131_072)
def term(word: str) -> str | None:
    """The term a lower-case word counts as; None for a stop word."""
    if word in STOPWORDS:
        return None
    grade = _GRADE.fullmatch(word)
    if grade is not None:
        return f"{grade[1]}-{grade[2]}"
    if word.isdigit():
        return word.lstrip("0") or "0"
    if not word.isalpha() or len(word) > 40:
        return word[:40]
    stem: str = _STEMMERS.english.stemWord(word)
    return stem


def terms(text: str) -> list[str]:
    """The text's terms in order, stop words left out."""
    return [found for word in words(text) if (found := term(word)) is not None]


def stable_hash(key: str) -> int:
    """64 bits of a string, the same in every process, release and machine (BLAKE2b, little endian)."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
