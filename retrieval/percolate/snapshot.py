"""Standing queries in a snapshot (retrieval/store/snapshot.py has the files): a part for each block, which a change
makes anew and nothing else alters, and tombstones in the snapshot itself. Either holds

fixed    int64 [n, 6]: body's length, known at, dense values, lexical width, terms, vector's number (-1: none)
bodies   n standing queries, framed Avro, their vectors left out
dense    float32, the dense values one after the other
terms    int32, and weights float32: the lexical values that are not zero
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from penstock.retrieval.percolate.blocks import Scored
from penstock.retrieval.percolate.entries import Entry
from penstock.retrieval.percolate.store import Capture
from penstock.retrieval.store.snapshot import Format, Part, Pieces, Sections
from penstock.schemas.events import QueryVector, StandingQuery
from penstock.schemas.wire import codec

Kept = tuple[StandingQuery, int]  # the record, and since when it is known (epoch ms)


class _Standing:
    """The format of `StandingQueries`."""

    def parts(self, capture: Capture) -> list[Part]:
        return [
            Part(f"{block.number:06d}-{block.built:020d}", {}, partial(_sections, block.entries, block.scored))
            for block in capture.blocks
        ]

    def sections(self, capture: Capture) -> tuple[Sections, dict[str, Any]]:
        return _sections(capture.tombstones, None)

    def kept(
        self, manifest: dict[str, Any], sections: Pieces, parts: Iterable[tuple[dict[str, Any], Pieces]]
    ) -> list[Kept]:
        return [one for about in ((manifest, sections), *parts) for one in _kept(*about)]


def _sections(entries: Sequence[Entry], scored: Scored | None) -> tuple[Sections, dict[str, Any]]:
    encode = codec(StandingQuery).encode_unbounded
    counts = np.diff(scored.starts.numpy()).tolist() if scored is not None else []
    vectors: dict[tuple[str, str], int] = {}
    fixed: list[tuple[int, ...]] = []
    bodies: list[bytes] = []
    for row, entry in enumerate(entries):
        bodies.append(encode(entry.query))
        about = (0, 0, 0, -1)
        if entry.space is not None:
            number = vectors.setdefault((entry.space.space_id, entry.encoder_id), len(vectors))
            about = (entry.space.dense, entry.space.sketch, counts[row], number)
        fixed.append((len(bodies[-1]), entry.known_at, *about))
    sections: dict[str, Iterable[bytes]] = {
        "fixed": [np.asarray(fixed, "<i8").reshape(len(fixed), 6).tobytes()],
        "bodies": bodies,
        "dense": [] if scored is None else [scored.dense.numpy().astype("<f4", copy=False).tobytes()],
        "terms": [] if scored is None else [scored.terms.numpy().astype("<i4", copy=False).tobytes()],
        "weights": [] if scored is None else [scored.weights.numpy().astype("<f4", copy=False).tobytes()],
    }
    return sections, {"entries": len(fixed), "vectors": [list(names) for names in vectors]}


def _kept(about: dict[str, Any], sections: Pieces) -> Iterator[Kept]:
    decode = codec(StandingQuery).decode_unbounded
    fixed = np.frombuffer(sections["fixed"], "<i8").reshape(about["entries"], 6)
    dense, terms = np.frombuffer(sections["dense"], "<f4"), np.frombuffer(sections["terms"], "<i4")
    weights = np.frombuffer(sections["weights"], "<f4")
    body_at, dense_at, term_at = 0, 0, 0
    for length, known_at, width, lexical_width, count, number in fixed.tolist():
        query = decode(bytes(sections["bodies"][body_at : body_at + length]))
        body_at += length
        if number >= 0:
            space_id, encoder_id = about["vectors"][number]
            lexical = np.zeros(lexical_width, "<f4")
            lexical[terms[term_at : term_at + count]] = weights[term_at : term_at + count]
            vector = QueryVector(
                space_id=space_id,
                encoder_id=encoder_id,
                dense=dense[dense_at : dense_at + width].tobytes(),
                lexical=lexical.tobytes() if lexical_width else None,
            )
            query = replace(query, vector=vector)
            dense_at, term_at = dense_at + width, term_at + count
        yield query, known_at


STANDING: Format[Capture, list[Kept]] = _Standing()
