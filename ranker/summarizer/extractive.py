"""The embedded summariser: picks the sentences of a description that say what the work is.

A sentence is worth what its words are worth (words the posting returns to, more if the title has them), more when it
speaks of duties or requirements, less when it is the boilerplate of application forms, and less again for what the
picked ones already say (maximal marginal relevance, Carbonell and Goldstein 1998). Picked sentences keep their order.
No state: one instance serves every thread.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import chain

from penstock.ranker.summarizer.item_text import ITEM_TEMPLATE_ID, item_text
from penstock.ranker.summarizer.sentences import sentences
from penstock.ranker.summarizer.tokens import CountTokens, approximate_tokens, cut
from penstock.schemas.events import PostingText

VERSION = "x1"

_WORD = re.compile(r"[a-z][a-z+#]{2,}")
_STOP = frozenset(
    [
        "the",
        "and",
        "for",
        "with",
        "that",
        "this",
        "are",
        "was",
        "were",
        "you",
        "your",
        "our",
        "not",
        "have",
        "has",
        "had",
        "will",
        "from",
        "into",
        "one",
        "two",
        "all",
        "any",
        "can",
        "may",
        "must",
        "which",
        "who",
        "whom",
        "whose",
        "such",
        "than",
        "then",
        "them",
        "they",
        "their",
        "there",
        "these",
        "those",
        "other",
        "also",
        "been",
        "being",
        "but",
        "its",
        "his",
        "her",
        "how",
        "what",
        "when",
        "where",
        "while",
        "would",
        "should",
        "could",
        "does",
        "did",
        "done",
        "per",
        "each",
        "more",
        "most",
        "some",
        "only",
        "very",
        "own",
        "same",
        "both",
        "above",
        "below",
        "within",
        "using",
        "including",
        "based",
        "related",
        "following",
        "etc",
        "able",
        "a",
        "an",
        "of",
        "in",
        "on",
        "at",
        "by",
        "to",
        "or",
        "as",
        "is",
        "be",
        "it",
        "if",
    ]
)
# Words of the application form, not of the work.
_FORM = frozenset(
    [
        "select",
        "answer",
        "answers",
        "question",
        "questions",
        "questionnaire",
        "statement",
        "statements",
        "response",
        "responses",
        "respond",
        "resume",
        "applicant",
        "applicants",
        "applying",
        "apply",
        "application",
        "announcement",
        "eligible",
        "ineligible",
        "rating",
        "verify",
        "verification",
        "submit",
        "review",
        "indicate",
        "described",
        "describes",
        "describe",
        "possess",
        "attach",
        "transcripts",
        "transcript",
        "equivalent",
        "grade",
        "level",
        "specialized",
        "qualify",
        "qualified",
        "qualifications",
        "qualifying",
        "vacancy",
        "appropriate",
        "best",
        "demonstrates",
        "demonstrate",
        "experience",
        "education",
        "position",
        "perform",
        "performed",
        "performing",
        "task",
        "tasks",
        "job",
        "year",
        "years",
        "federal",
        "service",
        "sector",
        "private",
        "public",
        "note",
        "yes",
        "none",
        "documentation",
        "equal",
        "opportunity",
        "employer",
        "gender",
        "race",
        "religion",
        "disability",
        "veteran",
        "thank",
        "interest",
        "consideration",
        "supervisor",
        "normally",
        "closely",
        "independently",
        "expert",
    ]
)
_DUTY = re.compile(
    r"\b(?:responsible|duties|responsibilities|manag|supervis|lead|develop|design|maintain|operat|repair|install|"
    r"provid|coordinat|plan|analy[sz]|evaluat|prepar|assist|support|conduct|administer|treat|teach|train|inspect|"
    r"build|deliver|advis|monitor|knowledge of|skill in|ability to|licen[sc]e|certifi|registered|degree in|"
    r"requires?|required|proficien)",
    re.IGNORECASE,
)
_BOILERPLATE = re.compile(
    r"thank you for (?:your interest|applying)|\bselect (?:the|one|all|your|\W?yes)|select (?:\w+ ){0,3}(?:that|which)|"
    r"\bplease (?:select|review|read|choose|indicate|provide|note|ensure|respond|answer)|your (?:resume|responses|answers)|"
    r"none of the above|subject to verification|failure to|used to (?:rate|determine)|"
    r"\bi (?:do not|don't|have not|haven't|am not|lack|have no\b)|\bi have (?:education|performed|experience (?:in )?perform)|"
    r"i (?:am|have been|consider myself|am considered) (?:an expert|considered|trained)|"
    r"this task|these tasks|as described (?:above|in)|described above|for each (?:task|item|question|statement)|"
    r"attach(?:ed)? (?:a copy|your|transcript)|must (?:be|attach|submit|provide)[^.]{0,40}transcript|"
    r"from the (?:choices|list|options|responses)|"
    r"equal (?:opportunity|employment)|without regard to|reasonable accommodation|apply (?:now|today|online)|"
    r"click (?:here|on)|highest level of education|are you (?:a |an )?(?:current|veteran|u\.?s\.? citizen)",
    re.IGNORECASE,
)
_SHORTEST = 3  # informative words in a sentence worth picking first
_LEAD = 0.15  # what the first sentence gains over the last


class ExtractiveSummarizer:
    """Summaries of at most `max_tokens` tokens as `count` counts them."""

    def __init__(self, max_tokens: int, count: CountTokens = approximate_tokens, counter_id: str = "a1") -> None:
        """`counter_id` names the counter. Raises ValueError for a budget below 1."""
        if max_tokens < 1:
            raise ValueError(f"max_tokens: got {max_tokens}, expected at least 1 (settings: models.summary_tokens)")
        self._max_tokens = max_tokens
        self._count = count
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
        first = max(range(len(found)), key=lambda at: (not _BOILERPLATE.search(found[at]), -at))
        return cut(found[first], self._max_tokens, self._count)

    def item_text(self, posting: PostingText, summary: str) -> str:
        return item_text(posting, summary)

    def _choose(self, found: list[str], title: str) -> list[int]:
        """Positions, best first, whose counts together are within the budget."""
        words = [_informative(sentence) for sentence in found]
        worth = _worth(found, words, _informative(title))
        ahead = sorted(range(len(found)), key=lambda at: (-worth[at], at))
        chosen: list[int] = []
        said: set[str] = set()
        left = self._max_tokens
        tried: dict[int, int] = {}
        while ahead and left > 0:
            best = max(ahead[:12], key=lambda at: (worth[at] * (1.0 - _repeated(words[at], said)), -at))
            ahead.remove(best)
            if worth[best] <= 0 and chosen:
                break
            cost = tried.setdefault(best, self._count(found[best]))
            if cost <= left:
                chosen.append(best)
                said |= words[best]
                left -= cost
        return chosen


def _informative(text: str) -> set[str]:
    return {word for word in _WORD.findall(text.lower()) if word not in _STOP}


def _worth(found: list[str], words: list[set[str]], title: set[str]) -> list[float]:
    """A number a sentence: higher is better, at most 0 for boilerplate."""
    frequency = Counter(chain.from_iterable(words))
    value = {
        word: 0.1 if word in _FORM else (1.0 + min(count, 6) / 3.0) * (1.6 if word in title else 1.0)
        for word, count in frequency.items()
    }
    last = max(len(found) - 1, 1)
    out = []
    for at, (sentence, own) in enumerate(zip(found, words, strict=True)):
        if not own or _BOILERPLATE.search(sentence):
            out.append(0.0)
            continue
        # The root favours neither the longest sentence nor the shortest.
        worth = sum(value[word] for word in own) / (len(own) + 4.0)
        worth += 0.25 * min(len(_DUTY.findall(sentence)), 3)
        worth += _LEAD * (1.0 - at / last)
        out.append(worth if len(own) >= _SHORTEST else worth * 0.5)
    return out


def _repeated(own: set[str], said: set[str]) -> float:
    """The share of a sentence's words that the chosen ones have said, [0, 1]."""
    return len(own & said) / len(own) if own else 1.0
