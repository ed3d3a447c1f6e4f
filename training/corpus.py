"""The data that weights are fitted on: distinct postings as encoders see them, graded queries, splits.

Read-only. `data` is the folder that holds usajobs_postings, skillspan_postings, onet_27_0 and relevance_judgements.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from penstock.schemas.events import PostingText

DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
DEFAULT_CACHE = Path(__file__).resolve().parents[1] / ".cache" / "training"

_PLACEHOLDER = re.compile(r"<[A-Z]+>")
_SPACES = re.compile(r"[ \t]+")


@dataclass(frozen=True, slots=True)
class Judged:
    """One query with its judged pool."""

    query_id: str
    split: str  # train, dev (US federal postings) or private (SkillSpan postings)
    text: str
    posting_ids: tuple[str, ...]
    grades: tuple[int, ...]  # 0..4, aligned with posting_ids


def load_postings(data: Path) -> dict[str, PostingText]:
    """Postings with distinct title and text, the first of each kept, by id: US federal first, then SkillSpan."""
    postings: dict[str, PostingText] = {}
    seen: set[tuple[str, str]] = set()
    for part in sorted((data / "usajobs_postings").glob("part-*.jsonl")):
        for row in _rows(part):
            key = (row["title"], row["text"])
            if key in seen:
                continue
            seen.add(key)
            postings[row["id"]] = PostingText(
                title=row["title"],
                company=row["agency"] or row["department"],
                location=row["location"],
                grade=row["grade"],
                category=row["occupation_name"],
                description=row["text"],
            )
    for row in _rows(data / "skillspan_postings" / "postings.jsonl"):
        title, body = skillspan_text(row["text"])
        if (title, body) not in seen:
            seen.add((title, body))
            postings[row["id"]] = PostingText(title=title, description=body)
    return postings


def skillspan_text(text: str) -> tuple[str, str]:
    """Title (first line) and body of a SkillSpan posting, without the placeholders left by its de-identification."""
    lines = [_SPACES.sub(" ", _PLACEHOLDER.sub("", line)).strip(" -,") for line in text.split("\n")]
    kept = [line for line in lines if line]
    return (kept[0], "\n".join(kept[1:]) or kept[0]) if kept else ("untitled", text)


def load_judged(data: Path) -> list[Judged]:
    """Every judged query, in file order."""
    pools: dict[str, list[tuple[str, int]]] = {}
    with (data / "relevance_judgements" / "grades.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            pools.setdefault(row["query_id"], []).append((row["posting_id"], int(row["grade"])))
    return [
        Judged(
            row["query_id"],
            row["split"],
            row["query"],
            tuple(posting for posting, _ in pools[row["query_id"]]),
            tuple(grade for _, grade in pools[row["query_id"]]),
        )
        for row in _rows(data / "relevance_judgements" / "queries.jsonl")
    ]


def occupation_texts(data: Path) -> list[str]:
    """One text an O*NET occupation and third of its tasks: varied occupational English beside the postings."""
    tasks: dict[str, list[str]] = {}
    with (data / "onet_27_0" / "task_statements.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            tasks.setdefault(row["O*NET-SOC Code"], []).append(row["Task"])
    texts = []
    with (data / "onet_27_0" / "occupations.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            title = row["Title"]
            own = tasks.get(row["O*NET-SOC Code"], [])
            texts.append(f"{title}\n{row['Description']}")
            texts.extend(f"{title}\n{' '.join(own[start::3])}" for start in range(3) if own[start::3])
    return texts


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open() as stream:
        for line in stream:
            yield json.loads(line)
