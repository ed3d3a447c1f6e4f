"""The lexical sketch: a signed hash of weighted terms, so that one inner product also counts exact words.

A posting's plane is int8 [1024]: each of its heaviest terms adds sign * SCALE * tf * sqrt(idf) at the term's slot,
rounded and clipped to [-127, 127]; tf is BM25's saturated count (Robertson and Walker 1994) with title and attributes
counted `HEAD_COUNT` times. A query's plane is float32 [1024]: each distinct term adds
sign * weight * sqrt(idf) / (SCALE * sqrt(norm)), norm the Euclidean length of the query's idf. A shared term thus adds
weight * tf * idf / sqrt(norm), and collisions of other terms add noise of either sign. Splitting idf between the two
sides halves that noise's range against keeping it on one, and `weight`, fitted by training/posting_encoder.py on the
train split, makes the sum with the dense product a hybrid score.

Slot, sign and idf bucket come from one stable 64-bit hash of the term: the same in every process.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from penstock.retrieval.encoder.planes import Floats, to_int8
from penstock.retrieval.encoder.template import attribute_text
from penstock.schemas.events import PostingText
from penstock.schemas.text import stable_hash, term, words

SKETCH_ID = "lex1"  # slots, signs and scale: sketches with another id are not comparable
WIDTH = 1024
SCALE = 16.0  # tf * sqrt(idf) stays below 7.1 for a corpus of ten thousand postings
K1 = 1.2
B = 0.75
HEAD_COUNT = 3
HEAVIEST = 64  # terms kept of a posting
IDF_BUCKETS = 1 << 17
LINES_REMEMBERED = 8_192
LONGEST_REMEMBERED = 500  # characters
IDF_STEP = 1 / 16  # of the stored uint8


@dataclass(frozen=True, slots=True)
class SketchParameters:
    """What was fitted. `idf` is uint8 [IDF_BUCKETS] in steps of IDF_STEP."""

    idf: npt.NDArray[np.uint8]
    mean_terms: float  # of a posting, with HEAD_COUNT applied
    weight: float  # of the lexical product in the hybrid score


class LexicalSketch:
    """Postings to int8 planes, queries to float32 planes. Thread-safe; its only state are bounded caches."""

    def __init__(self, parameters: SketchParameters) -> None:
        if parameters.idf.shape != (IDF_BUCKETS,):
            raise ValueError(f"idf table: got shape {parameters.idf.shape}, expected [{IDF_BUCKETS}]")
        self.parameters = parameters
        self._entry = functools.lru_cache(maxsize=131_072)(self._look_up)
        self._remembered = functools.lru_cache(maxsize=LINES_REMEMBERED)(self._keys)

    def posting(self, posting: PostingText) -> npt.NDArray[np.int8]:
        """The posting's plane, int8 [WIDTH]."""
        # No word crosses a line's end, and half of the lines of real postings stand in another posting too.
        merged = Counter(chain.from_iterable(map(self._line, posting.description.split("\n"))))
        for key in self._keys(attribute_text(posting)):
            merged[key] += HEAD_COUNT
        if not merged:
            return np.zeros(WIDTH, dtype=np.int8)
        total = merged.total()
        hashes = np.fromiter(merged.keys(), dtype=np.uint64, count=len(merged))
        count = np.fromiter(merged.values(), dtype=np.float32, count=len(merged))
        idf = self._idf(hashes)
        tf = count * (K1 + 1) / (count + K1 * (1 - B + B * total / self.parameters.mean_terms))
        if len(merged) > HEAVIEST:
            kept = np.lexsort((hashes, -tf * idf))[:HEAVIEST]  # ties by hash: independent of the text's order
            hashes, tf, idf = hashes[kept], tf[kept], idf[kept]
        return to_int8(SCALE * _scatter(hashes, tf * np.sqrt(idf)))

    def _line(self, line: str) -> tuple[int, ...]:
        return (self._remembered if len(line) <= LONGEST_REMEMBERED else self._keys)(line)

    def _keys(self, text: str) -> tuple[int, ...]:
        """The terms' hashes in order, stop words left out."""
        return tuple(key for key in map(self._entry, words(text)) if key is not None)

    def query(self, text: str) -> Floats:
        """The query's plane, float32 [WIDTH]; all zero when the text has no terms."""
        distinct = sorted({key for word in words(text) if (key := self._entry(word)) is not None})
        if not distinct:
            return np.zeros(WIDTH, dtype=np.float32)
        hashes = np.asarray(distinct, dtype=np.uint64)
        idf = self._idf(hashes)
        norm = max(float(np.linalg.norm(idf)), 1e-6)
        plane: Floats = _scatter(hashes, np.sqrt(idf)) * np.float32(self.parameters.weight / (SCALE * norm**0.5))
        return plane

    def _idf(self, hashes: npt.NDArray[np.uint64]) -> Floats:
        return self.parameters.idf[idf_bucket(hashes)].astype(np.float32) * np.float32(IDF_STEP)

    @staticmethod
    def _look_up(word: str) -> int | None:
        found = term(word)
        return None if found is None else stable_hash(found)


def idf_bucket(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Where a term's idf is kept, int64 in [0, IDF_BUCKETS). Terms that share a bucket share the commoner one's idf."""
    return ((hashes >> np.uint64(20)) & np.uint64(IDF_BUCKETS - 1)).astype(np.int64)


def _scatter(hashes: npt.NDArray[np.uint64], values: Floats) -> Floats:
    """Values added, with the terms' signs, at the terms' slots: float32 [WIDTH]."""
    slots = (hashes & np.uint64(WIDTH - 1)).astype(np.int64)
    signs = np.where(hashes >> np.uint64(63), -1.0, 1.0)
    return np.bincount(slots, weights=values * signs, minlength=WIDTH).astype(np.float32)
