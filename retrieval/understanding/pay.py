"""Pay: "over $60k", "at least 25 an hour", "$80,000+", "60-80k", "under 100k".

An amount is pay only if something says so: a currency sign, a k, "per hour", or a pay word beside it. By the year
unless words or magnitude say by the hour. A floor must be within reach of a posting's highest pay, a ceiling above its
lowest, so that a posting is excluded only when its whole range is out.
"""

from __future__ import annotations

import re

from penstock.retrieval.understanding.reading import Found, Reading
from penstock.schemas import filters
from penstock.schemas.events import Filter, Missing, PayPeriod

_AMOUNT = (
    r"(?P<{0}sign>[$£€]\s?)?(?P<{0}>\d{{1,3}}(?:,\d{{3}})+|\d{{1,6}}(?:\.\d{{1,2}})?)"
    r"(?P<{0}k>\s?k\b)?(?P<{0}plus>\s?\+)?"
)
_PERIOD = (
    r"(?:\s*(?:/|per |an? |each |every )?"
    r"(?P<period>hour|hr|hourly|annum|annually|yearly|year|yr|month|monthly|week|weekly|day|daily)\b)?"
)
_FLOOR = (
    r"(?:at least|minimum(?: of)?|min|over|above|more than|greater than|north of|starting at|from|no less than|"
    r"not less than|upwards of)"
)
_CEILING = r"(?:under|below|less than|up to|at most|no more than|not more than|max(?:imum)?(?: of)?)"
_RANGE = re.compile(
    r"(?<![\w.-])" + _AMOUNT.format("low") + r"\s*(?:-|–|to|and)\s*" + _AMOUNT.format("high") + _PERIOD + r"(?![\w%-])"
)
_ONE = re.compile(
    rf"(?:(?<![\w-])(?P<bound>{_FLOOR}|{_CEILING})\s+)?(?<![\w.-])" + _AMOUNT.format("low") + _PERIOD + r"(?![\w%-])"
)
_IS_CEILING = re.compile(_CEILING)
_PAY_WORD = re.compile(r"\b(?:pay(?:s|ing)?|salar(?:y|ies)|wages?|earn(?:s|ing)?|make|making|compensation|income)\b")
_NO_PAY = re.compile(
    r"\s*(?:hours?|hrs?|days?|weeks?|months?|years?|yrs?|employees|people|miles?|beds?|patients?|students?|users|staff|"
    r"shifts?|percent|lbs?|person|customers|clients|budget|sq)\b"
)
_PERIODS = {
    "hour": PayPeriod.HOUR,
    "hr": PayPeriod.HOUR,
    "day": PayPeriod.DAY,
    "dai": PayPeriod.DAY,
    "wee": PayPeriod.WEEK,
    "mon": PayPeriod.MONTH,
    "yea": PayPeriod.YEAR,
    "yr": PayPeriod.YEAR,
    "ann": PayPeriod.YEAR,
}
_CURRENCIES = {"£": "GBP", "€": "EUR"}  # a dollar sign is no one currency
_MOST_AN_HOUR = 400.0
_LEAST_A_YEAR = 5_000.0
_SIX_FIGURES = re.compile(r"\bsix[\s-]figures?\b")


def read_pay(reading: Reading) -> list[Found]:
    """The first statement of pay; a query that makes several is left to the ranking."""
    if match := _SIX_FIGURES.search(reading.lowered):
        if reading.negated(match.start()) or reading.soft(match.start(), match.end()):
            return []
        return [Found(match.start(), match.end(), _label(100_000.0, None), _clause(100_000.0, None, None))]
    for match in _RANGE.finditer(reading.lowered):
        if (found := _range(reading, match)) is not None:
            return [found]
    for match in _ONE.finditer(reading.lowered):
        if (found := _one(reading, match)) is not None:
            return [found]
    return []


def _range(reading: Reading, match: re.Match[str]) -> Found | None:
    if not _says_pay(reading, match, ("low", "high")):
        return None
    shared_k = bool(match["highk"]) and not match["lowk"]
    low = _number(match["low"], bool(match["lowk"]) or (shared_k and float(match["low"].replace(",", "")) < 1000))
    high = _number(match["high"], bool(match["highk"]))
    period = _period(match, high)
    low_year, high_year = filters.annual(low, period), filters.annual(high, period)
    if low_year is None or high_year is None or not _LEAST_A_YEAR <= low_year <= high_year:
        return None
    return _found(match, low_year, high_year)


def _one(reading: Reading, match: re.Match[str]) -> Found | None:
    bound = match["bound"]
    if bound is None and not match["lowplus"] and not _PAY_WORD.search(reading.lowered):
        return None  # a bare "$60,000" may be anything
    if not _says_pay(reading, match, ("low",)) or _NO_PAY.match(reading.lowered, match.end()):
        return None
    amount = _number(match["low"], bool(match["lowk"]))
    yearly = filters.annual(amount, _period(match, amount))
    if yearly is None or yearly < _LEAST_A_YEAR:
        return None
    if bound is not None and _IS_CEILING.fullmatch(bound):
        return _found(match, None, yearly)
    return _found(match, yearly, None)


def _says_pay(reading: Reading, match: re.Match[str], names: tuple[str, ...]) -> bool:
    if reading.soft(match.start(), match.end()):
        return False
    thousands = any(match[f"{name}k"] for name in names) and not match[f"{names[-1]}plus"]  # "10k+" may count people
    if thousands or any(match[f"{name}sign"] for name in names):
        return not _NO_PAY.match(reading.lowered, match.end())
    near = reading.lowered[max(0, match.start() - 24) : match.end() + 16]
    amount = float(match[names[-1]].replace(",", ""))
    by_period = match["period"] is not None and (match["period"][0] not in "dwm") and amount >= 8
    return (by_period and (_bounded(match) or _PAY_WORD.search(near) is not None)) or (
        _PAY_WORD.search(near) is not None and amount >= _LEAST_A_YEAR
    )


def _bounded(match: re.Match[str]) -> bool:
    return "bound" in match.re.groupindex and match["bound"] is not None


def _number(digits: str, thousands: bool) -> float:
    value = float(digits.replace(",", ""))
    return value * 1000.0 if thousands else value


def _period(match: re.Match[str], amount: float) -> PayPeriod:
    if match["period"]:
        return next(period for start, period in _PERIODS.items() if match["period"].startswith(start))
    return PayPeriod.HOUR if amount <= _MOST_AN_HOUR else PayPeriod.YEAR


def _found(match: re.Match[str], low: float | None, high: float | None) -> Found:
    sign = (match["lowsign"] or "").strip()
    return Found(match.start(), match.end(), _label(low, high), _clause(low, high, _CURRENCIES.get(sign)))


def _clause(low: float | None, high: float | None, currency: str | None) -> Filter:
    parts = []
    if low is not None:
        parts.append(filters.in_range("salary.annual_max", minimum=low, missing=Missing.INCLUDE))
    if high is not None:
        parts.append(filters.in_range("salary.annual_min", maximum=high, missing=Missing.INCLUDE))
    if currency is not None:
        parts.append(filters.is_in("salary.currency", currency, missing=Missing.INCLUDE))
    whole = filters.all_of(*parts)
    assert whole is not None
    return whole


def _label(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"pays between {low:,.0f} and {high:,.0f} a year"
    if low is not None:
        return f"pays at least {low:,.0f} a year"
    return f"pays at most {high:,.0f} a year"
