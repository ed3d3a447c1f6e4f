"""Waits until the index is what the oracle says, then gives the verdict of a whole second look."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from penstock.infra.demo.accounting import Accounting, Oracle, compare, matches
from penstock.infra.demo.replay import Replay
from penstock.infra.demo.watch import Watch
from penstock.schemas.rpc import Row

LOOK_EVERY_S = 0.2
EXPIRIES_AHEAD_MS = 15_000  # expiries this soon after the last event are waited for


@dataclass(frozen=True, slots=True)
class Settled:
    """The verdict, and the rows it was given on, those of the probes apart."""

    accounting: Accounting
    rows: Mapping[str, Row]


class NeverAnswered(Exception):
    """Retrieval gave no rows to judge by."""


def settle(
    done: Replay,
    watch: Watch,
    *,
    patience_s: float,
    tell: Callable[[], None],
    clock: Callable[[], int],
) -> Settled:
    """Wait while things get better: until nothing is lost or wrong, or `patience_s` seconds bring no progress.

    The verdict comes from reading every id again at one time, so that a row which was right and turned wrong is seen.
    Raises NeverAnswered when retrieval did not answer at all in that time.
    """
    oracle = done.oracle
    due = oracle.last_expiry((done.last_ms or clock()) + EXPIRIES_AHEAD_MS) or 0
    open_ids = set(oracle.expected(clock()))
    best, patient_until = _missing(open_ids, oracle, watch), time.monotonic() + patience_s
    last: Settled | None = None
    while True:
        now = clock()
        expected = oracle.expected(now)
        rows = watch.rows(open_ids)
        if rows is not None:
            open_ids = {
                posting_id for posting_id in open_ids if not matches(expected[posting_id], rows.get(posting_id))
            }
        missing = _missing(open_ids, oracle, watch)
        if missing < best or now < due:
            best, patient_until = min(best, missing), time.monotonic() + patience_s
        given_up = time.monotonic() > patient_until
        if (missing == 0 and now >= due) or given_up:
            last = _verdict(done, watch, clock) or last
            if last is not None and (last.accounting.clean or given_up):
                return last
            if given_up:
                raise NeverAnswered(f"retrieval did not answer for {patience_s:.0f} s: {watch.seen().trouble}")
            open_ids = set(oracle.expected(now))
        tell()
        time.sleep(LOOK_EVERY_S)


def _missing(open_ids: set[str], oracle: Oracle, watch: Watch) -> int:
    """Ids that are not yet as they must be, and refused records whose letters have not come."""
    refused = oracle.refused()
    refused.subtract(letter.raw for letter in watch.letters())
    return len(open_ids) + sum(count for count in refused.values() if count > 0)


def _verdict(done: Replay, watch: Watch, clock: Callable[[], int]) -> Settled | None:
    """The comparison of everything at one time; None while retrieval does not answer."""
    now = clock()
    expected = done.oracle.expected(now)
    rows = watch.rows(expected)
    if rows is None:
        return None
    # A posting that falls due between this clock and the shard's is found wrong, and the caller looks again.
    accounting = compare(
        done.published,
        expected,
        rows,
        done.oracle.refused(),
        done.oracle.usable(),
        watch.letters(),
        uncounted=done.probes,
    )
    return Settled(accounting, {posting_id: row for posting_id, row in rows.items() if posting_id not in done.probes})
