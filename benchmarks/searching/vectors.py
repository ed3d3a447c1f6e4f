"""Planes and queries for the benchmark: the project's own encoder over real postings, made many, or uniform noise.

The distinct postings' vectors are used again with noise of NOISE of their length and a tenth of the sketch's terms
dropped, until there are as many rows as wanted. Queries are people's own words where the data folder has them.
Deterministic. Encoded once, then kept in build/.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.streaming.source import Source, load
from penstock.retrieval.encoder.embedded import EmbeddedEncoder
from penstock.retrieval.search.scan import Ask, Passing
from penstock.retrieval.store.page import PAGE_ROWS, Page, make_page
from penstock.retrieval.store.planes import QueryPlanes
from penstock.schemas.events import PostingText

DENSE, SKETCH = 384, 1024
NOISE = 0.25
DROPPED = 0.1
QUERIES = 64
ENCODED = 4_000  # distinct postings that are encoded


@dataclass(frozen=True, slots=True)
class Corpus:
    """`count` rows in pages as the store has them, and queries: float32 [QUERIES, DENSE] and [QUERIES, SKETCH]."""

    name: str
    count: int
    pages: tuple[Page, ...]
    dense_queries: npt.NDArray[np.float32]
    lexical_queries: npt.NDArray[np.float32]

    @property
    def everything(self) -> Passing:
        return self.masks(np.ones(self.count, np.bool_))

    def masks(self, passes: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.bool_], ...]:
        """bool [count] as the scan takes it: one mask a page."""
        whole = np.zeros(len(self.pages) * self.pages[0].rows, np.bool_)
        whole[: self.count] = passes
        return tuple(np.ascontiguousarray(each) for each in whole.reshape(len(self.pages), -1))

    def query(self, number: int, lexical: bool) -> QueryPlanes:
        weights = self.lexical_queries[number] * np.float32(lexical)
        terms = np.flatnonzero(weights)
        return QueryPlanes(self.dense_queries[number], terms, weights[terms])

    def asks(self, batch: int, k: int, passing: list[Passing], *, lexical: bool = False) -> list[Ask]:
        """The first `batch` queries; `passing`: of each, in turn."""
        return [Ask(self.query(one, lexical), passing[one % len(passing)], k) for one in range(batch)]

    def dense(self) -> torch.Tensor:
        """bfloat16 [count, DENSE], a copy in one piece, as peers want it."""
        return torch.cat([page.dense for page in self.pages])[: self.count].contiguous()

    def sketch(self) -> torch.Tensor:
        return torch.cat([page.sketch for page in self.pages])[: self.count].contiguous()


def encoded(data: Path, count: int, build: Path) -> Corpus:
    """Real postings by the shipped encoder, `count` rows of them."""
    source = load(data)
    dense, sketch, queries, lexical = encoded_planes(source, data, build)
    rng = np.random.default_rng(5)

    def parts() -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.int8]]]:
        for start in range(0, count, PAGE_ROWS):
            some = np.arange(start, min(start + PAGE_ROWS, count)) % len(dense)
            noise = rng.standard_normal((len(some), DENSE), dtype=np.float32) * np.float32(NOISE / np.sqrt(DENSE))
            kept = rng.random((len(some), SKETCH), dtype=np.float32) >= DROPPED
            yield dense[some] + noise, sketch[some] * kept

    return _corpus(source.name, count, parts(), queries, lexical)


def uniform(count: int) -> Corpus:
    """Values between -1 and 1, 64 terms a row: no structure that a scan could profit from."""
    rng = np.random.default_rng(6)

    def parts() -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.int8]]]:
        for start in range(0, count, PAGE_ROWS):
            rows = min(PAGE_ROWS, count - start)
            sketch = rng.integers(-80, 81, (rows, SKETCH), dtype=np.int8)
            sketch[rng.random((rows, SKETCH), dtype=np.float32) > 64 / SKETCH] = 0
            yield rng.random((rows, DENSE), dtype=np.float32) * 2 - 1, sketch

    queries = _unit(rng.random((QUERIES, DENSE), dtype=np.float32) * 2 - 1)
    lexical = np.zeros((QUERIES, SKETCH), np.float32)
    for line in lexical:
        line[rng.choice(SKETCH, 6, replace=False)] = rng.uniform(-0.002, 0.002, 6)
    return _corpus("uniform", count, parts(), queries, lexical)


def _corpus(
    name: str,
    count: int,
    parts: Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.int8]]],
    queries: npt.NDArray[np.float32],
    lexical: npt.NDArray[np.float32],
) -> Corpus:
    pages = []
    for number, (dense, sketch) in enumerate(parts):
        page = make_page(number * PAGE_ROWS, PAGE_ROWS, DENSE, SKETCH)
        rows = len(dense)
        page.dense[:rows] = torch.from_numpy(_unit(dense))
        page.sketch[:rows] = torch.from_numpy(sketch)
        for part, plane in enumerate((page.dense, page.sketch)):
            for start in range(0, rows, 8_192):
                some = slice(start, min(start + 8_192, rows))
                page.norms[some, part] = np.linalg.norm(plane[some].double().numpy(), axis=1) * (1 + 1e-12)
        page.ties[:] = np.random.default_rng(number).permutation(PAGE_ROWS).astype(np.uint64) + np.uint64(page.first)
        pages.append(page)
    return Corpus(name, count, tuple(pages), queries, lexical)


def encoded_planes(source: Source, data: Path, build: Path) -> tuple[npt.NDArray, ...]:  # type: ignore[type-arg]
    """dense, sketch of ENCODED distinct postings; dense, lexical of QUERIES queries."""
    encoder = EmbeddedEncoder()
    name = f"vectors-{encoder.encoder_id}-{source.name}".replace("/", "-").replace(" ", "-")
    kept = build / f"{name}.npz"
    if kept.exists():
        with np.load(kept) as arrays:
            return tuple(arrays[each] for each in ("dense", "sketch", "queries", "lexical"))
    step = max(1, len(source.postings) // ENCODED)
    texts = [
        PostingText(
            title=posting.title,
            company=posting.company,
            location=posting.location.text if posting.location else None,
            grade=posting.grade,
            category=posting.category,
            description=posting.description or "",
        )
        for posting in source.postings[::step]
    ]
    vectors = encoder.encode_postings(texts)
    halves = np.stack([np.frombuffer(each.dense, "<u2") for each in vectors])
    dense = (halves.astype(np.uint32) << 16).view(np.float32)
    sketch = np.stack([np.frombuffer(each.sketch or bytes(SKETCH), np.int8) for each in vectors])
    asked = encoder.encode_queries(_words(data, source))
    queries = np.stack([np.frombuffer(each.dense, "<f4") for each in asked])
    lexical = np.stack([np.frombuffer(each.lexical or bytes(4 * SKETCH), "<f4") for each in asked])
    build.mkdir(parents=True, exist_ok=True)
    np.savez(kept, dense=dense, sketch=sketch, queries=queries, lexical=lexical)
    return dense, sketch, queries, lexical


def _words(data: Path, source: Source) -> list[str]:
    judged = data / "relevance_judgements" / "queries.jsonl"
    if judged.exists():
        words = [json.loads(line)["query"] for line in judged.read_text(encoding="utf-8").splitlines()]
    else:
        words = [posting.title for posting in source.postings]
    return words[:: max(1, len(words) // QUERIES)][:QUERIES]


def _unit(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    unit: npt.NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit
