"""Updates as the postings job publishes them: real postings with summary, item text and vector, made many.

The distinct postings' own records and vectors come again under other ids, each vector with noise of its own and some of
the sketch's terms dropped (`vectors.py`). Deterministic: `number` and `version` decide an update.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.searching.vectors import DENSE, DROPPED, ENCODED, NOISE, SKETCH, encoded_planes
from benchmarks.streaming.source import load
from penstock.jobs.operators.posting_state import attributes_of
from penstock.ranker.summarizer.extractive import ExtractiveSummarizer
from penstock.retrieval.encoder.shipped import SHIPPED_SPACE
from penstock.schemas.events import IndexOp, IndexUpdate, QueryVector, Vector
from penstock.schemas.validate import material_class, text_of

DAY_MS = 86_400_000
NOW_MS = 1_790_000_000_000
SUMMARY_TOKENS = 64
TOGETHER = 4_096  # vectors made at a time


class Updates:
    """The real records that all updates are made of. Owns nothing that changes."""

    def __init__(self, data: Path, build: Path, summary_tokens: int = SUMMARY_TOKENS) -> None:
        source = load(data)
        self.name = source.name
        self.dense, self.sketch, queries, lexical = encoded_planes(source, data, build)
        self.queries = [
            QueryVector(space_id=SHIPPED_SPACE, encoder_id="benchmark", dense=one.tobytes(), lexical=other.tobytes())
            for one, other in zip(queries.astype("<f4"), lexical.astype("<f4"), strict=True)
        ]
        summarizer = ExtractiveSummarizer(summary_tokens)
        step = max(1, len(source.postings) // ENCODED)
        self.records: list[IndexUpdate] = []
        for posting in source.postings[::step]:
            text, attributes = text_of(posting), attributes_of(posting)
            summary = summarizer.summarize(text)
            self.records.append(
                IndexUpdate(
                    posting_id="",
                    version=1,
                    op=IndexOp.UPSERT,
                    attributes=attributes,
                    summary=summary,
                    item_text=summarizer.item_text(text, summary),
                    material_class=material_class(attributes),
                    percolate=True,
                    produced_at=NOW_MS,
                )
            )

    def planes(self, first: int, count: int, version: int = 1) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int8]]:
        """Vectors of numbers `first` and on: bits of bfloat16 [count, DENSE], int8 [count, SKETCH]."""
        rng = np.random.default_rng((first, version))
        some = np.arange(first, first + count) % len(self.dense)
        noise = rng.standard_normal((count, DENSE), dtype=np.float32) * np.float32(NOISE / np.sqrt(DENSE))
        dense = self.dense[some] + noise
        dense /= np.linalg.norm(dense, axis=1, keepdims=True)
        kept = rng.random((count, SKETCH), dtype=np.float32) >= DROPPED
        halves: npt.NDArray[np.int16] = torch.from_numpy(dense).bfloat16().view(torch.int16).numpy()
        return halves, self.sketch[some] * kept

    def update(
        self,
        number: int,
        planes: tuple[npt.NDArray[np.int16], npt.NDArray[np.int8]],
        version: int = 1,
        *,
        posting_id: str = "",
        posted_at: int = NOW_MS,
        expires_at: int | None = None,
    ) -> IndexUpdate:
        """`planes`: of this one row, [DENSE] and [SKETCH]."""
        record = self.records[number % len(self.records)]
        assert record.attributes is not None
        dense, sketch = planes
        return replace(
            record,
            posting_id=posting_id or f"posting-{number}",
            version=version,
            attributes=replace(record.attributes, posted_at=posted_at),
            vector=Vector(
                space_id=SHIPPED_SPACE, encoder_id="benchmark", dense=dense.tobytes(), sketch=sketch.tobytes()
            ),
            produced_at=posted_at,
            expires_at=expires_at,
        )

    def batches(self, count: int, batch: int, now_ms: int = NOW_MS) -> Iterator[list[IndexUpdate]]:
        """Numbers 0 to `count` in batches, posted over four weeks, none expired at `now_ms`."""
        for start in range(0, count, TOGETHER):
            size = min(TOGETHER, count - start)
            dense, sketch = self.planes(start, size)
            for begin in range(0, size, batch):
                yield [
                    self.update(
                        start + one,
                        (dense[one], sketch[one]),
                        posted_at=now_ms - ((start + one) * 7_919 % 28) * DAY_MS,
                        expires_at=now_ms + 60 * DAY_MS,
                    )
                    for one in range(begin, min(begin + batch, size))
                ]
