"""The token table: exact token ids, the stated sum, rows that never depend on the batch, weights that are checked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.retrieval.encoder.planes import (
    dense_bytes,
    dense_floats,
    from_bfloat16,
    normalised,
    to_bfloat16,
    to_int8,
)
from penstock.retrieval.encoder.shipped import MANIFEST_FILE, TABLES, TOKEN_TABLE_FILE, load_token_table
from penstock.retrieval.encoder.template import attribute_text
from penstock.retrieval.encoder.token_table import BODY_TOKENS, HEAD_TOKENS, POSITIONS, TokenTable, posting_tokens
from penstock.retrieval.encoder.weights import EncoderWeightsError
from penstock.retrieval.encoder.wordpieces import WordPieces
from penstock.schemas.events import PostingText

MIB = 2**20


@pytest.fixture(scope="module")
def table(pieces: WordPieces) -> TokenTable:
    weights = load_token_table()
    return TokenTable(pieces, weights.rows, weights.scale, weights.position_weight)


def test_vector_is_the_stated_weighted_sum(table: TokenTable, pieces: WordPieces, postings: list[PostingText]) -> None:
    weights = load_token_table()
    posting = postings[0]
    tokens, positions = posting_tokens(pieces, attribute_text(posting), posting.description)
    summed = np.zeros(384)
    for token, position in zip(tokens, positions, strict=True):
        row = weights.rows[token].astype(np.float64)
        summed += row * float(weights.scale[token]) * float(weights.position_weight[position])
    np.testing.assert_allclose(table.encode([posting])[0], summed / np.linalg.norm(summed), atol=1e-5)


def test_head_and_body_have_their_own_positions_and_cuts(pieces: WordPieces) -> None:
    tokens, positions = posting_tokens(pieces, "nurse", "clinic ward")
    assert positions == [0, HEAD_TOKENS, HEAD_TOKENS + 1]
    assert len(tokens) == 3
    _, positions = posting_tokens(pieces, "nurse " * 500, "clinic " * 5000)
    assert len(positions) == HEAD_TOKENS + BODY_TOKENS
    assert max(positions) == POSITIONS - 1


def test_batch_independence_and_determinism(table: TokenTable, postings: list[PostingText]) -> None:
    together = table.encode(postings)
    np.testing.assert_array_equal(together, np.concatenate([table.encode([posting]) for posting in postings]))
    np.testing.assert_array_equal(together, table.encode(postings))
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)


def test_a_posting_without_tokens_is_zero_and_nothing_is_nothing(table: TokenTable) -> None:
    assert not table.encode([PostingText(title="", description="")]).any()
    assert table.encode([]).shape == (0, 384)


def test_wrong_shapes_are_refused(pieces: WordPieces) -> None:
    with pytest.raises(ValueError, match="position_weight"):
        TokenTable(
            pieces,
            np.zeros((pieces.vocabulary, 8), np.int8),
            np.ones(pieces.vocabulary, np.float32),
            np.ones(3, np.float32),
        )


@given(st.text(max_size=200))
def test_word_ids_are_the_tokenizers_own(pieces: WordPieces, text: str) -> None:
    assert pieces.ids(text, 10_000) == pieces._encode(text)


@given(st.text(alphabet="abcXYZ019 -_.,/'’“–…•\n\t$+#@~|`^{}[]", max_size=200), st.integers(0, 40))
def test_plain_text_takes_the_short_way_to_the_same_ids(pieces: WordPieces, text: str, cut: int) -> None:
    assert pieces.ids(text, cut) == pieces._encode(text)[:cut]


@pytest.mark.parametrize(
    "text", ["a" * 300, "Ünïted § €50", "tab\tnew\r\nline\x00nul\x7f", "C++ & .NET", "日本語 nurse"]
)
def test_awkward_text_has_the_tokenizers_ids(pieces: WordPieces, text: str) -> None:
    assert pieces.ids(text, 10_000) == pieces._encode(text)


def test_shipped_tables_fit_their_budget_and_manifest() -> None:
    manifest = json.loads((TABLES / MANIFEST_FILE).read_text())
    assert sum(file.stat().st_size for file in TABLES.iterdir()) < 14 * MIB
    assert set(manifest["files"]) == {file.name for file in TABLES.iterdir()} - {MANIFEST_FILE}
    assert manifest["made_by"].startswith("python training/posting_encoder.py")
    assert "asymmetric_and_sketch" in manifest["metrics"]["first_stage"]


def test_one_altered_byte_is_noticed(tmp_path: Path) -> None:
    folder = shutil.copytree(TABLES, tmp_path / "tables")
    raw = bytearray((folder / TOKEN_TABLE_FILE).read_bytes())
    raw[-1] ^= 1
    (folder / TOKEN_TABLE_FILE).write_bytes(raw)
    with pytest.raises(EncoderWeightsError, match="sha256") as caught:
        load_token_table(folder)
    assert caught.value.file == str(folder / TOKEN_TABLE_FILE)


@pytest.mark.parametrize("absent", [MANIFEST_FILE, TOKEN_TABLE_FILE])
def test_absent_files_are_named(tmp_path: Path, absent: str) -> None:
    folder = shutil.copytree(TABLES, tmp_path / "tables")
    (folder / absent).unlink()
    with pytest.raises(EncoderWeightsError, match=absent.replace(".", r"\.")):
        load_token_table(folder)


@given(st.floats(width=32))
def test_bfloat16_is_the_nearest_and_ties_go_to_even(value: float) -> None:
    import torch

    given_value = np.array([value], dtype=np.float32)
    expected = torch.tensor(given_value).bfloat16().float().numpy()
    np.testing.assert_array_equal(from_bfloat16(to_bfloat16(given_value)), expected)


def test_dense_bytes_round_trip_within_half_a_step() -> None:
    row = normalised(np.random.default_rng(0).normal(size=(1, 384)).astype(np.float32))[0]
    raw = dense_bytes(row)
    assert len(raw) == 768
    np.testing.assert_allclose(dense_floats(raw), row, rtol=2**-8)
    assert dense_bytes(dense_floats(raw)) == raw


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1))
def test_int8_clips_and_never_wraps(values: list[float]) -> None:
    made = to_int8(np.array(values, dtype=np.float32)).astype(int)
    for value, small in zip(values, made, strict=True):
        assert small == max(-127, min(127, int(np.rint(np.float32(value)))))
