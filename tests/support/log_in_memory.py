"""A topic in memory that keeps Kafka's promises to one consumer: the `Source` and `Sink` of unit tests."""

import threading
from collections import defaultdict

from penstock.schemas.kafka import Record


class Log:
    """Partitions of records; offsets are places in the list."""

    def __init__(self, partitions=1):
        self.name = "cluster/topic"
        self.partitions = {number: [] for number in range(partitions)}
        self.committed = {}
        self.changed = threading.Condition()

    def append(self, value, partition=0, key=None, timestamp_ms=0):
        with self.changed:
            records = self.partitions[partition]
            records.append(Record(partition, len(records), key, value, timestamp_ms))
            self.changed.notify_all()


class LogSource:
    """One consumer that owns every partition from its first poll on, until `rebalance_soon`."""

    def __init__(self, log, rebalance, *, from_committed=True):
        self.log = log
        self.callbacks = rebalance
        self.paused = False
        self.closed = False
        self.rebalance_soon = False
        self.next = None
        self._from = log.committed if from_committed else {}

    def poll(self, limit, timeout_s):
        if self.rebalance_soon:  # lose everything and get it back at the committed offsets, as when a broker restarts
            self.rebalance_soon = False
            self.callbacks.revoked(list(self.log.partitions))
            self.next = None
        if self.next is None:
            self.callbacks.assigned(list(self.log.partitions))
            self.next = {partition: self._from.get(partition, 0) for partition in self.log.partitions}
        with self.log.changed:
            out = self._ready(limit)
            if not out:
                self.log.changed.wait(min(timeout_s, 0.01))
                out = self._ready(limit)
        return out

    def _ready(self, limit):
        out = []
        if not self.paused:
            for partition, records in self.log.partitions.items():
                taken = records[self.next[partition] :][: limit - len(out)]
                self.next[partition] += len(taken)
                out += taken
        return out

    def pause(self):
        self.paused = True

    def resume(self):
        self.paused = False

    def seek(self, positions):
        if self.next is None:
            return False
        self.next.update({partition: offset or 0 for partition, offset in positions.items()})
        return True

    def commit(self, positions, *, wait=False):
        self.log.committed.update(positions)

    def log_name(self):
        return self.log.name

    def ends(self):
        return {partition: len(records) for partition, records in self.log.partitions.items()}

    def lag(self):
        return sum(
            len(records) - (self.next or {}).get(partition, 0) for partition, records in self.log.partitions.items()
        )

    def close(self):
        self.closed = True


class LogSink:
    """Delivers what was sent when served. `fail` says what goes wrong with a message (None: nothing)."""

    def __init__(self, fail=lambda topic, value: None):
        self.sent = defaultdict(list)
        self._fail = fail
        self._lock = threading.Lock()
        self._waiting = []

    def send(self, topic, key, value, delivered):
        with self._lock:
            self._waiting.append((topic, key, value, delivered))

    def serve(self):
        with self._lock:
            batch, self._waiting = self._waiting, []
        for topic, key, value, delivered in batch:
            error = self._fail(topic, value)
            if error is None:
                self.sent[topic].append((key, value))
            delivered(error)

    def flush(self, timeout_s):
        self.serve()
        return len(self._waiting)
