"""Remote, hybrid, on site. Never "remote sensing", a remote clinic or a hybrid vehicle."""

from __future__ import annotations

from penstock.retrieval.understanding.reading import Found, Reading
from penstock.retrieval.understanding.symbols import phrase, read_symbols
from penstock.schemas.events import Remote

_THING = (
    r"sens|site|area|location|village|communit|clinic|island|region|place|monitor|patient|pilot|access|control|"
    r"support|desktop|camp|station|outpost|part|medic|field|alaska|australia|town|mine|operat|viewing|handl|infra|vehicle"
)
_PHRASES = (
    phrase(
        "remote",
        rf"(?:fully |100% )?remote(?:ly)?(?![\s-]+(?:{_THING}))|work(?:ing)?[\s-]from[\s-](?:home|anywhere)|wfh|"
        r"home[\s-]based|telecommut(?:e|ing)|virtual (?:job|position|role)",
        [Remote.REMOTE],
        [Remote.REMOTE],
    ),
    phrase(
        "hybrid",
        r"hybrid(?= ?(?:$|,|or\b|and\b|if\b|ok|pref|/|work|job|role|position|remote|schedule|office|only))",
        [Remote.HYBRID],
        [Remote.HYBRID],
    ),
    phrase(
        "on site",
        r"on[\s-]?site(?= ?(?:$|,|or|and|/|work|job|role|position|only|in\b))|in[\s-]office|"
        r"in[\s-]person (?:job|work|role|only)",
        [Remote.ONSITE],
        [Remote.ONSITE, Remote.HYBRID],
    ),
)


def read_remote(reading: Reading) -> list[Found]:
    return read_symbols(reading, "remote", _PHRASES)
