"""Level words. "Senior living", "lead paint" and "executive assistant" are no levels; none is inferred from a title.

An occupation's own word ("lead", "assistant manager", "chief") is left to the ranking: only words that state a level.
"""

from __future__ import annotations

from penstock.retrieval.understanding.reading import Found, Reading
from penstock.retrieval.understanding.symbols import phrase, read_symbols
from penstock.schemas.events import Seniority as Level

_PEOPLE = (
    r"living|care|citizen|center|centre|home|housing|services|companion|communit|apartment|residen|high|school|chief|"
    r"airman"
)
_PHRASES = (
    phrase(
        "entry level",
        r"entry[\s-](?:le?ve?l|grades?)|no[\s-](?:prior )?experience(?: (?:needed|required|necessary))?|"
        r"new grad(?:uate)?s?|"
        r"recent grad(?:uate)?s?|(?:paid|as an?) trainee|trainee (?:job|role|position|grade|level)|"
        r"graduate (?:program|role|position|job)",
        [Level.ENTRY, Level.INTERN],
        [Level.INTERN, Level.ENTRY, Level.MID],
    ),
    phrase("junior", r"junior|jr\.?(?= )", [Level.ENTRY], [Level.INTERN, Level.ENTRY, Level.MID]),
    phrase("mid level", r"mid[\s-](?:le?ve?l|career|to[\s-]senior)", [Level.MID], [Level.MID, Level.SENIOR]),
    phrase(
        "senior",
        rf"(?:senior|snr|sr\.?)(?=[ ,/]|$)(?! (?:{_PEOPLE}))(?!, (?:living|care))",
        [Level.SENIOR],
        [Level.SENIOR, Level.LEAD, Level.EXECUTIVE],
    ),
    phrase(
        "executive",
        r"executive[\s-]level|senior executive(?: service)?|c[\s-]suite|(?:executive|top)[\s-](?:leadership|level)",
        [Level.EXECUTIVE],
        [Level.SENIOR, Level.LEAD, Level.EXECUTIVE],
    ),
)


def read_seniority(reading: Reading) -> list[Found]:
    return read_symbols(reading, "seniority", _PHRASES)
