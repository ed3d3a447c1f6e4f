"""Counting tokens without a tokenizer, and cutting a text to a budget by any counter.

The rule: a run of ASCII letters counts one token for its first six and one for every three more; a run of digits one
for every three; every other character that is no white space counts one, and beyond ASCII one for each byte more.
A caller that must respect one model's own limit passes that model's counter instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable

CountTokens = Callable[[str], int]

_UNIT = re.compile(r"[A-Za-z]+|[0-9]+|[^A-Za-z0-9\s]")
_LONG_WORD = re.compile(r"[A-Za-z]{7,}")
_LONG_NUMBER = re.compile(r"[0-9]{4,}")


def approximate_tokens(text: str) -> int:
    """Tokens by the rule above. Adding text never lowers it."""
    total = len(_UNIT.findall(text))
    for word in _LONG_WORD.findall(text):
        total += (len(word) - 4) // 3
    for number in _LONG_NUMBER.findall(text):
        total += (len(number) - 1) // 3
    if not text.isascii():
        total += len(text.encode("utf-8", "surrogatepass")) - len(text)
    return total


def cut(text: str, max_tokens: int, count: CountTokens) -> str:
    """The longest start of `text` found within the budget: whole words if one fits, else characters."""
    if count(text) <= max_tokens:
        return text
    ends = [match.start() for match in re.finditer(r"\s+", text)]
    fitting = _last_fitting(text, ends, max_tokens, count)
    if fitting:
        return fitting
    return _last_fitting(text, list(range(1, len(text))), max_tokens, count)


def _last_fitting(text: str, ends: list[int], max_tokens: int, count: CountTokens) -> str:
    low, high = 0, len(ends)
    while low < high:
        middle = (low + high) // 2
        if count(text[: ends[middle]]) <= max_tokens:
            low = middle + 1
        else:
            high = middle
    return text[: ends[low - 1]] if low else ""
