"""Postings to enrichments: the vector from an encoder, summary and item text from a summariser.

Invariant: one posting that cannot be encoded or summarised lacks that part alone, is counted, and never fails its
batch. The models role and the enrichment workers both make enrichments here, so what they make is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import structlog

from penstock.infra.telemetry import DEGRADED, STAGE_SECONDS
from penstock.retrieval.encoder.planes import Floats, dense_floats
from penstock.schemas.events import Enrichment, PostingText, Vector

Encode = Callable[[Sequence[PostingText]], list[Vector]]

UNIT_TOLERANCE = 0.02  # bfloat16 keeps eight bits


class BadForward(Exception):
    """An encoder gave something that is no finite unit vector."""


class Summarizer(Protocol):
    """The ranker's summariser, as these roles see it (retrieval does not import the ranker)."""

    @property
    def summarizer_id(self) -> str: ...

    def summarize(self, posting: PostingText) -> str: ...

    def item_text(self, posting: PostingText, summary: str) -> str: ...


@dataclass(frozen=True, slots=True)
class Made:
    """One posting's enrichment. Without a vector: `error` says why it could not be encoded; none: it has no words."""

    enrichment: Enrichment
    error: Exception | None = None


def enrichments(encode: Encode, summarizer: Summarizer, postings: Sequence[PostingText], role: str) -> list[Made]:
    """One a posting, in order."""
    with STAGE_SECONDS.labels(role, "encode").time():
        vectors = each(encode, postings, "encode_posting", role)
    with STAGE_SECONDS.labels(role, "summarize").time():
        texts = each(lambda some: [_texts(summarizer, posting) for posting in some], postings, "summarize", role)
    out = []
    for vector, text in zip(vectors, texts, strict=True):
        summary, item = (None, None) if isinstance(text, Exception) else text
        error = vector if isinstance(vector, Exception) else None
        if error is None and not np.any(dense_floats(vector.dense)):
            DEGRADED.labels(role, "posting_without_words").inc()
            vector = None
        out.append(Made(Enrichment(vector=vector if error is None else None, summary=summary, item_text=item), error))
    return out


def check_unit(dense: Floats, what: str) -> None:
    """Raises BadForward unless `dense` [D] is finite and of unit length."""
    norm = float(np.linalg.norm(dense)) if np.isfinite(dense).all() else float("nan")
    if not abs(norm - 1.0) <= UNIT_TOLERANCE:
        raise BadForward(f"{what} has norm {norm}, expected 1: are the encoder's weights intact?")


def each(work: Callable[[list[Any]], list[Any]], items: Sequence[Any], what: str, role: str) -> list[Any]:
    """`work` on all items at once; if that fails, one by one, an exception for each at fault."""
    try:
        return work(list(items))
    except Exception:  # counted below, item by item
        out: list[Any] = []
        for item in items:
            try:
                out.extend(work([item]))
            except Exception as error:
                DEGRADED.labels(role, what).inc()
                structlog.get_logger(role=role).warning(
                    "item failed", what=what, error=repr(error), item=repr(item)[:200]
                )
                out.append(error)
        return out


def _texts(summarizer: Summarizer, posting: PostingText) -> tuple[str, str]:
    summary = summarizer.summarize(posting)
    return summary, summarizer.item_text(posting, summary)
