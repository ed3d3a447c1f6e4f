"""What a shard can hold: postings from index.update.v1, and standing queries from alerts.query.v1."""

from __future__ import annotations

from prometheus_client import Gauge

from penstock.infra.settings import Settings
from penstock.retrieval.device.backend import Backend, choose
from penstock.retrieval.encoder.shipped import SHIPPED_SPACE
from penstock.retrieval.follower import DeadLetter, Follower, Lag
from penstock.retrieval.indexer import Indexer
from penstock.retrieval.lexicon import Lexicon
from penstock.retrieval.percolate.snapshot import STANDING
from penstock.retrieval.percolate.store import StandingCounts, StandingQueries
from penstock.retrieval.shard import Kind
from penstock.retrieval.store.records import StoreCounts
from penstock.retrieval.store.slabs import POSTINGS
from penstock.retrieval.store.store import Store
from penstock.schemas import topics
from penstock.schemas.events import IndexUpdate, StandingQuery
from penstock.schemas.framing import topic_codec

EMBEDDED = "embedded"  # settings.models.encoder: the shipped space

ROWS = Gauge("penstock_index_rows", "Live postings of this shard")
TOMBSTONES = Gauge("penstock_index_tombstones", "Ids whose deletion or expiry this shard remembers")
DEAD_ROWS = Gauge("penstock_index_dead_rows", "Rows that the newest epoch does not show, held for older readers")
OCCUPANCY = Gauge("penstock_index_occupancy_ratio", "Live postings over the rows there is room for")
EPOCH = Gauge("penstock_index_epoch", "The newest epoch of this shard's postings")
LAG_SECONDS = Gauge("penstock_index_lag_seconds", "How far this shard is behind index.update.v1")
LAG_OFFSETS = Gauge("penstock_index_lag_offsets", "Index updates this shard has not read yet")
MEMORY_BYTES = Gauge("penstock_index_memory_bytes", "Memory of this shard's planes, columns and records")
DEVICE_BYTES = Gauge("penstock_index_device_bytes", "Memory of the device that mirrors this shard's postings")
STANDING_QUERIES = Gauge("penstock_standing_queries", "Standing queries that new postings of this shard meet")
STANDING_LAG_SECONDS = Gauge("penstock_standing_lag_seconds", "How far this shard is behind alerts.query.v1")
STANDING_LAG_OFFSETS = Gauge("penstock_standing_lag_offsets", "Standing queries this shard has not read yet")
STANDING_MEMORY_BYTES = Gauge("penstock_standing_memory_bytes", "Memory of this shard's standing queries")
STANDING_DEVICE_BYTES = Gauge("penstock_standing_device_bytes", "Memory of the device that holds standing queries")


def lexicon_of(settings: Settings) -> Lexicon:
    """What makes the words of postings and queries that have no vector."""
    return Lexicon(SHIPPED_SPACE if settings.models.encoder == EMBEDDED else None)


def backend_of(settings: Settings) -> Backend | None:
    """The device that both kinds share, and what may be taken of it. Raises DeviceUnavailable where `retrieval.device`
    cannot be had."""
    retrieval = settings.retrieval
    return choose(retrieval.device, retrieval.device_bytes, retrieval.device_planes)


def postings(settings: Settings, lexicon: Lexicon, backend: Backend | None) -> Kind[IndexUpdate, Store, StoreCounts]:
    codec = topic_codec(topics.INDEX, settings.kafka.schema_registry)

    def make(first_epoch: int) -> Store:
        return Store(
            capacity=settings.retrieval.initial_rows,
            memory_bytes=settings.retrieval.memory_bytes,
            first_epoch=first_epoch,
            tombstone_window_ms=settings.postings.tombstone_window_ms,
            hold_ms=settings.retrieval.hold_epochs_ms,
            backend=backend,
        )

    def follow(store: Store, dead_letter: DeadLetter) -> Indexer:
        return Indexer(store, codec, dead_letter, lexicon)

    def measure(store: Store, lag: Lag) -> StoreCounts:
        counts = store.counts()
        ROWS.set(counts.live)
        TOMBSTONES.set(counts.tombstones)
        DEAD_ROWS.set(counts.held_dead)
        OCCUPANCY.set(counts.live / max(counts.capacity, 1))
        EPOCH.set(counts.epoch)
        MEMORY_BYTES.set(counts.nbytes)
        DEVICE_BYTES.set(counts.bytes_device)
        LAG_OFFSETS.set(lag.offsets)
        LAG_SECONDS.set(lag.seconds)
        return counts

    return Kind(make, follow, POSTINGS, measure)


def standing_queries(
    settings: Settings, backend: Backend | None
) -> Kind[StandingQuery, StandingQueries, StandingCounts]:
    codec = topic_codec(topics.STANDING_QUERIES, settings.kafka.schema_registry)

    def make(first_epoch: int) -> StandingQueries:
        return StandingQueries(
            first_epoch=first_epoch,
            tombstone_window_ms=settings.postings.tombstone_window_ms,
            backend=backend,
        )

    def follow(store: StandingQueries, dead_letter: DeadLetter) -> Follower[StandingQuery]:
        return Follower(store, codec, dead_letter)

    def measure(store: StandingQueries, lag: Lag) -> StandingCounts:
        counts = store.counts()
        STANDING_QUERIES.set(counts.live)
        STANDING_MEMORY_BYTES.set(counts.nbytes)
        STANDING_DEVICE_BYTES.set(counts.bytes_device)
        STANDING_LAG_OFFSETS.set(lag.offsets)
        STANDING_LAG_SECONDS.set(lag.seconds)
        return counts

    return Kind(make, follow, STANDING, measure)
