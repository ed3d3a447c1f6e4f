"""What the model predicts and the device is timed with: two models, and requests of stated lengths. torch-free.

Tokens and vectors are random, since neither decides how long a forward takes. Forwards are those that
ranker/engine/plan.py makes of the requests.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from penstock.ranker.engine.plan import Forward, Request, Text, Vectors, plan
from penstock.ranker.engine.untrained import DEVIATION, ModelShape

QWEN_0_6B = ModelShape(151_936, 1_024, 3_072, 28, 16, 8, 128)
PRUNED_375M = replace(QWEN_0_6B, intermediate_size=1_536, num_hidden_layers=20)  # half of the MLP, eight blocks fewer
MODELS = {"0.6B": QWEN_0_6B, "375M": PRUNED_375M}
BUDGET = 16_384  # tokens a forward: those of infra/compose's ranker-gpu


@dataclass(frozen=True, slots=True)
class Asked:
    """`queries` requests of one prefix and `items` items each; an embedded item is a vector and what closes it."""

    name: str
    prefix: int  # tokens
    item: int
    items: int
    queries: int = 1
    embedded: bool = False

    def requests(self, model: ModelShape, seed: int = 0) -> list[Request]:
        chance = np.random.default_rng(seed)

        def tokens(count: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
            return chance.integers(0, model.vocab_size, count, dtype=np.int32)

        def item() -> Text | Vectors:
            if not self.embedded:
                return Text(tokens(self.item))
            row = chance.standard_normal((1, model.hidden_size), dtype=np.float32) * np.float32(DEVIATION)
            return Vectors(row, tokens(self.item - 1))

        return [Request(tokens(self.prefix), tuple(item() for _ in range(self.items))) for _ in range(self.queries)]

    def forwards(self, model: ModelShape, seed: int = 0, budget: int = BUDGET) -> list[Forward]:
        return plan(self.requests(model, seed), budget, budget)

    def filling(self, budget: int = BUDGET) -> Asked:
        """As many requests as a forward holds, as under load."""
        tokens = self.queries * (self.prefix + self.items * self.item)
        return replace(self, queries=self.queries * max(1, budget // tokens))

    @property
    def scored(self) -> int:
        return self.items * self.queries


TEXT = Asked("text", 70, 150, 50)
PACKED = replace(TEXT.filling(), name="text_packed")
TEXT_900 = Asked("text_900", 60, 840, 50)
EMBEDDED = Asked("embedding_items", 60, 2, 50, queries=64, embedded=True)
FEW = Asked("text_10", 70, 150, 10)
EMBEDDED_ALONE = replace(EMBEDDED, name="embedding_items_alone", queries=1)
ALL = (PACKED, TEXT, FEW, TEXT_900, EMBEDDED, EMBEDDED_ALONE)
