"""Standing queries in a snapshot (retrieval/store/snapshot.py has the file around it).

fixed    int64 [n, 6]: body's length, known at, dense values, lexical width, terms, vector's number (-1: none)
bodies   n standing queries, framed Avro, their vectors left out; tombstones too
dense    float32, the dense values one after the other
terms    int32, and weights float32: the lexical values that are not zero
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from penstock.retrieval.percolate.store import Capture
from penstock.retrieval.store.snapshot import Format, Part, Pieces, Sections
from penstock.schemas.events import QueryVector, StandingQuery
from penstock.schemas.wire import codec

Kept = tuple[StandingQuery, int]  # the record, and since when it is known (epoch ms)


class _Standing:
    """The format of `StandingQueries`."""

    def parts(self, capture: Capture) -> tuple[Part, ...]:
        return ()

    def sections(self, capture: Capture) -> tuple[Sections, dict[str, Any]]:
        encode = codec(StandingQuery).encode_unbounded
        vectors: dict[tuple[str, str], int] = {}
        fixed: list[tuple[int, ...]] = []
        bodies: list[bytes] = []
        for block in capture.blocks:
            counts = np.diff(block.scored.starts.numpy()).tolist() if block.scored is not None else []
            for row, entry in enumerate(block.entries):
                bodies.append(encode(entry.query))
                about = (0, 0, 0, -1)
                if entry.space is not None:
                    number = vectors.setdefault((entry.space.space_id, entry.encoder_id), len(vectors))
                    about = (entry.space.dense, entry.space.sketch, counts[row], number)
                fixed.append((len(bodies[-1]), entry.known_at, *about))
        for entry in capture.tombstones:
            bodies.append(encode(entry.query))
            fixed.append((len(bodies[-1]), entry.known_at, 0, 0, 0, -1))
        scored = [block.scored for block in capture.blocks if block.scored is not None]
        sections: dict[str, Iterable[bytes]] = {
            "fixed": [np.asarray(fixed, "<i8").reshape(len(fixed), 6).tobytes()],
            "bodies": bodies,
            "dense": (one.dense.numpy().astype("<f4", copy=False).tobytes() for one in scored),
            "terms": (one.terms.numpy().astype("<i4", copy=False).tobytes() for one in scored),
            "weights": (one.weights.numpy().astype("<f4", copy=False).tobytes() for one in scored),
        }
        return sections, {"entries": len(fixed), "vectors": [list(names) for names in vectors]}

    def kept(
        self, manifest: dict[str, Any], sections: Pieces, parts: Iterable[tuple[dict[str, Any], Pieces]]
    ) -> Iterator[Kept]:
        decode = codec(StandingQuery).decode_unbounded
        fixed = np.frombuffer(sections["fixed"], "<i8").reshape(manifest["entries"], 6)
        dense, terms = np.frombuffer(sections["dense"], "<f4"), np.frombuffer(sections["terms"], "<i4")
        weights = np.frombuffer(sections["weights"], "<f4")
        body_at, dense_at, term_at = 0, 0, 0
        for length, known_at, width, lexical_width, count, number in fixed.tolist():
            query = decode(bytes(sections["bodies"][body_at : body_at + length]))
            body_at += length
            if number >= 0:
                space_id, encoder_id = manifest["vectors"][number]
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


STANDING: Format[Capture, Iterator[Kept]] = _Standing()
