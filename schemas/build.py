"""Writes `avro/*.avsc` from the record classes, and a new version into `history/` when a schema has changed.

python -m penstock.schemas.build            after any change to events.py, rpc.py or states.py
python -m penstock.schemas.build --check    exit 1 when something would be written
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from penstock.schemas import events, rpc, states
from penstock.schemas.records import avro_schema
from penstock.schemas.wire import fingerprint

HERE = Path(__file__).resolve().parent

EVENTS: tuple[type, ...] = (
    events.Posting,
    events.EnrichRequest,
    events.EnrichedPosting,
    events.IndexUpdate,
    events.SearchQuery,
    events.RankRequest,
    events.RankResult,
    events.Subscription,
    events.StandingQuery,
    events.Alert,
    events.Profile,
    events.Engagement,
    events.Recommendation,
    events.DeadLetter,
)
STATES: tuple[type, ...] = (
    states.PostingState,
    states.HeldSubscription,
    states.Subject,
    states.Candidate,
    states.PersonAlerts,
)
CALLS: tuple[type, ...] = tuple(
    dict.fromkeys(
        record
        for service in (rpc.Models, rpc.Retrieval, rpc.Ranker, rpc.EnrichWorkers)
        for method in vars(service).values()
        if isinstance(method, rpc.Method)
        for record in (method.request, method.reply)
        if record not in EVENTS
    )
)


def plan(root: Path = HERE) -> dict[Path, str]:
    """Every file that is missing or out of date, with the text it should have."""
    out: dict[Path, str] = {}
    for record in EVENTS + STATES + CALLS:
        schema = avro_schema(record)
        text = json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
        current = root / "avro" / f"{record.__name__}.avsc"
        if not current.exists() or current.read_text(encoding="utf-8") != text:
            out[current] = text
        folder = root / "history" / record.__name__
        versions = sorted(folder.glob("*.avsc"))
        newest = json.loads(versions[-1].read_text(encoding="utf-8")) if versions else None
        if newest is None or fingerprint(newest) != fingerprint(schema) or _defaults(newest) != _defaults(schema):
            out[folder / f"{len(versions) + 1:04d}.avsc"] = text
    return out


def _defaults(schema: object) -> object:
    """The schema without docs: what the fingerprint leaves out but evolution depends on."""
    if isinstance(schema, dict):
        return {key: _defaults(value) for key, value in schema.items() if key != "doc"}
    if isinstance(schema, list):
        return [_defaults(item) for item in schema]
    return schema


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when something is out of date")
    check: bool = parser.parse_args().check
    stale = plan()
    for path, text in stale.items():
        print(f"{'out of date' if check else 'wrote'}: {path.relative_to(HERE)}")
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
