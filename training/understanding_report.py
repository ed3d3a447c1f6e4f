"""What the rules of query understanding cost and gain on graded queries: good postings hidden, poor ones removed.

    .venv/bin/python training/understanding_report.py [--data ../shared/data] [--show]

For every query of the train and dev splits of relevance_judgements, the filters that RuleUnderstander derives are
evaluated on its judged postings, whose attributes are their grade, title and place as the demo fills them. Hidden:
the share of judged postings of grade 3 or 4 that a filter excludes; removed: the same of grades 0 to 2. A place counts
only if some posting of the corpus has it, as the ranker decides. `--show` prints every query with what was read.

Measured on 2026-11-21 (780 queries, 12,480 judged pairs; the rules were written while looking at both splits, so this
says what they do and not how they generalise; no posting here states remote, hours, level or pay):

    rule         queries hidden of seen  of good removed  of seen  of poor
    exclusions        30      0   0.00%    0.00%      91   23.58%    0.93%
    grade            142      0   0.00%    0.00%     329   16.70%    3.35%
    places           239      1   0.20%    0.04%    1572   47.41%   16.01%
    all              345      1   0.12%    0.04%    1829   39.22%   18.63%

The one hidden posting lies across a state line from the state asked for.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from penstock.retrieval.search.evaluate import evaluate
from penstock.retrieval.search.filters import positive, pushed
from penstock.retrieval.store.columns import Columns
from penstock.retrieval.understanding import places
from penstock.retrieval.understanding.rules import RuleUnderstander
from penstock.schemas.events import Attributes, Filter, IndexOp, IndexUpdate, Location

NOW_MS = 1_767_225_600_000
SPLITS = ("train", "dev")


def load_columns(data: Path) -> tuple[Columns, dict[str, int], dict[str, str]]:
    """Attribute columns of the corpus, the slot of each id, and "title @ place" for people."""
    postings = [*_federal(data / "usajobs_postings"), *_private(data / "skillspan_postings")]
    columns, slots, shown = Columns(len(postings)), {}, {}
    for slot, (posting_id, attributes) in enumerate(postings):
        update = IndexUpdate(
            posting_id=posting_id, version=1, op=IndexOp.UPSERT, attributes=attributes, produced_at=NOW_MS
        )
        columns.write(slot, update)
        slots[posting_id] = slot
        where = attributes.location.text if attributes.location else None
        shown[posting_id] = f"{attributes.title} @ {where} {attributes.grade or ''}"
    return columns, slots, shown


def _federal(folder: Path) -> Iterator[tuple[str, Attributes]]:
    for part in sorted(folder.glob("part-*.jsonl")):
        for row in map(json.loads, part.open(encoding="utf-8")):
            where = row["location"]
            place = None if where is None else places.resolve(where) or Location(text=where)
            yield row["id"], Attributes(title=row["title"], location=place, grade=row["grade"])


def _private(folder: Path) -> Iterator[tuple[str, Attributes]]:
    for row in map(json.loads, (folder / "postings.jsonl").open(encoding="utf-8")):
        yield row["id"], Attributes(title=row["text"].splitlines()[0])


def load_graded(data: Path) -> dict[str, list[tuple[str, int]]]:
    graded = defaultdict(list)
    with (data / "relevance_judgements" / "grades.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            graded[row["query_id"]].append((row["posting_id"], int(row["grade"])))
    return graded


class Tally:
    """Of one rule (or of all together): queries it fired on, good and poor judged postings seen and excluded."""

    def __init__(self) -> None:
        self.queries = 0
        self.seen = [0, 0]  # poor, good
        self.cut = [0, 0]

    def add(self, passed: np.ndarray[Any, Any], grades: list[int]) -> None:
        self.queries += 1
        for keep, grade in zip(passed, grades, strict=True):
            self.seen[grade >= 3] += 1
            self.cut[grade >= 3] += not keep

    def row(self, name: str, good: int, poor: int) -> str:
        return (
            f"{name:<12} {self.queries:>7} {self.cut[1]:>6} {self.cut[1] / max(self.seen[1], 1):>7.2%}"
            f" {self.cut[1] / good:>8.2%} {self.cut[0]:>7} {self.cut[0] / max(self.seen[0], 1):>8.2%}"
            f" {self.cut[0] / poor:>8.2%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--show", action="store_true", help="print every query with what was read, and what it hid")
    given = parser.parse_args()
    if not given.data.is_dir():
        raise SystemExit(f"{given.data} is not there: name the folder of the graded queries with --data")
    columns, slots, shown = load_columns(given.data)
    graded = load_graded(given.data)
    understander = RuleUnderstander()
    tallies: dict[str, Tally] = defaultdict(Tally)
    totals = [0, 0]

    def passes(tree: Filter, at: list[int]) -> np.ndarray[Any, Any]:
        return evaluate(pushed(tree), columns, len(slots))[at]

    for line in (given.data / "relevance_judgements" / "queries.jsonl").open(encoding="utf-8"):
        query = json.loads(line)
        if query["split"] not in SPLITS:
            continue
        pairs = graded[query["query_id"]]
        at, grades = [slots[posting] for posting, _ in pairs], [grade for _, grade in pairs]
        for grade in grades:
            totals[grade >= 3] += 1
        whole = np.ones(len(at), np.bool_)
        read = understander.read(query["query"], now_ms=NOW_MS)
        by_rule: dict[str, np.ndarray[Any, Any]] = {}
        dropped = set()
        for name, one in read:
            if one.needs_values and not evaluate(pushed(positive(one.filter)), columns, len(slots)).any():
                dropped.add(one)
                continue
            passed = passes(one.filter, at)
            by_rule[name] = by_rule.get(name, np.ones(len(at), np.bool_)) & passed
            whole &= passed
        for name, passed in by_rule.items():
            tallies[name].add(passed, grades)
        if by_rule:
            tallies["all"].add(whole, grades)
        if given.show:
            print(f"{query['query_id']} {query['query']}")
            for name, one in read:
                span = query["query"][one.start : one.end]
                print(f"    {name}: {one.label}  <- {span!r}{' (dropped)' if one in dropped else ''}")
            for (posting, grade), kept in zip(pairs, whole, strict=True):
                if grade >= 3 and not kept:
                    print(f"    HIDDEN {grade}: {shown[posting]}")
    print("rule         queries hidden of seen  of good removed  of seen  of poor")
    for name in sorted(tallies, key=lambda name: (name == "all", name)):
        print(tallies[name].row(name, totals[1], totals[0]))
    print(f"judged: {totals[1]} good (3 or 4), {totals[0]} poor (0 to 2)")


if __name__ == "__main__":
    main()
