"""Percolation: postings a second against 10,000 and 100,000 standing queries, and whether every match is right.

Ours answers `StandingQueries.percolate` from records to matches with their reasons, in batches as the alerts job sends
them and as large as a call may be. The peer is torch: one float32 product of both planes, the thresholds, and every
filter as a mask that it is given for nothing; its answer is pairs. The oracle is a float64 product, math.fsum of what
is near a threshold or above, and each clause by a plain function of the posting.

    python -m benchmarks.searching.percolating --repeats 5
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.report import Report
from benchmarks.searching.standing import NOW_MS, Supply, supply
from benchmarks.searching.timing import interleaved
from benchmarks.searching.vectors import DENSE, SKETCH
from benchmarks.streaming.source import DATA
from penstock.infra.settings import AlertsSettings
from penstock.retrieval.percolate.service import MAX_UPDATES
from penstock.retrieval.percolate.store import StandingQueries
from penstock.schemas import text
from penstock.schemas.events import Filter, FilterKind, IndexUpdate, Missing, PayPeriod, StandingQuery
from penstock.schemas.rpc import Matches

SIZES = ((10_000, "10k", 5_000.0), (100_000, "100k", 500.0))  # standing queries, their name, target
JUDGED = 256  # postings whose matches are held against the oracle
CHANGED = 64  # standing queries changed at once, to see what a change costs
NEAR = 1e-9  # a float64 product of unit vectors is nearer to the exact one by far
_EARTH_KM = 6371.0088

Mask = npt.NDArray[np.bool_]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Arrays:
    """The same queries as plain arrays: float32 [n, DENSE] and [n, SKETCH], zeros and threshold 0 without a vector."""

    dense: torch.Tensor
    lexical: torch.Tensor
    thresholds: torch.Tensor  # float32 [n]


def percolate(report: Report, repeats: int, data: Path, build: Path) -> int:
    """Adds `percolate/10k_per_s` and `percolate/100k_per_s`. Returns how many matches are missing, wrong or too many.

    Both are of batches as the alerts job sends them, with torch on the threads that the caller gave it.
    """
    made = supply(data, build)
    return sum(_cell(made, size, report, repeats) for size in SIZES)


def _cell(made: Supply, size: tuple[int, str, float], report: Report, repeats: int) -> int:
    count, name, target = size
    usual = AlertsSettings().percolate_batch
    queries, updates = made.standing(count), made.updates(max(JUDGED, MAX_UPDATES))
    store = StandingQueries()
    for start in range(0, count, 5_000):
        applied = store.apply(queries[start : start + 5_000], now_ms=NOW_MS)
        assert not applied.refused
    arrays, masks = _arrays(queries), _passing(queries, updates)
    found: list[Matches] = []
    while len(found) < JUDGED:  # a reply holds the first postings whose matches fit
        found += store.percolate(updates[len(found) : JUDGED], now_ms=NOW_MS)[0].found
    wrong = _mismatches(queries, arrays, masks[:, :JUDGED], updates[:JUDGED], found)
    matches = sorted(len(one.matches) for one in found)
    for batch in (usual, MAX_UPDATES):
        some, mask = updates[:batch], torch.from_numpy(np.ascontiguousarray(masks[:, :batch]))
        served = len(store.percolate(some, now_ms=NOW_MS)[0].found)
        timed = interleaved(
            {
                "ours": partial(store.percolate, some, now_ms=NOW_MS),
                "torch float32": partial(_peer, arrays, some, mask),
            },
            repeats,
        )
        ours, peer = timed["ours"], timed["torch float32"]
        per_s = {"ours": served / ours.wall_ms * 1e3, "torch float32": batch / peer.wall_ms * 1e3}
        report.cells.append(
            {
                "cell": f"percolate/{name}/B{batch}",
                "queries": count,
                "mismatches": wrong,
                "passing": round(float(masks.mean()), 4),
                "matches_a_posting": {"median": matches[len(matches) // 2], "most": matches[-1]},
                "served": served,
                "per_s": {who: round(rate, 1) for who, rate in per_s.items()},
                "timed": {who: asdict(each) for who, each in timed.items()},
            }
        )
        shown = ", ".join(f"{who} {rate:.0f}/s ({timed[who].cpu_ms:.1f} ms CPU)" for who, rate in per_s.items())
        print(f"  percolate/{name}/B{batch}: {shown}; served {served}, wrong {wrong}", flush=True)
        if batch == usual:
            peers = {"torch float32": round(peer.wall_ms, 3)}
            report.add(f"percolate/{name}_per_s", per_s["ours"], "postings/s", target, "higher", peers)
    changed = queries[:: count // CHANGED][:CHANGED]
    change = interleaved({"change": partial(store.apply, changed, now_ms=NOW_MS)}, repeats)["change"]
    counts = store.counts()
    report.notes[f"percolate/{name}"] = {
        "bytes": counts.nbytes,
        "trees": counts.trees,
        "passing": round(float(masks.mean()), 4),
        "matches_a_posting": {"median": matches[len(matches) // 2], "most": matches[-1]},
        "ms_to_change": {CHANGED: round(change.wall_ms, 3)},
    }
    print(f"  {report.notes[f'percolate/{name}']}", flush=True)
    return wrong


# --- the peer ----------------------------------------------------------------------------------------------------


def _arrays(queries: Sequence[StandingQuery]) -> Arrays:
    dense, lexical = np.zeros((len(queries), DENSE), np.float32), np.zeros((len(queries), SKETCH), np.float32)
    for row, query in enumerate(queries):
        if query.vector is not None:
            dense[row] = np.frombuffer(query.vector.dense, "<f4")
            lexical[row] = np.frombuffer(query.vector.lexical or bytes(4 * SKETCH), "<f4")
    thresholds = torch.tensor([query.threshold for query in queries], dtype=torch.float32)
    return Arrays(torch.from_numpy(dense), torch.from_numpy(lexical).to_sparse_csr(), thresholds)


def _planes(updates: Sequence[IndexUpdate]) -> tuple[Doubles, Doubles]:
    """float64 [m, DENSE] and [m, SKETCH]."""
    halves = np.stack([np.frombuffer(one.vector.dense, "<u2") for one in updates if one.vector is not None])
    sketch = np.stack([np.frombuffer(one.vector.sketch or b"", np.int8) for one in updates if one.vector is not None])
    return (halves.astype(np.uint32) << 16).view(np.float32).astype(np.float64), sketch.astype(np.float64)


def _peer(arrays: Arrays, updates: Sequence[IndexUpdate], mask: torch.Tensor) -> torch.Tensor:
    dense, sketch = (torch.from_numpy(part).float() for part in _planes(updates))
    scores = torch.mm(arrays.lexical, sketch.T)
    scores.addmm_(arrays.dense, dense.T)
    return torch.ge(scores, arrays.thresholds[:, None]).logical_and_(mask).nonzero()


# --- the oracle --------------------------------------------------------------------------------------------------


def _mismatches(
    queries: Sequence[StandingQuery],
    arrays: Arrays,
    masks: Mask,
    updates: Sequence[IndexUpdate],
    found: Sequence[Matches],
) -> int:
    dense, sketch = _planes(updates)
    wrong = 0
    got = [
        {match.subscription_id: (match.match_score, match.dense, match.lexical) for match in one.matches}
        for one in found
    ]
    wanted: list[dict[str, tuple[float, float, float]]] = [{} for _ in found]
    lexical = arrays.lexical.to_dense().numpy()
    for start in range(0, len(queries), 5_000):
        some = slice(start, start + 5_000)
        scores = arrays.dense.numpy()[some].astype(np.float64) @ dense.T + lexical[some].astype(np.float64) @ sketch.T
        near = scores >= np.asarray([query.threshold for query in queries[some]])[:, None] - NEAR
        for row, column in np.argwhere(near & masks[some]).tolist():
            query = queries[start + row]
            by_dense = by_term = 0.0
            if query.vector is not None:
                by_dense = math.fsum(arrays.dense.numpy()[start + row].astype(np.float64) * dense[column])
                terms = np.flatnonzero(lexical[start + row])
                by_term = math.fsum(lexical[start + row, terms].astype(np.float64) * sketch[column, terms])
                if by_dense + by_term < query.threshold:
                    continue
            wanted[column][query.subscription_id] = (by_dense + by_term, by_dense, by_term)
    for mine, theirs in zip(got, wanted, strict=True):
        wrong += sum(mine.get(each) != theirs.get(each) for each in mine.keys() | theirs.keys())
    return wrong


def _passing(queries: Sequence[StandingQuery], updates: Sequence[IndexUpdate]) -> Mask:
    """bool [queries, m]: whose filters each posting passes."""
    rows: dict[Filter | None, Mask] = {None: np.ones(len(updates), np.bool_)}
    for query in queries:
        if query.filters is not None and query.filters not in rows:
            _tree(query.filters, False, updates, rows, {})
    whole = np.empty((len(queries), len(updates)), np.bool_)
    for row, query in enumerate(queries):
        whole[row] = rows[query.filters]
    return whole


def _tree(
    tree: Filter,
    negated: bool,
    updates: Sequence[IndexUpdate],
    rows: dict[Filter | None, Mask],
    turned: dict[Filter, Mask],
) -> Mask:
    known = turned if negated else rows
    if tree not in known:
        if tree.kind is FilterKind.NOT:
            known[tree] = _tree(tree.children[0], not negated, updates, rows, turned)
        elif tree.children:
            parts = [_tree(child, negated, updates, rows, turned) for child in tree.children]
            every = (tree.kind is FilterKind.ALL) != negated
            known[tree] = np.asarray((np.all if every else np.any)(parts, axis=0))
        else:
            known[tree] = np.asarray([_clause(tree, negated, update) for update in updates])
    return known[tree]


def _clause(tree: Filter, negated: bool, update: IndexUpdate) -> bool:
    value = _value(update, tree.field or "")
    if value is None or value in ((), "", "UNKNOWN"):
        return tree.missing is Missing.INCLUDE
    if tree.kind is FilterKind.RANGE:
        holds = not (tree.minimum is not None and value < tree.minimum) and not (
            tree.maximum is not None and value > tree.maximum
        )
    elif tree.kind is FilterKind.NEAR:
        assert tree.lat is not None and tree.lon is not None and tree.radius_km is not None
        holds = _km(tree.lat, tree.lon, *value) <= tree.radius_km
    else:
        wanted = {each.strip().casefold() for each in tree.values}
        if tree.field == "title.terms":
            wanted |= {found[0] for each in tree.values if len(found := text.terms(each)) == 1}
        mine = value if isinstance(value, tuple) else (value,)
        holds = any(each.strip().casefold() in wanted for each in mine)
    return bool(holds) != negated


def _value(update: IndexUpdate, field: str):  # type: ignore[no-untyped-def]  # as many types as there are fields
    attributes = update.attributes
    assert attributes is not None
    place, pay = attributes.location, attributes.salary
    if field == "posting_id":
        return update.posting_id
    if field == "expires_at":
        return update.expires_at
    if field == "title.terms":
        return tuple(text.terms(attributes.title))
    if field == "location":
        return None if place is None or place.lat is None or place.lon is None else (place.lat, place.lon)
    if field.startswith("location."):
        return getattr(place, field.removeprefix("location."), None)
    if field == "salary.currency":
        return pay.currency if pay else None
    if field.startswith("salary."):
        amount = None if pay is None else (pay.min if field.endswith("min") else pay.max)
        a_year = {PayPeriod.HOUR: 2080, PayPeriod.DAY: 260, PayPeriod.WEEK: 52, PayPeriod.MONTH: 12, PayPeriod.YEAR: 1}
        return None if amount is None or pay is None or pay.period not in a_year else amount * a_year[pay.period]
    return getattr(attributes, field)


def _km(lat: float, lon: float, north: float, east: float) -> float:
    here, there = math.radians(lat), math.radians(north)
    half = math.sin((there - here) / 2) ** 2
    half += math.cos(here) * math.cos(there) * math.sin(math.radians(east - lon) / 2) ** 2
    return 2 * _EARTH_KM * math.asin(min(1.0, math.sqrt(half)))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--build", type=Path, default=Path("build"))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    return 1 if percolate(Report("retrieval"), given.repeats, given.data, given.build) else 0


if __name__ == "__main__":
    raise SystemExit(main())
