"""The score cache: what a scorer said of a (query, posting version) pair, kept in Redis for a while.

Key: the scorer's model id (weights, template and tokenizer hashes in it), everything of the query that a pair's score
is computed from, tenant, posting id, version, revision. Not filters or pages: they do not change a pair's score.
Value: a check sum over key and rest, then p and its parts, little-endian doubles in the scorer's own order. Anything
else found there is a miss, another pair's value included: no fault of Redis or of what lies before it makes a score.
Kept for `ttl_s` less a random part of up to JITTER, so that what was scored together does not expire together.
Stale while revalidated: where the caller allows it, a pair without a score gets that of an older revision of the same
version (the posting's words are the same, their vector or summary was made anew), by the same model, for the same
query and tenant. The caller says so in its answer and sees to it that the score is computed anew. Nothing else is ever
served stale: another version has another key, and no other key is asked for.
Identical pairs in flight in this process are scored once. While Redis is away, or slow several times running, scores
are computed without it; each answer says so and it is counted.
"""

from __future__ import annotations

import hashlib
import math
import random
import struct
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Counter

from penstock.infra.telemetry import DEGRADED
from penstock.ranker.errors import RedisAway
from penstock.ranker.redis_link import RETRY_AFTER_S, RedisLink, read_values
from penstock.ranker.single_flight import SingleFlight

Row = tuple[float, ...]  # p, then the parts
T = TypeVar("T")

STALE = Counter("penstock_stale_scores_total", "Scores of an older revision, served where load let nothing else be")

OLDER = 4  # revisions that a stale score may be behind: enrichment makes one or two of a version
JITTER = 0.1  # of the time to live
SLOW_S = 0.1  # an answer of Redis that takes longer gains little over scoring
SLOW_RUN = 3  # slow answers running, until it is left alone for RETRY_AFTER_S
_SUM_BYTES = 4


@dataclass(frozen=True, slots=True)
class PairVersion:
    """One version of one posting."""

    tenant: str
    posting_id: str
    version: int
    revision: int


@dataclass(frozen=True, slots=True)
class Computed:
    """What the caller's compute gives back: a row an index, and which of them may be kept."""

    rows: NDArray[np.float64]  # [n, 1 + parts]: p, then the parts
    keep: NDArray[np.bool_]  # [n]: false where the posting read was not the version in the key


@dataclass(frozen=True, slots=True)
class Cached:
    rows: NDArray[np.float64]  # [n, 1 + parts], one a pair in order
    hits: int  # pairs not computed for this caller: from Redis, or from an identical request in flight
    degraded: tuple[str, ...]
    stale: tuple[tuple[int, int], ...] = ()  # position and revision of what is of an older revision than asked for


def pair_keys(prefix: str, model_id: str, query: bytes, pairs: Sequence[PairVersion]) -> list[str]:
    """Redis keys, one a pair. `query` is the identity of the query's side of the score."""
    base = hashlib.blake2b(digest_size=16)
    for part in (model_id.encode(), query):
        base.update(struct.pack("<Q", len(part)) + part)
    keys = []
    for pair in pairs:
        digest = base.copy()
        for text in (pair.tenant, pair.posting_id):
            encoded = text.encode()
            digest.update(struct.pack("<Q", len(encoded)) + encoded)
        digest.update(struct.pack("<qq", pair.version, pair.revision))
        keys.append(f"{prefix}:score:{digest.hexdigest()}")
    return keys


def written_row(key: str, row: Row) -> bytes:
    """As it stands in Redis under that key."""
    numbers = struct.pack(f"<{len(row)}d", *row)
    return _sum(key, numbers) + numbers


def read_row(key: str, value: bytes, width: int) -> Row | None:
    """What `written_row` wrote under that key; None for anything else."""
    if len(value) != _SUM_BYTES + 8 * width or value[:_SUM_BYTES] != _sum(key, value[_SUM_BYTES:]):
        return None
    row = struct.unpack_from(f"<{width}d", value, _SUM_BYTES)
    return row if all(map(math.isfinite, row)) and 0.0 <= row[0] <= 1.0 else None


def _sum(key: str, numbers: bytes) -> bytes:
    return zlib.crc32(numbers, zlib.crc32(key.encode())).to_bytes(_SUM_BYTES, "little")


class Patience:
    """Whether slow answers are still waited for. Pure under a clock in seconds."""

    def __init__(self) -> None:
        self._run = 0
        self._bypassed_until = float("-inf")
        self.slowest_s = 0.0  # of the run

    def waits(self, now_s: float) -> bool:
        return now_s >= self._bypassed_until

    def answered(self, now_s: float, took_s: float) -> None:
        """After a pause one more slow answer is enough for the next."""
        if took_s <= SLOW_S:
            self._run, self.slowest_s = 0, 0.0
            return
        self._run += 1
        self.slowest_s = max(self.slowest_s, took_s)
        if self._run >= SLOW_RUN:
            self._bypassed_until = now_s + RETRY_AFTER_S


