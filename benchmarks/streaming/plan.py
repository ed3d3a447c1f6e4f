"""The events of one phase, the same in every process that asks: the producer sends them, the oracle judges by them.

`NEW`: postings that are new, one event each. `MIXED`: new ones with the demo's updates, deletes, expiries, repeats,
reordered, conflicting and broken records between them (infra/demo/plan.py).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Self

from benchmarks.streaming.source import Source
from penstock.infra.demo import plan as demo
from penstock.infra.demo.plan import Kind, PlannedEvent
from penstock.schemas.events import Posting
from penstock.schemas.wire import codec


class Mix(StrEnum):
    NEW = "new"
    MIXED = "mixed"


@dataclass(frozen=True, slots=True)
class Phase:
    """What one phase publishes. `rate` is events a second, 0: as fast as the broker takes them."""

    mark: str  # begins its ids
    mix: Mix
    rate: float
    count: int
    start_ms: int
    max_life_ms: int
    seed: int = 1

    def dumps(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> Self:
        given = json.loads(text)
        return cls(**given | {"mix": Mix(given["mix"])})

    def events(self, source: Source) -> Iterator[PlannedEvent]:
        """In the order of publishing. `NEW` is made as it is asked for: minutes of it need no memory."""
        stream = source.stream(self.mark, self.start_ms)
        if self.mix is Mix.NEW:
            return (_new(posting) for posting in itertools.islice(stream, self.count))
        return iter(
            demo.plan(
                list(itertools.islice(stream, self.count)),
                seed=self.seed,
                start_ms=self.start_ms,
                rate=self.rate,
                count=self.count,
                max_life_ms=self.max_life_ms,
                checked=False,
            )
        )


def _new(posting: Posting) -> PlannedEvent:
    return PlannedEvent(Kind.NEW, posting.posting_id, codec(Posting).encode(posting), posting)
