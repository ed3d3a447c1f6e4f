"""Places in a query, through the gazetteer: "in Columbus, Ohio", "near Denver", "Oregon or Washington", "DC area".

What stands beside a name decides what it is: a town needs its region, its country or a preposition, an abbreviation
its town; a state's full name stands alone. Several places are alternatives. Every clause lets postings without a place
through, and the whole is strict only if the index holds such places.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from penstock.retrieval.understanding import gazetteer, place_filters
from penstock.retrieval.understanding.gazetteer import LONGEST_NAME, Town, fold
from penstock.retrieval.understanding.place_filters import Place
from penstock.retrieval.understanding.place_names import AREAS, CITY_NICKNAMES, EXTRA
from penstock.retrieval.understanding.places import DOMINANT
from penstock.retrieval.understanding.reading import Found, Reading
from penstock.schemas import filters

# Codes that are no word, degree, employer or pay plan, and so may stand alone in upper case.
# fmt: off
_CLEAR_CODES = frozenset(
    ["AZ", "TX", "FL", "NC", "NM", "NJ", "NV", "NY", "TN", "KY", "WI", "MN", "KS", "UT", "WY", "WV"]
)
# fmt: on
_NEVER_LOWER = frozenset(["as", "de", "hi", "id", "in", "la", "me", "no", "oh", "ok", "or"])
_DOUBTFUL_LOWER = frozenset(["al", "il", "ma", "mi", "pa", "va"])  # only behind a town of some size there
_DIRECTIONS = frozenset(["central", "east", "eastern", "north", "northern", "south", "southern", "west", "western"])
# Towns whose name is a word that queries use otherwise.
_WORDS = frozenset(
    [
        *(
            "aurora",
            "bath",
            "batman",
            "best",
            "buffalo wings",
            "college",
            "commerce",
            "corona",
            "date",
            "deal",
            "david",
        ),
        *("energy", "enterprise", "general", "grand", "home", "hope", "hull", "imperial", "independence", "industry"),
        *(
            "liberal",
            "man",
            "march",
            "media",
            "mesa",
            "mobile",
            "most",
            "nice",
            "normal",
            "nursing",
            "of",
            "opportunity",
        ),
        *("orange", "page", "paramount", "park", "plant", "police", "reading", "sale", "same", "sandwich", "split"),
        *("spring", "summit", "surprise", "temple", "tours", "union", "van", "university", "ware", "field", "center"),
    ]
)
_NOT_AFTER = re.compile(
    r"\s*(?:'s)?\s*(?:rivers?|university|tech|instruments|post|avenue|ave|street|st\b|state university|state college|"
    r"wings|steel|roads|time|history|bank|casualty)\b(?! (?:office|basin))"
)
_NOT_BEFORE = re.compile(
    r"\b(?:university of|bank of|port authority of|uss|i'm from|am from|came from|moved from|left)\s*$"
)
_PREPOSITION = re.compile(
    r"\b(?:in|near|around|at|within|outside|by|anywhere|throughout|across|out of|to)\s+(?:the\s+)?$"
)
_NEAR_BEFORE = re.compile(
    r"\b(?:near|around|close to|commuting distance (?:of|to)|outside(?: of)?|"
    r"within (?:(?P<count>\d{1,3}) ?(?P<unit>miles?|mi|km|kilometers?|kilometres?) )?of)\s+(?:the\s+)?$"
)
_NEAR_AFTER = re.compile(r"\s*(?:'s)?\s*(?:metro(?:politan)?|area|region|suburbs|surroundings|vicinity)\b")
_REGION_OF = re.compile(r"\s+(?:new|north|south|west|rhode|district)\b")  # the first word of longer region names
_JOINED = re.compile(r"\s*(?:,?\s*(?:or|and)\s+(?:in\s+|near\s+)?|/\s*)")
_OR_ANYWHERE = re.compile(r"\bor (?:anywhere|elsewhere|wherever)\b")
_ARTICLE = re.compile(r"\bthe\s+$")
_WORD = re.compile(r"[^\W\d_](?:[\w'’]|\.(?=\w))*")
_SMALLEST = 15_000  # people, of a town that only a preposition marks
_KNOWN = 300_000  # people, of a town that nothing marks
_HOME = ("US", "AU", "CA", "GB")  # where such a town must lie


@dataclass(frozen=True, slots=True)
class _Word:
    start: int
    end: int
    raw: str
    folded: str


@dataclass(frozen=True, slots=True)
class _Mention:
    start: int
    end: int
    places: tuple[Place, ...]


def read_places(reading: Reading) -> list[Found]:
    """One demand made of all places asked for, and one exclusion for each that is ruled out."""
    found: list[Found] = []
    asked: list[_Mention] = []
    wished: list[_Mention] = []
    for mention in _mentions(reading):
        if reading.negated(mention.start):
            tree = filters.negate(place_filters.any_of(mention.places, radius_km=place_filters.OUT_KM))
            label = f"not {place_filters.label(mention.places)}"
            found.append(Found(mention.start, mention.end, label, tree, needs_values=True))
        else:
            (wished if reading.soft(mention.start, mention.end) else asked).append(mention)
    if not asked or _OR_ANYWHERE.search(reading.lowered):
        return found
    # What is merely welcome rules nothing out, but it is not to be ruled out either: "in Ohio, Kentucky ok".
    places = tuple(dict.fromkeys(place for mention in (*asked, *wished) for place in mention.places))
    if any(place.country == "US" and (place.region or place.town) for place in places):
        places = tuple(place for place in places if place != Place("US"))  # "a US base in Ohio"
    if any(place.region and not place.doubtful and place.region != "WA" for place in places):
        # "Oregon or Washington": among states it is the state.
        places = tuple(place for place in places if not place.doubtful) or places
    tree = place_filters.any_of(places)
    found.append(Found(asked[0].start, asked[-1].end, place_filters.label(places), tree, needs_values=True))
    return found


def _mentions(reading: Reading) -> Iterator[_Mention]:
    words = [_Word(match.start(), match.end(), match[0], fold(match[0])) for match in _WORD.finditer(reading.lowered)]
    words = [_Word(word.start, word.end, reading.text[word.start : word.end], word.folded) for word in words]
    at = last = 0
    while at < len(words):
        joined = last > 0 and _JOINED.fullmatch(reading.lowered[last : words[at].start]) is not None
        mention, used = _longest(reading, words, at, joined)
        if mention is not None:
            last = mention.end
            yield mention
        at += used


def _longest(reading: Reading, words: list[_Word], at: int, joined: bool) -> tuple[_Mention | None, int]:
    """The longest place that starts at this word, and how many words it takes (at least one).

    `joined`: an "or" ties it to the place before it.
    """
    for length in range(min(LONGEST_NAME, len(words) - at), 0, -1):
        run = words[at : at + length]
        if any("," in reading.text[a.end : b.start] for a, b in pairwise(run)):
            continue
        name = " ".join(word.folded for word in run)
        places, extra = _read(reading, words, at, length, name, joined)
        if not places:
            continue
        start, end = run[0].start, words[at + length + extra - 1].end
        if _NOT_AFTER.match(reading.lowered, end) or _NOT_BEFORE.search(reading.lowered[:start]):
            return None, length + extra
        radius = _radius(reading, start, end)
        return _Mention(start, end, tuple(place.within(radius) for place in places)), length + extra
    return None, 1


def _read(
    reading: Reading, words: list[_Word], at: int, length: int, name: str, joined: bool
) -> tuple[tuple[Place, ...], int]:
    """What the run means, and how many words behind it belong to it."""
    if name in EXTRA:
        place = Place(*EXTRA[name])
        return (place,), _repeated(words, at + length, place)
    qualified = _qualified(reading, words, at, length, name)
    if qualified is not None:
        return qualified
    if name in CITY_NICKNAMES:
        city, region = CITY_NICKNAMES[name]
        return tuple(Place.of(town) for town in gazetteer.towns(city) if town.region == region)[:1], 0
    if name in AREAS:
        if _following(words, at + length) in gazetteer.regions() or _REGION_OF.match(
            reading.lowered, words[at + length - 1].end
        ):
            return (), 0  # southwest Virginia
        said = _said(reading, words[at].start, words[at + length - 1].end)
        return tuple(Place("US", region, said=said) for region in AREAS[name]), 0
    if name in gazetteer.regions():
        return _region_named(reading, words, at, length, name)
    start = words[at].start
    marked = joined or _PREPOSITION.search(reading.lowered[:start]) is not None
    if name in gazetteer.countries():
        beside = marked or name in ("guam", "puerto rico") or reading.lowered[:start].rstrip().endswith((",", " or"))
        return ((Place(gazetteer.countries()[name]),), 0) if beside and words[at].raw[0].isupper() else ((), 0)
    if length == 1 and words[at].raw in _CLEAR_CODES and not re.match(r"[\s-]?\d", reading.text[words[at].end :]):
        return (Place("US", words[at].raw),), 0
    return _bare_towns(reading, words[at], name, marked), 0


def _repeated(words: list[_Word], at: int, place: Place) -> int:
    """How many words behind a place only say where it lies: "Okinawa, Japan"."""
    for more in range(min(2, len(words) - at), 0, -1):
        name = " ".join(word.folded for word in words[at : at + more])
        if (place.country, place.region) in gazetteer.regions().get(name, ()):
            return more
        if gazetteer.countries().get(name) == place.country:
            return more
    return 0


def _region_named(
    reading: Reading, words: list[_Word], at: int, length: int, name: str
) -> tuple[tuple[Place, ...], int]:
    country, region = gazetteer.regions()[name][0]
    if name == "washington" and _following(words, at + length) != "state":
        capital = next(town for town in gazetteer.towns(name) if town.region == "DC")
        return (Place("US", "WA"), Place.of(capital, doubtful=True)), 0
    if country != "US" and not words[at].raw[0].isupper():
        return (), 0
    return (Place(country, region),), 0


def _said(reading: Reading, start: int, end: int) -> str:
    """An area as it was written, with its article."""
    name = " ".join(word if word in ("or", "and") else word.capitalize() for word in reading.lowered[start:end].split())
    return f"the {name}" if _ARTICLE.search(reading.lowered[:start]) else name


def _following(words: list[_Word], at: int) -> str:
    return words[at].folded if at < len(words) else ""


def _qualified(
    reading: Reading, words: list[_Word], at: int, length: int, name: str
) -> tuple[tuple[Place, ...], int] | None:
    """A town with its region or country right behind it; None when that is not what stands there."""
    towns = gazetteer.towns("new york city" if name == "new york" else name)
    if not towns or name in _DIRECTIONS or (name in _WORDS and not words[at].raw[0].isupper()):
        return None
    if name in gazetteer.regions() and name not in ("new york", "washington"):
        return None
    for more in range(min(LONGEST_NAME, len(words) - at - length), 0, -1):
        tail = words[at + length : at + length + more]
        between = reading.text[words[at + length - 1].end : tail[0].start]
        if not re.fullmatch(r"\s*,?\s*|\s*/\s*", between):
            return None
        qualifier = " ".join(word.folded for word in tail)
        where = set(gazetteer.regions().get(qualifier, ()))
        least = 0
        if not where and more == 1 and (tail[0].raw.isupper() or tail[0].folded not in _NEVER_LOWER):
            where = set(gazetteer.region_codes().get(tail[0].raw.upper(), ()))
            least = 0 if tail[0].raw.isupper() or tail[0].folded not in _DOUBTFUL_LOWER else _SMALLEST
        country = gazetteer.countries().get(qualifier)
        for town in towns:
            if town.population < least:
                continue
            if (town.country, town.region) in where or town.country == country:
                return (Place.of(town),), more
    return None


def _bare_towns(reading: Reading, first: _Word, name: str, marked: bool) -> tuple[Place, ...]:
    """A town by its name alone: the one that clearly outweighs its namesakes, else all that may be meant."""
    if name in _WORDS or len(name) < 4:
        return ()
    towns = gazetteer.towns(name)
    shouted = reading.text == reading.lowered  # no capitals anywhere: they cannot tell a name from a word
    least = _SMALLEST if marked and first.raw[0].isupper() else _KNOWN
    if marked and not first.raw[0].isupper() and not shouted:
        return ()
    towns = tuple(town for town in towns if town.population >= least and (marked or town.country in _HOME))
    if not towns:
        return ()
    others = (town for town in towns[1:] if town.country in _HOME and _may_be_meant(town, towns[0]))
    return (Place.of(towns[0]), *(Place.of(town) for town in others))


def _may_be_meant(town: Town, largest: Town) -> bool:
    ratio = DOMINANT if town.country == largest.country else 2.5 * DOMINANT
    return town.population * ratio >= largest.population


def _radius(reading: Reading, start: int, end: int) -> float:
    match = _NEAR_BEFORE.search(reading.lowered[:start])
    if match is not None and match["count"]:
        kilometres = float(match["count"]) * (1.609 if match["unit"].startswith("mi") else 1.0)
        return max(kilometres, place_filters.SMALLEST_KM)
    if match is not None or _NEAR_AFTER.match(reading.lowered, end):
        return place_filters.NEAR_KM
    return place_filters.IN_KM