class ScoreCache:
    """Safe to share between threads. Owns the flights; Redis keeps the rest for about `ttl_s` seconds.

    `clock` gives monotonic seconds, `chance` numbers in [0, 1).
    """

    def __init__(
        self,
        link: RedisLink,
        prefix: str,
        ttl_s: int,
        clock: Callable[[], float],
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._link = link
        self._prefix = prefix
        self._ttl_s = ttl_s
        self._clock = clock
        self._chance = chance
        self._patience = Patience()
        self._flights: dict[bool, SingleFlight[str, Row]] = {who: SingleFlight(clock) for who in (True, False)}
        self._lock = threading.Lock()
        self._asked = 0
        self._hits = 0

    def rows(
        self,
        model_id: str,
        width: int,
        query: bytes,
        pairs: Sequence[PairVersion],
        compute: Callable[[list[int]], Computed],
        timeout_s: float,
        interactive: bool = True,
        may_be_stale: bool = False,
    ) -> Cached:
        """A row of `width` numbers a pair. `compute` gets the positions nobody knows yet, each once.

        `may_be_stale`: what is known of an older revision of a pair is not computed, and is in `stale`.
        Interactive callers share each other's flights alone: none waits for what somebody computes without haste.
        Raises what `compute` raises, and TimeoutError when an identical request in flight is not done in time.
        """
        keys = pair_keys(self._prefix, model_id, query, pairs)
        position = {key: at for at, key in reversed(list(enumerate(keys)))}
        degraded: list[str] = []
        computed = 0

        def fill(wanted: list[str]) -> Mapping[str, Row]:
            nonlocal computed
            found = self._read(wanted, width, degraded)
            missing = [key for key in wanted if key not in found]
            computed += len(missing)
            if missing:
                fresh = compute([position[key] for key in missing])
                rows = {key: tuple(row) for key, row in zip(missing, fresh.rows.tolist(), strict=True)}
                self._write({key: rows[key] for key, keep in zip(missing, fresh.keep, strict=True) if keep}, degraded)
                found.update(rows)
            return found

        older: dict[str, tuple[Row, int]] = {}
        if may_be_stale:  # before any flight: whoever joins one gets what it asked for
            older = self._older(model_id, width, query, dict(zip(keys, pairs, strict=True)), degraded)
        shared = self._flights[interactive].get([key for key in keys if key not in older], fill, timeout_s)
        known = {key: row for key, (row, _) in older.items()} | shared.values
        with self._lock:
            self._asked += len(position)
            self._hits += len(position) - computed
        rows = np.array([known[key] for key in keys], dtype=np.float64).reshape(len(keys), width)
        stale = tuple((at, older[key][1]) for at, key in enumerate(keys) if key in older)
        STALE.inc(len(stale))
        return Cached(rows, len(position) - computed, tuple(dict.fromkeys(degraded)), stale)

    @property
    def hit_rate(self) -> float:
        """Pairs found over pairs asked since the process started; 0 before the first."""
        with self._lock:
            return self._hits / self._asked if self._asked else 0.0

    def _older(
        self, model_id: str, width: int, query: bytes, pairs: Mapping[str, PairVersion], degraded: list[str]
    ) -> dict[str, tuple[Row, int]]:
        """By the key of a pair that has no score: that of its newest older revision that has one, and which it is."""
        rivals: dict[str, tuple[str, int]] = {}  # key of an older revision: key of the pair, revision
        for key, pair in pairs.items():
            revisions = range(pair.revision - 1, max(pair.revision - OLDER, 0) - 1, -1)
            again = [replace(pair, revision=revision) for revision in revisions]
            names = pair_keys(self._prefix, model_id, query, again)
            rivals.update(zip(names, [(key, revision) for revision in revisions], strict=True))
        if not rivals:
            return {}
        found = self._read([*pairs, *rivals], width, degraded)
        older: dict[str, tuple[Row, int]] = {}
        for name, (key, revision) in rivals.items():  # of each pair the newest first
            if name in found and key not in found and key not in older:
                older[key] = found[name], revision
        return older

    def _read(self, keys: list[str], width: int, degraded: list[str]) -> dict[str, Row]:
        held = self._ask(lambda client: read_values(client, keys), degraded)
        if held is None:
            return {}
        found: dict[str, Row] = {}
        for key, value in zip(keys, held, strict=True):
            if value is None:
                continue
            row = read_row(key, value, width)
            if row is not None:
                found[key] = row
            else:  # not ours, or damaged: scored anew and overwritten
                DEGRADED.labels("ranker", "score cache: damaged value").inc()
        return found

    def _write(self, rows: Mapping[str, Row], degraded: list[str]) -> None:
        if rows:
            lives_ms = [round(1000 * self._ttl_s * (1 - JITTER * self._chance())) for _ in rows]
            self._ask(lambda client: _set_all(client, rows, lives_ms), degraded)

    def _ask(self, command: Callable[[Any], T], degraded: list[str]) -> T | None:
        """What Redis answers; None, counted and said, when it is away or slow."""
        began = self._clock()
        with self._lock:
            waits, slowest_s = self._patience.waits(began), self._patience.slowest_s
        if not waits:
            degraded.append(f"score cache: bypassed, Redis took {slowest_s * 1000:.0f} ms to answer")
            DEGRADED.labels("ranker", "score cache: slow").inc()
            return None
        try:
            answer = self._link.run(command)
        except RedisAway as error:
            degraded.append(f"score cache: {error}")
            DEGRADED.labels("ranker", "score cache").inc()
            return None
        now = self._clock()
        with self._lock:
            self._patience.answered(now, now - began)
        return answer


def _set_all(client: Any, rows: Mapping[str, Row], lives_ms: Sequence[int]) -> None:
    pipeline = client.pipeline(transaction=False)
    for (key, row), life_ms in zip(rows.items(), lives_ms, strict=True):
        pipeline.psetex(key, life_ms, written_row(key, row))
    pipeline.execute()
