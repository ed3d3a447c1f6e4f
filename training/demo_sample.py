"""Makes the demo's sample: about 2,000 real postings and 60 real-shaped queries, small enough to ship.

    python training/demo_sample.py [--data ../shared/data] [--out infra/demo/data]

In: usajobs_postings and the dev split of relevance_judgements. Out: postings.jsonl.gz (jobs.posting.v1 in JSON, times
as if now were sample.REFERENCE), queries.jsonl and SOURCE.txt. Deterministic: choices are hashes of ids, no seed.
Every judged posting of the chosen queries is in; the rest is spread over occupations, the rarest first.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
from collections import defaultdict
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any

from penstock.infra.demo.sample import REFERENCE_MS
from penstock.retrieval.understanding import places
from penstock.schemas import jsonl
from penstock.schemas.events import Location, Posting
from penstock.schemas.validate import MAX_DESCRIPTION_BYTES

POSTINGS = 2_000
QUERIES = {"constrained": 21, "keyword": 12, "need": 12, "title": 9, "messy": 6}  # the judgements' own mix
DAY_MS = 86_400_000
LONGEST_OPEN_MS = 300 * DAY_MS  # some vacancies stay open for years; the wire allows one ahead
SHORTEST_LEFT_MS = 2 * DAY_MS

SOURCE = """Sample of {postings} postings and {queries} queries, made by training/demo_sample.py.

postings.jsonl.gz
  repo    github.com/abigailhaddad/usajobs_historical  commit 94a310f80eba6d1d27aefbfe653fd935d5db59b7
  paths   questionnaires/raw_questionnaires/*.txt, questionnaires/questionnaire_links.csv,
          questionnaires/all_jobs_clean.csv
  licence text: works of the US federal government as published by OPM / USA Staffing (no US copyright, 17 USC 105);
          repo compilation: MIT (LICENSE, (c) 2025 Abigail Haddad)
  changes field names are the wire's; structured places resolved from the place's text; opening and closing times moved
          so that each vacancy is open at one reference instant, which the replay moves to now
  notes   text is the vacancy's assessment questionnaire, cut at 3,000 characters, e-mails and phones masked.
          No pay, no remote flag. {judged} of the postings are judged for the queries below.

queries.jsonl
  from    the dev split of the project's relevance judgements: written by a large language model, each loosely inspired
          by one or two real postings; five styles. May be redistributed.
"""


def stable(*parts: str) -> int:
    """64 bits that order things the same way everywhere."""
    return int.from_bytes(hashlib.blake2b("\x00".join(parts).encode(), digest_size=8).digest(), "big")


def distinct(folder: Path, preferred: set[str]) -> dict[str, dict[str, Any]]:
    """Postings by id, one of each (title, text): a preferred one if there is one, else the first."""
    rows = [json.loads(line) for part in sorted(folder.glob("part-*.jsonl")) for line in part.open(encoding="utf-8")]
    kept: dict[tuple[str, str], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row["id"] not in preferred):
        kept.setdefault((row["title"], row["text"]), row)
    return {row["id"]: row for row in kept.values()}


def choose_queries(folder: Path) -> list[dict[str, str]]:
    by_style: dict[str, list[dict[str, str]]] = defaultdict(list)
    for line in (folder / "queries.jsonl").read_text(encoding="utf-8").splitlines():
        query = json.loads(line)
        if query["split"] == "dev":
            by_style[query["style"]].append(query)
    chosen = []
    for style, count in QUERIES.items():
        chosen += sorted(by_style[style], key=lambda query: stable("query", query["query_id"]))[:count]
    return sorted(chosen, key=lambda query: query["query_id"])


def judged_by(folder: Path, queries: list[dict[str, str]]) -> set[str]:
    wanted = {query["query_id"] for query in queries}
    lines = (folder / "grades.csv").read_text(encoding="utf-8").splitlines()[1:]
    return {posting for query, posting, _ in (line.split(",") for line in lines) if query in wanted}


def choose_postings(rows: dict[str, dict[str, Any]], judged: set[str]) -> list[str]:
    """The judged ones, then round robin over occupations, the rarest first, until there are enough."""
    chosen = sorted(judged & rows.keys())
    by_occupation: dict[str, list[str]] = defaultdict(list)
    for posting_id in sorted(rows.keys() - judged, key=lambda posting_id: stable("posting", posting_id)):
        by_occupation[rows[posting_id]["occupation_name"] or ""].append(posting_id)
    groups = sorted(by_occupation.values(), key=lambda ids: (len(ids), ids[0]))
    for round_ in zip_longest(*groups):
        chosen += [posting_id for posting_id in round_ if posting_id is not None]
    return sorted(chosen[:POSTINGS], key=lambda posting_id: stable("order", posting_id))


def millis(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def posting(row: dict[str, Any]) -> Posting:
    """The row as a producer would publish it, open at REFERENCE_MS: at a point of its own run drawn from its id."""
    open_for = min(max(millis(row["close_at"]) - millis(row["open_at"]), 2 * SHORTEST_LEFT_MS), LONGEST_OPEN_MS)
    elapsed = stable("elapsed", row["id"]) % (open_for - SHORTEST_LEFT_MS)
    if len(row["text"].encode()) > MAX_DESCRIPTION_BYTES:
        raise SystemExit(f"{row['id']}: text of {len(row['text'])} characters is past the wire's bound")
    return Posting(
        posting_id=row["id"],
        version=1,
        title=row["title"],
        company=row["agency"],
        description=row["text"],
        location=location(row["location"]),
        grade=row["grade"],
        category=row["occupation_name"],
        posted_at=REFERENCE_MS - elapsed,
        expires_at=REFERENCE_MS - elapsed + open_for,
        source="usajobs",
        url=row["url"],
    )


def location(text: str | None) -> Location | None:
    if text is None:
        return None
    return places.resolve(text) or Location(text=text)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    here = Path(__file__).resolve().parent.parent
    parser.add_argument("--data", type=Path, default=here.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=here / "infra" / "demo" / "data")
    given = parser.parse_args()
    queries = choose_queries(given.data / "relevance_judgements")
    judged = judged_by(given.data / "relevance_judgements", queries)
    rows = distinct(given.data / "usajobs_postings", judged)
    ids = choose_postings(rows, judged)
    given.out.mkdir(parents=True, exist_ok=True)
    lines = "".join(jsonl.dumps(posting(rows[posting_id])) + "\n" for posting_id in ids)
    # No time and no file name in the gzip header: the same input makes the same bytes.
    with (given.out / "postings.jsonl.gz").open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as out:
        out.write(lines.encode())
    (given.out / "queries.jsonl").write_text(
        "".join(
            json.dumps({"query_id": q["query_id"], "text": q["query"]}, ensure_ascii=False) + "\n" for q in queries
        ),
        encoding="utf-8",
    )
    found = len(judged & set(ids))
    (given.out / "SOURCE.txt").write_text(
        SOURCE.format(postings=len(ids), queries=len(queries), judged=found), encoding="utf-8"
    )
    placed = sum(1 for posting_id in ids if (place := posting(rows[posting_id]).location) and place.region)
    print(
        f"{len(ids)} postings ({placed} with a resolved place), {len(queries)} queries, {found} of {len(judged)} judged"
    )


if __name__ == "__main__":
    main()
