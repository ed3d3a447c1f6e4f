"""Standing queries and postings for the benchmark of percolation.

Queries: people's own words (relevance_judgements) and titles of real postings through the project's encoder, with what
the rules understand of them as filters, compiled as the alerts job compiles a subscription; then used again with noise
until there are as many as wanted. 15 in a hundred have words alone, 20 filters alone, the rest both; a tenth of all
asks the ranker (`min_score`). Postings: real ones that say where the work is, their vectors with noise.

The data has neither remote work, contract, pay nor skills: those are drawn, as shares of job boards roughly are.
Deterministic. Encoded once, then kept in build/.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.searching.vectors import DENSE, DROPPED, NOISE, SKETCH
from benchmarks.streaming.source import load
from penstock.infra.settings import AlertsSettings
from penstock.jobs.operators.posting_state import attributes_of
from penstock.jobs.operators.subscription_state import compiled
from penstock.retrieval.encoder.embedded import EmbeddedEncoder
from penstock.retrieval.understanding.rules import RuleUnderstander
from penstock.schemas import filters
from penstock.schemas.events import (
    EmploymentType,
    Filter,
    IndexOp,
    IndexUpdate,
    Missing,
    Op,
    PayPeriod,
    Posting,
    PostingText,
    QueryVector,
    Remote,
    Salary,
    StandingQuery,
    Vector,
)

POSTINGS = 2_000  # distinct ones that are encoded
TITLES = 1_500  # of postings, beside people's own words
NOW_MS = 1_760_000_000_000
LIFE_MS = 30 * 86_400_000
WORDS_ALONE, FILTERS_ALONE, SCORED = 0.15, 0.20, 0.1

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Supply:
    """What both are made of: real postings with drawn attributes, and the vectors of them and of the words."""

    postings: Sequence[Posting]
    words: Sequence[str]
    dense: Floats  # [postings, DENSE]
    sketch: npt.NDArray[np.int8]  # [postings, SKETCH]
    asked: Floats  # [words, DENSE]
    lexical: Floats  # [words, SKETCH]
    space_id: str

    def updates(self, count: int, seed: int = 11) -> list[IndexUpdate]:
        """As the alerts job percolates them."""
        rng = np.random.default_rng(seed)
        which = rng.permutation(np.arange(count) % len(self.postings))
        dense = _unit(self.dense[which] + _noise(rng, count))
        sketch = self.sketch[which] * (rng.random((count, SKETCH)) >= DROPPED)
        rounded = ((dense.view(np.uint32) + 0x8000) >> 16).astype("<u2")
        return [
            IndexUpdate(
                posting_id=f"posting-{number}",
                version=1,
                op=IndexOp.UPSERT,
                attributes=attributes_of(self.postings[place]),
                vector=Vector(
                    space_id=self.space_id,
                    encoder_id="benchmark",
                    dense=rounded[number].tobytes(),
                    sketch=sketch[number].astype(np.int8).tobytes(),
                ),
                produced_at=NOW_MS,
                expires_at=NOW_MS + LIFE_MS,
                percolate=True,
            )
            for number, place in enumerate(which.tolist())
        ]

    def standing(self, count: int, seed: int = 13) -> list[StandingQuery]:
        draw, rng = random.Random(seed), np.random.default_rng(seed)
        understander, threshold = RuleUnderstander(), AlertsSettings().threshold
        understood = [understander.understand(text, now_ms=NOW_MS) for text in self.words]
        out = []
        for start in range(0, count, 10_000):
            some = np.arange(start, min(start + 10_000, count)) % len(self.words)
            dense = _unit(self.asked[some] + _noise(rng, len(some)))
            for number, place, row in zip(range(start, start + len(some)), some.tolist(), dense, strict=True):
                kind, like = draw.random(), draw.choice(self.postings)
                only_filters = kind < FILTERS_ALONE
                own = None if 1 - kind < WORDS_ALONE else _wanted(like, draw, narrow=only_filters)
                vector = QueryVector(
                    space_id=self.space_id,
                    encoder_id="benchmark",
                    dense=row.astype("<f4").tobytes(),
                    lexical=self.lexical[place].astype("<f4").tobytes(),
                )
                out.append(
                    StandingQuery(
                        subscription_id=f"subscription-{number}",
                        version=1,
                        op=Op.UPSERT,
                        person_id=f"person-{number // 2}",
                        text="" if only_filters else self.words[place],
                        vector=None if only_filters else vector,
                        filters=own if only_filters else compiled(own, understood[place]),
                        threshold=0.0 if only_filters else threshold,
                        min_score=0.2 if not only_filters and draw.random() < SCORED else None,
                        produced_at=NOW_MS,
                    )
                )
        return out


def supply(data: Path, build: Path) -> Supply:
    source = load(data)
    placed = [posting for posting in source.postings if posting.location and posting.location.country]
    step = max(1, len(placed) // POSTINGS)
    draw = random.Random(17)
    skills = sorted({posting.category for posting in placed if posting.category})
    postings = [_completed(posting, draw, skills) for posting in placed[::step][:POSTINGS]]
    titles = [posting.title or "work" for posting in source.postings]
    words = [*_judged(data), *titles[:: max(1, len(titles) // TITLES)][:TITLES]]
    encoder = EmbeddedEncoder()
    name = f"standing-{encoder.encoder_id}-{source.name}".replace("/", "-").replace(" ", "-")
    kept = build / f"{name}.npz"
    if not kept.exists():
        vectors = encoder.encode_postings([_text(posting) for posting in postings])
        asked = encoder.encode_queries(words)
        halves = np.stack([np.frombuffer(each.dense, "<u2") for each in vectors])
        build.mkdir(parents=True, exist_ok=True)
        np.savez(
            kept,
            dense=(halves.astype(np.uint32) << 16).view(np.float32),
            sketch=np.stack([np.frombuffer(each.sketch or bytes(SKETCH), np.int8) for each in vectors]),
            asked=np.stack([np.frombuffer(each.dense, "<f4") for each in asked]),
            lexical=np.stack([np.frombuffer(each.lexical or bytes(4 * SKETCH), "<f4") for each in asked]),
        )
    with np.load(kept) as arrays:
        parts = [arrays[each] for each in ("dense", "sketch", "asked", "lexical")]
    return Supply(postings, words, *parts, encoder.space_id)


def _judged(data: Path) -> list[str]:
    judged = data / "relevance_judgements" / "queries.jsonl"
    lines = judged.read_text(encoding="utf-8").splitlines() if judged.exists() else []
    return [json.loads(line)["query"] for line in lines]


def _completed(posting: Posting, draw: random.Random, skills: Sequence[str]) -> Posting:
    pay = draw.randrange(30_000, 180_000, 500)
    remote = draw.choices((Remote.UNKNOWN, Remote.ONSITE, Remote.HYBRID, Remote.REMOTE), (25, 45, 15, 15))[0]
    contract = draw.choices((EmploymentType.FULL_TIME, EmploymentType.PART_TIME, EmploymentType.CONTRACT), (80, 10, 10))
    salary = Salary(min=pay, max=pay * 1.3, currency="USD", period=PayPeriod.YEAR) if draw.random() < 0.7 else None
    own = (posting.category,) if posting.category else ()
    return replace(
        posting,
        remote=remote,
        employment_type=contract[0],
        salary=salary,
        skills=(*own, *draw.sample(skills, min(len(skills), draw.randrange(6)))),
        posted_at=NOW_MS,
    )


def _wanted(like: Posting, draw: random.Random, *, narrow: bool) -> Filter | None:
    """One to three wishes that `like` mostly grants; `narrow`: what it is as well, so that filters alone are few."""
    place = like.location
    assert place is not None
    wide = [filters.is_in("location.country", place.country or "US")]
    region = place.region or "CA"
    wide.append(filters.is_in("location.region", region))
    wide.append(filters.is_in("location.region", region, draw.choice(("CA", "VA", "FL", "TX", "NY", "WA"))))
    if place.lat is not None and place.lon is not None:
        wide.append(filters.near(place.lat, place.lon, draw.choice((25.0, 50.0, 100.0))))
    wide.append(filters.is_in("remote", *draw.choice((("REMOTE",), ("REMOTE", "HYBRID")))))
    lacking = draw.choice((Missing.INCLUDE, Missing.EXCLUDE))
    wide.append(filters.in_range("salary.annual_max", float(draw.randrange(40_000, 140_000, 5_000)), missing=lacking))
    wide.append(filters.is_in("employment_type", "FULL_TIME"))
    wide.append(filters.any_of(filters.is_in("remote", "REMOTE"), filters.is_in("location.region", region)))
    if like.skills:
        wide.append(filters.is_in("skills", *like.skills[: draw.randrange(1, 4)]))
    if like.company:
        wide.append(filters.negate(filters.is_in("company", like.company)))
    wishes = draw.sample(wide, draw.choice((1, 2, 2, 3)))
    if narrow:
        which = [("category", like.category), ("grade", like.grade), ("company", like.company)]
        wishes += [filters.is_in(field, value) for field, value in which if value][: draw.choice((1, 2))]
        if not like.category:
            wishes.append(filters.is_in("title.terms", (like.title or "work").split()[0].lower()))
    return filters.all_of(*wishes)


def _text(posting: Posting) -> PostingText:
    return PostingText(
        title=posting.title or "",
        company=posting.company,
        location=posting.location.text if posting.location else None,
        grade=posting.grade,
        category=posting.category,
        skills=posting.skills,
        description=posting.description or "",
    )


def _noise(rng: np.random.Generator, count: int) -> Floats:
    return rng.standard_normal((count, DENSE), dtype=np.float32) * np.float32(NOISE / np.sqrt(DENSE))


def _unit(rows: Floats) -> Floats:
    unit: Floats = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit
