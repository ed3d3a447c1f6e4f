"""The embedded encoder: two sides of one space, hybrid by one inner product, quick first and refined later."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from penstock.retrieval.encoder.embedded import EmbeddedEncoder
from penstock.retrieval.encoder.interface import Encoder
from penstock.retrieval.encoder.minilm import MiniLM
from penstock.retrieval.encoder.planes import dense_floats
from penstock.retrieval.encoder.shipped import SKETCH_FILE, TABLES
from penstock.retrieval.encoder.weights import EncoderWeightsError
from penstock.schemas.events import PostingText, QueryVector, Vector


def parts(vector: Vector, query: QueryVector) -> tuple[float, float]:
    dense = dense_floats(vector.dense) @ np.frombuffer(query.dense, "<f4")
    lexical = np.frombuffer(vector.sketch or b"", np.int8).astype(np.float32) @ np.frombuffer(
        query.lexical or b"", "<f4"
    )
    return float(dense), float(lexical)


def test_shapes_norms_and_ids(embedded: EmbeddedEncoder, postings: list[PostingText]) -> None:
    encoder: Encoder = embedded
    (query,) = encoder.encode_queries(["nurse in Phoenix"])
    for vector in encoder.encode_postings(postings):
        assert (len(vector.dense), len(vector.sketch or b"")) == (768, 1024)
        assert np.linalg.norm(dense_floats(vector.dense)) == pytest.approx(1.0, abs=4e-3)
        assert (vector.space_id, vector.encoder_id) == (encoder.space_id, encoder.encoder_id)
    assert (len(query.dense), len(query.lexical or b"")) == (4 * 384, 4 * 1024)
    assert query.space_id == encoder.space_id
    assert encoder.encode_postings([]) == [] and encoder.encode_queries([]) == []


def test_one_inner_product_is_the_sum_of_the_parts(embedded: EmbeddedEncoder, postings: list[PostingText]) -> None:
    queries = embedded.encode_queries(["nurse in Phoenix", "WG-10 mechanic", "C++"])
    for vector in embedded.encode_postings(postings):
        sketch = np.frombuffer(vector.sketch or b"", np.int8).astype(np.float32)
        row = np.concatenate([dense_floats(vector.dense), sketch])
        for query in queries:
            whole = np.concatenate([np.frombuffer(query.dense, "<f4"), np.frombuffer(query.lexical or b"", "<f4")])
            assert float(row @ whole) == pytest.approx(sum(parts(vector, query)), abs=1e-5)


def test_each_query_finds_its_posting(embedded: EmbeddedEncoder, postings: list[PostingText]) -> None:
    asked = ["ICU nurse", "fix airplanes, WG-10", "C++ developer"]
    for refined in (False, True):
        vectors = embedded.refine_postings(postings) if refined else embedded.encode_postings(postings)
        for wanted, query in enumerate(embedded.encode_queries(asked)):
            scores = [sum(parts(vector, query)) for vector in vectors]
            assert int(np.argmax(scores)) == wanted


def test_refined_vectors_share_the_space_and_say_who_made_them(
    embedded: EmbeddedEncoder, postings: list[PostingText]
) -> None:
    quick, refined = embedded.encode_postings(postings), embedded.refine_postings(postings)
    for first, second in zip(quick, refined, strict=True):
        assert first.space_id == second.space_id
        assert first.encoder_id == embedded.encoder_id != second.encoder_id == embedded.refined_encoder_id
        assert first.sketch == second.sketch
        assert dense_floats(first.dense) @ dense_floats(second.dense) > 0.6


def test_batches_do_not_change_bytes(embedded: EmbeddedEncoder, postings: list[PostingText]) -> None:
    together = embedded.encode_postings(postings)
    assert together == [embedded.encode_postings([posting])[0] for posting in postings]


def test_altered_sketch_is_refused(tmp_path: Path, minilm: MiniLM) -> None:
    folder = shutil.copytree(TABLES, tmp_path / "tables")
    with (folder / SKETCH_FILE).open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(EncoderWeightsError, match=r"sketch\.safetensors"):
        EmbeddedEncoder(tables=folder, minilm=minilm)
