"""A shard: a store, the loop that fills it from its log, and its snapshots. What it holds, its `Kind` says.

How a shard starts and lives:

    1. restore   the newest whole snapshot; damaged ones are set aside and named
    2. describe  ask the log who it is; a snapshot of another log or of other partitions is not used
    3. replay    from the snapshot's offsets; ready once everything that was in the log at the start is applied
    4. follow    poll, apply, publish an epoch at most every `publish_interval_ms`
    5. keep      a snapshot every `snapshot_interval_s` if anything changed, written beside the loop; one at the end

No trouble with Kafka ends the process: the loop says why it waits and tries again. `run` is one thread, which owns
everything but the store; `store`, `view` and `not_ready` may be read from any.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import structlog

from penstock.infra.settings import RetrievalSettings
from penstock.infra.telemetry import DEGRADED
from penstock.retrieval.feed import Feed, LogInfo, LogUnavailable, Polled, Record, Source
from penstock.retrieval.follower import DeadLetter, Follower, Lag
from penstock.retrieval.store.errors import OutOfRoom
from penstock.retrieval.store.snapshot import Covered, Format, Restored, Snapshots
from penstock.schemas.errors import WireError
from penstock.schemas.grpc_avro import NotReady

log = structlog.get_logger(role="retrieval")

BATCH = 500  # records applied at a time: about 70 ms
POLL_S = 0.1
EPOCHS_A_MS = (
    1_000  # first epochs of two lives lie so far apart; a shard holds some 3,000 (hold_epochs_ms at 20 ms each)
)
CHORES_EVERY_S = 1.0
AGAIN_AFTER_S = 1.0
STUCK_AFTER_S = 20.0
DELIVER_S = 5.0  # for dead letters at the end


class Held(Protocol):
    """A store as its shard sees it: changed in epochs by one thread, read by any."""

    @property
    def epoch(self) -> int: ...

    def reclaim(self, *, now_ms: int) -> int: ...

    def capture(self) -> Any: ...

    def restore(self, kept: Any) -> None: ...


R = TypeVar("R")
S = TypeVar("S", bound=Held)
C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class Kind(Generic[R, S, C]):
    """What a shard holds: how such a store is made, filled, kept and measured."""

    make: Callable[[int], S]  # an empty store whose first epoch this is
    follow: Callable[[S, DeadLetter], Follower[R]]
    form: Format[Any, Any]
    measure: Callable[[S, Lag], C]  # its counts, shown to Prometheus as well


@dataclass(frozen=True, slots=True)
class View(Generic[C]):
    """What the shard says of itself, renewed about once a second."""

    counts: C
    lag: Lag
    refused: int
    last_refusal: str
    snapshot: str
    snapshot_at_ms: int
    problems: tuple[str, ...]


class Letters(Protocol):
    """Where refused records go (`dead_letters.py`); used by the loop's thread alone."""

    @property
    def outstanding(self) -> int: ...

    def send(self, record: Record, error: Exception, failed_at: int) -> None: ...

    def serve(self) -> None: ...

    def close(self, timeout_s: float) -> int: ...


