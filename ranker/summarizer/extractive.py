"""The embedded summariser: picks the sentences of a description that say what the work is.

A sentence is worth what its words are worth (words the posting returns to, more if the title has them), more when it
speaks of duties or requirements, less when it is the boilerplate of application forms, and less again for what the
picked ones already say (maximal marginal relevance, Carbonell and Goldstein 1998). Picked sentences keep their order.
One instance serves every thread: its only state are bounded memories of sentences, which postings share with others.
"""

from __future__ import annotations

import functools
import re
import sys
from collections import Counter
from dataclasses import dataclass
from itertools import chain

from penstock.ranker.summarizer.item_text import ITEM_TEMPLATE_ID, item_text
from penstock.ranker.summarizer.sentences import LONGEST_REMEMBERED, sentences
from penstock.ranker.summarizer.tokens import CountTokens, approximate_tokens, cut
from penstock.ranker.summarizer.words import BOILERPLATE, DUTY, FORM, STOP
from penstock.schemas.events import PostingText

VERSION = "x1"

_WORD = re.compile(r"[a-z][a-z+#]{2,}")
_SHORTEST = 3  # informative words in a sentence worth picking first
_WORTHLESS = 0.5  # below it a sentence is not worth its tokens unless there is none better
_FORM_START = ("i have ", "i am ", "yes", "no,", "have you", "do you")  # what an applicant is asked to say
_LEAD = 0.15  # what the first sentence gains over the last
_REMEMBERED = 16_384  # sentences, about 1 KB each


@dataclass(frozen=True, slots=True)
class _Sentence:
    """What a sentence says by itself, whatever posting it stands in."""

    words: frozenset[str]  # informative ones
    boilerplate: bool
    duties: int  # at most 3
    asks: bool  # an applicant, instead of saying what the work is


class ExtractiveSummarizer:
    """Summaries of at most `max_tokens` tokens as `count` counts them."""

    def __init__(self, max_tokens: int, count: CountTokens = approximate_tokens, counter_id: str = "a1") -> None:
        """`counter_id` names the counter. Raises ValueError for a budget below 1."""
        if max_tokens < 1:
            raise ValueError(f"max_tokens: got {max_tokens}, expected at least 1 (settings: models.summary_tokens)")
        self._max_tokens = max_tokens
        self._count = count
        self._count_sentence = functools.lru_cache(_REMEMBERED)(count)
        self._id = f"extractive-{VERSION}-{counter_id}-{max_tokens}+{ITEM_TEMPLATE_ID}"

    @property
    def summarizer_id(self) -> str:
        return self._id

    def summarize(self, posting: PostingText) -> str:
        """Sentences of the description in their order, joined by blanks."""
        found = list(dict.fromkeys(sentences(posting.description)))
        chosen = self._choose(found, posting.title)
        # A counter need not be additive: what the join costs is seen only here.
        while True:
            text = " ".join(found[at] for at in sorted(chosen))
            if not chosen or self._count(text) <= self._max_tokens:
                break
            chosen.pop()
        if text or not found:
            return text
        first = max(range(len(found)), key=lambda at: (not BOILERPLATE.search(found[at].lower()), -at))
        return cut(found[first], self._max_tokens, self._count)

    def item_text(self, posting: PostingText, summary: str) -> str:
        return item_text(posting, summary)

    def _cost(self, sentence: str) -> int:
        return (self._count_sentence if len(sentence) <= LONGEST_REMEMBERED else self._count)(sentence)

    def _choose(self, found: list[str], title: str) -> list[int]:
        """Positions, best first, whose counts together are within the budget."""
        known = [_read(sentence) for sentence in found]
        words = [each.words for each in known]
        worth = _worth(found, known, _informative(title))
        ahead = sorted(range(len(found)), key=lambda at: (-worth[at], at))
        chosen: list[int] = []
        said: set[str] = set()
        left = self._max_tokens
        while ahead and left > 0:
            best = max(ahead[:12], key=lambda at: (worth[at] * (1.0 - _repeated(words[at], said)), -at))
            ahead.remove(best)
            if worth[best] < _WORTHLESS and chosen:
                break
            cost = self._cost(found[best])
            if cost <= left:
                chosen.append(best)
                said |= words[best]
                left -= cost
        return chosen


def _read(sentence: str) -> _Sentence:
    return _remembered(sentence) if len(sentence) <= LONGEST_REMEMBERED else _of(sentence)


def _of(sentence: str) -> _Sentence:
    lowered = sentence.lower()
    words = _informative(sentence)
    boilerplate = not words or BOILERPLATE.search(lowered) is not None
    return _Sentence(
        words=words,
        boilerplate=boilerplate,
        duties=0 if boilerplate else min(len(DUTY.findall(lowered)), 3),
        asks=sentence[-1] == "?" or lowered.startswith(_FORM_START),
    )


_remembered = functools.lru_cache(_REMEMBERED)(_of)


def _informative(text: str) -> frozenset[str]:
    return frozenset(sys.intern(word) for word in _WORD.findall(text.lower()) if word not in STOP)


def _worth(found: list[str], known: list[_Sentence], title: frozenset[str]) -> list[float]:
    """A number a sentence: higher is better, at most 0 for boilerplate."""
    frequency = Counter(chain.from_iterable(each.words for each in known))
    value = {
        word: 0.1 if word in FORM else (1.0 + min(count, 6) / 3.0) * (1.6 if word in title else 1.0)
        for word, count in frequency.items()
    }
    last = max(len(found) - 1, 1)
    out = []
    for at, (sentence, own) in enumerate(zip(found, known, strict=True)):
        if own.boilerplate:
            out.append(0.0)
            continue
        # The root favours neither the longest sentence nor the shortest.
        worth = sum(value[word] for word in own.words) / (len(own.words) + 4.0)
        worth += 0.25 * own.duties
        worth += _LEAD * (1.0 - at / last)
        # Or it is a field's label, or cut off by a limit.
        whole = len(own.words) >= _SHORTEST and (at < last or sentence[-1] in ".!?")
        if own.asks:
            worth *= 0.7
        out.append(worth if whole else worth * 0.5)
    return out


def _repeated(own: frozenset[str], said: set[str]) -> float:
    """The share of a sentence's words that the chosen ones have said, [0, 1]."""
    return len(own & said) / len(own) if own else 1.0
