"""What the benchmark publishes: real postings as records, endlessly, each with an id and a text of its own.

The full text of the US federal postings where the data folder has them, else the sample that the demo ships. When the
postings run out they come again under other ids with one word more, so that no cache of texts answers for the models.
Deterministic.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from penstock.infra.demo import sample
from penstock.retrieval.understanding import places
from penstock.schemas.events import Location, Posting

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
LIFE_MS = 30 * 86_400_000  # none expires during a run


@dataclass(frozen=True, slots=True)
class Source:
    """Distinct postings, and where they come from."""

    postings: Sequence[Posting]
    name: str

    @property
    def mean_characters(self) -> float:
        return sum(len(posting.description or "") for posting in self.postings) / len(self.postings)

    def stream(self, mark: str, now_ms: int) -> Iterator[Posting]:
        """Endless. `mark` sets the ids of one phase apart from those of another."""
        for number in range(1 << 62):
            around, position = divmod(number, len(self.postings))
            posting = self.postings[position]
            yield replace(
                posting,
                posting_id=f"{mark}-{number}",
                version=1,
                description=f"{posting.description} {mark}{around}" if posting.description else None,
                posted_at=now_ms,
                expires_at=now_ms + LIFE_MS,
            )


def load(data: Path) -> Source:
    """The real postings under `data`, or the shipped sample when they are not there: the same in every process."""
    parts = sorted((data / "usajobs_postings").glob("part-*.jsonl"))
    if not parts:
        return Source(sample.shipped_postings(sample.REFERENCE_MS).postings, "shipped sample of US federal postings")
    return Source(tuple(_distinct(parts)), "usajobs_postings")


def _distinct(parts: Sequence[Path]) -> Iterator[Posting]:
    seen: set[tuple[str, str]] = set()
    for part in parts:
        for line in part.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if (key := (row["title"], row["text"])) in seen:
                continue
            seen.add(key)
            yield Posting(
                posting_id=row["id"],
                version=1,
                title=row["title"],
                description=row["text"],
                company=row["agency"] or row["department"],
                location=_location(row["location"]),
                grade=row["grade"],
                category=row["occupation_name"],
                source="usajobs",
                url=row["url"],
            )


def _location(text: str | None) -> Location | None:
    if not text:
        return None
    return places.resolve(text) or Location(text=text)
