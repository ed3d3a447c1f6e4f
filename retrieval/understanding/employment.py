"""Hours and permanence. A posting states one employment type, so each phrase accepts all that do not contradict it.

Contract as a subject ("contract specialist", "contracting officer") is no kind of employment.
"""

from __future__ import annotations

from penstock.retrieval.understanding.reading import Found, Reading
from penstock.retrieval.understanding.symbols import phrase, read_symbols
from penstock.schemas.events import EmploymentType as Kind

_JOB = r"(?:job|jobs|role|roles|position|positions|work|basis|only|gig|gigs|assignment|employment)"
_SHORT = (Kind.TEMPORARY, Kind.CONTRACT, Kind.INTERNSHIP, Kind.PART_TIME)
_PHRASES = (
    phrase(
        "full time",
        r"full[\s-]?time|fulltime|full(?=[\s-]or[\s-]part[\s-]?time)",
        [Kind.FULL_TIME],
        [Kind.FULL_TIME, Kind.PERMANENT_OTHER, Kind.CONTRACT, Kind.TEMPORARY],
    ),
    phrase(
        "part time",
        r"part[\s-]?time|half[\s-]time",
        [Kind.PART_TIME],
        [Kind.PART_TIME, Kind.CONTRACT, Kind.TEMPORARY, Kind.INTERNSHIP, Kind.PERMANENT_OTHER],
    ),
    phrase(
        "permanent",
        rf"permanent(?! (?:change|resident|residence|disab|make))|perm(?= (?:{_JOB}|not|or|seasonal|only))",
        [Kind.PERMANENT_OTHER],
        [Kind.FULL_TIME, Kind.PART_TIME, Kind.PERMANENT_OTHER],
    ),
    phrase(
        "temporary",
        rf"temporary|temp(?= {_JOB})|seasonal(?: {_JOB})?|summer (?:{_JOB}|only)|winter {_JOB}|"
        r"(?:short|fixed)[\s-]term",
        [Kind.TEMPORARY],
        _SHORT,
    ),
    phrase(
        "contract",
        rf"contract(?= {_JOB})|on (?:a )?contract|contract[\s-]to[\s-]hire|freelance(?= {_JOB})|travel contracts?|c2c",
        [Kind.CONTRACT],
        [Kind.CONTRACT, Kind.TEMPORARY],
    ),
    phrase(
        "per diem", r"per diem|prn|intermittent|on[\s-]call (?=\w)", [], [Kind.PART_TIME, Kind.TEMPORARY, Kind.CONTRACT]
    ),
    phrase(
        "internship",
        r"internships?|intern(?= (?:role|position|job))",
        [Kind.INTERNSHIP],
        [Kind.INTERNSHIP, Kind.TEMPORARY],
    ),
)


def read_employment(reading: Reading) -> list[Found]:
    return read_symbols(reading, "employment_type", _PHRASES)
