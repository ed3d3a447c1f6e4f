"""The ranker that the live rows drive: the role's desk, pipeline and scorers, on a filled index and feature store.

The index holds one tenant's postings, so there is one tenant. A search retrieves as many candidates as the language
model may read at most; an alert names ALERT_ITEMS postings. A query of another number is another text, with the vector
of its judged query: a place changes what the model reads, and what it finds in its cache, not what is retrieved.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.driving.asking import INSTANT, Words
from benchmarks.ranking.models import item_texts
from benchmarks.ranking.surroundings import TENANT, Surroundings, surroundings
from benchmarks.simulating.workload import ALERT_ITEMS, CEILING, CLASSES, KINDS
from benchmarks.streaming.source import load
from penstock.ranker.desk import make_desk
from penstock.ranker.engine import untrained
from penstock.ranker.server import SWITCH_S
from penstock.ranker.service import RankService
from penstock.schemas.events import Page, RankQuery, RankRequest

TEXTS = 4_000  # postings that the tokenizer is made of
END_S = 10.0


@dataclass(slots=True)
class LiveRanker:
    """One thread uses it. `asked` counts requests, so that each has an id of its own."""

    around: Surroundings
    words: Words
    asked: int = 0

    @contextmanager
    def desk(self, name: str) -> Iterator[RankService]:
        """A desk that has learnt nothing, on a score cache that is empty where the name is new."""
        around = self.around
        settings = around.settings.model_copy(update={"depth": CEILING})
        service, _ = make_desk(
            settings,
            around.both,
            models=around.models,
            retrieval=around.retrieval,
            shards=1,
            store=around.store,
            cache=around.cache(name),
            now_ms=self.now_ms,
            clock=time.monotonic,
        )
        service.start()
        gc.collect()
        gc.freeze()  # as the role does
        try:
            yield service
        finally:
            gc.unfreeze()
            service.close(END_S)

    def request(self, kind: int, query: int, deadline_ms: int) -> RankRequest:
        self.asked += 1
        base = self.around.queries[query % len(self.words.judged)]
        rows = len(self.around.versions)
        candidates = tuple(f"posting-{(query + at) % rows}" for at in range(ALERT_ITEMS)) if kind == INSTANT else None
        return RankRequest(
            request_id=f"live-{self.asked}",
            tenant=TENANT,
            class_=CLASSES[KINDS[kind]],
            deadline=deadline_ms,
            query=RankQuery(text=self.words.text(query), vector=base.vector),
            candidates=candidates,
            page=Page(size=ALERT_ITEMS if candidates else Page().size),
        )

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000


@contextmanager
def live_ranker(folder: Path, data: Path, build: Path, rows: int) -> Iterator[LiveRanker]:
    """`build`: where the postings' vectors are kept."""
    source = load(data)
    model = untrained.write(folder / "tiny", item_texts(source, TEXTS), untrained.TINY)
    sys.setswitchinterval(SWITCH_S)  # as the role does
    named = (posting.location.text for posting in source.postings if posting.location)
    places = [place for place in dict.fromkeys(named) if place]
    with surroundings(folder / "stack", data, build, model, 1, rows) as around:
        yield LiveRanker(around, Words([query.text for query in around.queries], places))