class Shard(Generic[R, S, C]):
    """`now_ms` gives epoch milliseconds, `clock` monotonic seconds."""

    def __init__(
        self,
        settings: RetrievalSettings,
        folder: Path,
        source: Source,
        dead_letters: Letters,
        kind: Kind[R, S, C],
        now_ms: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._source = source
        self._dead_letters = dead_letters
        self._kind = kind
        self._now_ms = now_ms
        self._clock = clock
        self._snapshots: Snapshots[Any, Any] = Snapshots(folder, kind.form, settings.snapshot_bytes_per_s)
        self._covered = Covered({}, "")
        self._problems: tuple[str, ...] = ()
        self._snapshot = ""
        self._snapshot_at_ms = 0
        self._snapshot_tried = clock()
        self._kept: tuple[int, dict[int, int]] = (-1, {})  # epoch and offsets of the newest snapshot
        self._writer: threading.Thread | None = None
        self._waiting = "restoring"  # why the loop cannot read; empty while it does
        self._beat = clock()
        self._chores_at = clock()
        self._published_at = clock()
        self.store = self._fresh()
        self._follower = kind.follow(self.store, dead_letters.send)
        self.view = self._look(None)

    def not_ready(self) -> str:
        """Why this shard is not fit to serve; empty when it is."""
        still = self._clock() - self._beat
        if still > STUCK_AFTER_S:
            return f"its loop has not moved for {still:.0f} s"
        if self._waiting:
            return self._waiting
        if not self._follower.caught_up:
            return f"replaying the log: {self.view.lag.offsets} records to go"
        return ""

    def may_answer(self) -> bool:
        """Whether the store has once been whole: stale answers are better than none, gaps are not."""
        return self._follower.caught_up

    def run(self, stop: threading.Event, became_ready: Callable[[], None] = lambda: None) -> None:
        """Until `stop` is set; then a last snapshot."""
        self._restore()
        told = False
        while not stop.is_set():
            try:
                feed = self._open()
            except LogUnavailable as error:
                self._wait(f"waiting for the log: {error}", stop)
                continue
            try:
                while not stop.is_set():
                    self.step(feed)
                    if not told and not self.not_ready():
                        told = True
                        became_ready()
            except Exception as error:
                log.error("loop starts again", error=f"{type(error).__name__}: {error}", exc_info=True)
                self._wait(f"starting again after {type(error).__name__}: {error}", stop)
            finally:
                feed.close()
        self._finish()

    def step(self, feed: Feed) -> None:
        """One turn of the loop: gather, apply, and about once a second the chores."""
        polled = self._gather(feed)
        now_ms = self._now_ms()
        if polled.records or polled.ends:
            epoch = self.store.epoch
            self._follower.take(polled, now_ms)
            if self.store.epoch != epoch:
                self._published_at = self._clock()
        self._beat = self._clock()
        self._waiting = feed.trouble()
        if self._beat - self._chores_at >= CHORES_EVERY_S:
            self._chores_at = self._beat
            self._dead_letters.serve()
            self.store.reclaim(now_ms=now_ms)
            if self._beat - self._snapshot_tried >= self._settings.snapshot_interval_s:
                self._snapshot_if_changed()
            self.view = self._look(feed)

    def _gather(self, feed: Feed) -> Polled:
        """What there is; once something is, what else comes until the next epoch may be published."""
        polled = feed.poll(BATCH, POLL_S)
        due = self._published_at + self._settings.publish_interval_ms / 1000
        while polled.records and len(polled.records) < BATCH and (left := due - self._clock()) > 0:
            more = feed.poll(BATCH - len(polled.records), left)
            polled.records += more.records
            polled.ends |= more.ends
        return polled

    # --- beginning and end ---------------------------------------------------------------------------------------

    def _fresh(self) -> S:
        """An empty store whose epochs come after every one this shard ever published, and far from those of a replica
        that began some milliseconds before: no reader mistakes one."""
        newest = max((int(path.stem.rpartition("-")[2]) for path in self._snapshots.paths()), default=0)
        return self._kind.make(max(EPOCHS_A_MS * self._now_ms(), newest))

    def _restore(self) -> None:
        began = self._clock()
        try:
            restored = self._snapshots.restore(self.store)
        except (WireError, OutOfRoom, OSError) as error:  # another release's records, a smaller bound, a bad disk
            why = "has records that this release refuses" if isinstance(error, WireError) else "cannot be used here"
            restored = Restored(None, None, (f"a snapshot {why}: {error}",))
            self.store = self._fresh()
            self._follower = self._kind.follow(self.store, self._dead_letters.send)
        for problem in restored.problems:
            DEGRADED.labels("retrieval", "snapshot corrupt").inc()
            log.error("snapshot not used", problem=problem)
        self._problems = restored.problems
        if restored.covered is not None:
            self._covered = restored.covered
            self._snapshot = restored.path.name if restored.path is not None else ""
            self._follower.offsets = dict(restored.covered.offsets)
            self._kept = (self.store.epoch, dict(restored.covered.offsets))
            log.info("restored", snapshot=self._snapshot, seconds=self._clock() - began)
        self._waiting = "waiting for the log"
        self.view = self._look(None)

    def _open(self) -> Feed:
        """A feed from where the store stands. Raises LogUnavailable."""
        self._beat = self._clock()
        info = self._source.describe()
        reason = self._mismatch(info)
        if reason:
            if self._covered.log_id:
                DEGRADED.labels("retrieval", "full replay").inc()
                log.warning("full replay", reason=reason)
                self._problems = (*self._problems, f"full replay: {reason}")[-8:]
            self.store = self._fresh()
            self._follower = self._kind.follow(self.store, self._dead_letters.send)
            self._covered = Covered({}, info.log_id)
        self._follower.begin(info.highs)
        feed = self._source.open({partition: self._follower.offsets.get(partition) for partition in info.highs})
        self._beat = self._clock()
        self._waiting = ""
        self.view = self._look(feed)
        return feed

    def _mismatch(self, info: LogInfo) -> str:
        """Why what the store holds does not belong to this log; empty when it does."""
        offsets = self._follower.offsets
        if info.log_id != self._covered.log_id:
            return f"the log is {info.log_id}, the store holds {self._covered.log_id or 'nothing'}"
        if offsets and set(offsets) != set(info.highs):
            return f"the partitions are {sorted(info.highs)}, the store holds {sorted(offsets)}"
        beyond = [partition for partition, offset in offsets.items() if offset > info.highs[partition]]
        return f"partitions {beyond} end before what the store holds" if beyond else ""

    def _wait(self, reason: str, stop: threading.Event) -> None:
        if reason != self._waiting:
            log.warning("not reading", reason=reason)
        DEGRADED.labels("retrieval", "not reading").inc()
        self._waiting = reason
        self._beat = self._clock()
        self.view = self._look(None)
        stop.wait(AGAIN_AFTER_S)

    def _finish(self) -> None:
        left = self._dead_letters.close(DELIVER_S)
        if self._writer is not None:
            self._writer.join()
        if left:
            log.error("no last snapshot: dead letters are undelivered, their records will be read again", letters=left)
        elif self._changed():
            self._write()

    # --- snapshots and the view ----------------------------------------------------------------------------------

    def _changed(self) -> bool:
        return bool(self._follower.offsets) and self._kept != (self.store.epoch, self._follower.offsets)

    def _snapshot_if_changed(self) -> None:
        busy = self._writer is not None and self._writer.is_alive()
        if busy or self._dead_letters.outstanding or not self._changed():
            return
        self._snapshot_tried = self._clock()
        self._write(in_background=True)

    def _write(self, *, in_background: bool = False) -> None:
        capture = self.store.capture()
        covered = Covered(dict(self._follower.offsets), self._covered.log_id)

        def write() -> None:
            try:
                path = self._snapshots.write(capture, covered, hurry=not in_background)
            except OSError as error:
                DEGRADED.labels("retrieval", "snapshot not written").inc()
                log.error("snapshot not written", error=str(error))
                return
            self._snapshot, self._snapshot_at_ms = path.name, self._now_ms()
            self._kept = (capture.epoch, dict(covered.offsets))

        if in_background:
            self._writer = threading.Thread(target=write, name="snapshot", daemon=True)
            self._writer.start()
        else:
            write()

    def _look(self, feed: Feed | None) -> View[C]:
        highs = feed.highs() if feed is not None else {}
        targets = self._follower.targets or {}
        known = {partition: max(highs.get(partition, 0), targets.get(partition, 0)) for partition in {*highs, *targets}}
        lag = self._follower.lag(known, self._now_ms())
        return View(
            counts=self._kind.measure(self.store, lag),
            lag=lag,
            refused=self._follower.refused,
            last_refusal=self._follower.last_refusal,
            snapshot=self._snapshot,
            snapshot_at_ms=self._snapshot_at_ms,
            problems=self._problems,
        )


def answering(shard: Shard[R, S, C], name: str) -> tuple[S, list[str]]:
    """The store, and what its answers lack. Raises NotReady: stale answers are better than none, gaps are not."""
    reason = shard.not_ready()
    if reason and not shard.may_answer():
        raise NotReady(f"{name}: {reason}")
    if reason:
        DEGRADED.labels("retrieval", "stale").inc()
    return shard.store, [f"stale: {reason}"] if reason else []
