"""A query being read: what every rule looks at, and what a rule finds.

Two things turn a mention around wherever it stands: a negation before it ("not part-time") makes it an exclusion, and
a softening beside it ("ideally remote", "nights ok") makes it a wish, which filters nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from penstock.schemas.events import Filter

# Up to two small words may stand between the negation and what it negates.
_FILLER = (
    r"(?:a|an|any|the|just|only|for|in|at|on|as|to|with|doing|interested|looking|want|wanting|another|more|from|near)"
)
_NEGATED = re.compile(
    r"(?:\b(?:not|no|without|except|excluding|avoid|avoiding|never|neither|nor|don't want|do not want|isn't|aren't|"
    r"anything but|rather than|instead of|other than|outside(?: of)?|leaving|tired of)\b|\bnon-)\s*(?:"
    + _FILLER
    + r"\s+){0,3}$"
)
# "not nursing home or nights": an alternative of something negated is negated too.
_NEGATED_ALTERNATIVE = re.compile(r"\b(?:not|no|without|except)\s+[\w'/-]+(?:\s[\w'/-]+)?\s*(?:/|\bor\b|\bnor\b)\s*$")
_SOFT_BEFORE = re.compile(
    r"\b(?:ideally|preferably|prefer|preferring|maybe|possibly|perhaps|even|open to|willing to|okay with|ok with|"
    r"fine with|don't mind|do not mind|bonus if|could be|used to|was|were|been|experience in|background in|"
    r"years (?:of|in|as)|worked|working)\s+(?:\w+\s+){0,2}$"
)
_SOFT_AFTER = re.compile(
    r"\s*,?\s*(?:(?:is|are|would be|also|job|work|position|grades?|level)\s+)*"
    r"(?:ok|okay|fine|pref|preferred|preferably|if poss(?:ible)?|a plus|welcome|optional|would be nice|"
    r"or (?:nearby|close)|accepted)\b"
)


@dataclass(frozen=True, slots=True)
class Reading:
    """One query. `lowered` has the same length as `text`: offsets fit both."""

    text: str
    lowered: str
    now_ms: int

    @staticmethod
    def of(text: str, now_ms: int) -> Reading:
        lowered = "".join(char if len(char.lower()) != 1 else char.lower() for char in text.replace("’", "'"))
        return Reading(text, lowered, now_ms)

    def negated(self, start: int) -> bool:
        """Whether what starts at this offset is ruled out rather than asked for."""
        before = self.lowered[max(0, start - 48) : start]
        return bool(_NEGATED.search(before) or _NEGATED_ALTERNATIVE.search(before))

    def soft(self, start: int, end: int) -> bool:
        """Whether what stands there is wished, allowed or told of the past, rather than demanded."""
        return bool(
            _SOFT_BEFORE.search(self.lowered[max(0, start - 40) : start])
            or _SOFT_AFTER.match(self.lowered[end : end + 40])
        )

    @property
    def story(self) -> bool:
        """A person telling of themself ("I ran a clinic in Ohio …"): what is stated is not always what is wanted."""
        return bool(_STORY.search(self.lowered))


_STORY = re.compile(r"\b(?:i|i'm|i've|i'd|my|me)\b")


@dataclass(frozen=True, slots=True)
class Found:
    """One thing read out of a query: offsets into the text, and what it says."""

    start: int
    end: int
    label: str
    filter: Filter
    needs_values: bool = False


class Rule(Protocol):
    """One idea. Returns what it found, in order; never raises on any text."""

    def __call__(self, reading: Reading, /) -> Sequence[Found]: ...
