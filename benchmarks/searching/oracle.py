"""What a scan must answer: float64 products of every row, the best rescored by math.fsum. Shares no code with it."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from benchmarks.searching.vectors import Corpus
from penstock.retrieval.search.scan import Ask, Best

NEAR = 1e-9  # a float64 product of unit vectors is nearer to the exact one by far


def mismatches(corpus: Corpus, asks: list[Ask], found: list[Best]) -> int:
    """Places of the answers whose row or score is not the oracle's."""
    dense = np.stack([ask.query.dense for ask in asks]).astype(np.float64)
    lexical = np.zeros((len(asks), corpus.lexical_queries.shape[1]))
    for line, ask in zip(lexical, asks, strict=True):
        line[ask.query.terms] = ask.query.weights
    used = np.flatnonzero(lexical.any(axis=0))
    scores = np.empty((len(asks), corpus.count))
    for page in corpus.pages:
        for start in range(0, min(page.rows, corpus.count - page.first), 8_192):
            end = min(start + 8_192, corpus.count - page.first)
            where = slice(page.first + start, page.first + end)
            scores[:, where] = dense @ page.dense[start:end].double().numpy().T
            scores[:, where] += lexical[:, used] @ page.sketch.numpy()[start:end, used].astype(np.float64).T
    wrong = 0
    for ask, best, line in zip(asks, found, scores, strict=True):
        passes = _passes(corpus, ask)
        rows = np.flatnonzero(passes)
        k = min(ask.k, len(rows))
        if not k:
            wrong += len(best.rows)
            continue
        kth = np.partition(line[rows], len(rows) - k)[len(rows) - k]
        near = rows[line[rows] >= kth - NEAR * max(1.0, abs(kth))]
        wanted = sorted(_exact(corpus, int(row), ask) for row in near)[:k]
        got = zip((-(best.dense + best.lexical)).tolist(), best.rows.tolist(), strict=True)
        wrong += abs(len(best.rows) - k)
        wrong += sum((score, slot) != (each[0], each[2]) for (score, slot), each in zip(got, wanted, strict=False))
    return wrong


def _passes(corpus: Corpus, ask: Ask) -> npt.NDArray[np.bool_]:
    if isinstance(ask.passing, tuple):
        return np.concatenate(ask.passing)[: corpus.count]
    passes = np.zeros(corpus.count, np.bool_)
    passes[ask.passing] = True
    return passes


def _exact(corpus: Corpus, slot: int, ask: Ask) -> tuple[float, int, int]:
    """(minus the score, ties, slot): sorts as the total order does."""
    page = corpus.pages[slot // corpus.pages[0].rows]
    row = slot - page.first
    by_dense = math.fsum(page.dense[row].double().numpy() * ask.query.dense.astype(np.float64))
    by_term = math.fsum(page.sketch.numpy()[row, ask.query.terms] * ask.query.weights.astype(np.float64))
    return -(by_dense + by_term), int(page.ties[row]), slot
