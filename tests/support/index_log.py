"""A log in memory, as a retrieval shard reads it: `Source` and `Feed`, and a place for dead letters."""

import threading
import time

from penstock.retrieval.feed import LogInfo, LogUnavailable, Polled, Record
from penstock.schemas.events import IndexUpdate
from penstock.schemas.wire import codec


class IndexLog:
    """Partitions of records. `away` is a reason why nobody can reach it; `fault` is raised once by the next poll."""

    def __init__(self, partitions=2, log_id="cluster/topic"):
        self.log_id = log_id
        self.partitions = {number: [] for number in range(partitions)}
        self.changed = threading.Condition()
        self.away = ""
        self.quiet = ""  # what an open feed reports as its trouble
        self.fault = None
        self.opened = []  # the offsets each feed began with

    def publish(self, *records, partition=None):
        for record in records:
            id_ = record.posting_id if isinstance(record, IndexUpdate) else record.subscription_id
            raw = codec(type(record)).encode(record)
            self.append(raw, len(id_) % len(self.partitions) if partition is None else partition)

    def append(self, raw, partition=0, key=b"key"):
        with self.changed:
            records = self.partitions[partition]
            records.append(Record(partition, len(records), time.time_ns() // 1_000_000, key, raw))
            self.changed.notify_all()

    def describe(self):
        if self.away:
            raise LogUnavailable(self.away)
        return LogInfo(self.log_id, self.highs())

    def highs(self):
        return {number: len(records) for number, records in self.partitions.items()}

    def open(self, offsets):
        self.opened.append(dict(offsets))
        return _Feed(self, {number: offset or 0 for number, offset in offsets.items()})


class _Feed:
    def __init__(self, log, offsets):
        self.log = log
        self.next = offsets
        self.told = {}

    def poll(self, limit, timeout_s):
        with self.log.changed:
            self.log.changed.wait_for(self._something, timeout_s)
            if self.log.fault is not None:
                fault, self.log.fault = self.log.fault, None
                raise fault
            out = Polled()
            for number, records in self.log.partitions.items():
                taken = records[self.next[number] :][: limit - len(out.records)]
                out.records += taken
                self.next[number] += len(taken)
                if self.next[number] == len(records) and self.told.get(number) != len(records):
                    self.told[number] = out.ends[number] = len(records)
            return out

    def _something(self):
        return self.log.fault is not None or any(
            self.next[number] < len(records) or self.told.get(number) != len(records)
            for number, records in self.log.partitions.items()
        )

    def highs(self):
        return self.log.highs()

    def trouble(self):
        return self.log.quiet

    def close(self):
        pass


class LetterBox:
    def __init__(self):
        self.letters = []  # (record, error)
        self.outstanding = 0

    def send(self, record, error, failed_at):
        self.letters.append((record, error))

    def serve(self):
        pass

    def close(self, timeout_s):
        return self.outstanding
