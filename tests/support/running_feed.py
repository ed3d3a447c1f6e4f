"""The ranker's Kafka feed on a thread over a log in memory."""

import threading

from log_in_memory import LogSource

from penstock.ranker import policy
from penstock.ranker.request_feed import RequestFeed
from penstock.schemas import topics
from penstock.schemas.events import RankRequest, RankResult
from penstock.schemas.framing import topic_codec
from penstock.schemas.wire import codec

NOW = 1_000_000
LIMITS = policy.DepthLimits(250, 2_000)


class Running:
    """A request feed on a thread over a log."""

    def __init__(self, service, log, sink, people=8, registry=None, now_ms=lambda: NOW):
        self.log, self.sink, self.now_ms = log, sink, now_ms
        self.stop, self._opened = threading.Event(), threading.Event()
        self.feed = RequestFeed(
            service,
            lambda asked: policy.check_request(asked, LIMITS),
            self._open,
            sink,
            people,
            topic_codec(topics.RANK_REQUESTS, registry or {}),
            topic_codec(topics.RANK_RESULTS, registry or {}),
            now_ms=self.now_ms,
        )
        self.thread = threading.Thread(target=self.feed.run, args=(self.stop,))

    def _open(self, rebalance):
        self._source = LogSource(self.log, rebalance)
        self._opened.set()
        return self._source

    @property
    def source(self):
        assert self._opened.wait(20)
        return self._source

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join(20)
        assert not self.thread.is_alive()

    def results(self):
        return [codec(RankResult).decode(value) for _, value in self.sink.sent[topics.RANK_RESULTS.name]]


def ask(log, *requests, partition=0):
    for one in requests:
        log.append(codec(RankRequest).encode(one), partition, key=b"t/" + one.request_id.encode(), timestamp_ms=NOW)
