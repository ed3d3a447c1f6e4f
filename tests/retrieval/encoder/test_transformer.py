"""Any encoder directory, here a tiny random BERT: pooling, prefixes, ids that follow the weights, clear refusals."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from penstock.retrieval.encoder.minilm import tokenizer_file
from penstock.retrieval.encoder.planes import dense_floats
from penstock.retrieval.encoder.text_transformer import Pooling
from penstock.retrieval.encoder.transformer import TransformerEncoder
from penstock.retrieval.encoder.weights import EncoderWeightsError
from penstock.schemas.events import PostingText


def tiny_bert(directory: Path, seed: int = 0) -> Path:
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=30_522, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(tokenizer_file().parent / name, directory / name)
    return directory


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bert"))


def dense(encoder: TransformerEncoder, text: str) -> np.ndarray:
    return np.frombuffer(encoder.encode_queries([text])[0].dense, "<f4")


def test_both_sides_have_unit_vectors_and_a_sketch(directory: Path, postings: list[PostingText]) -> None:
    encoder = TransformerEncoder(directory)
    assert encoder.dimensions == 16
    for vector in encoder.encode_postings(postings):
        assert (len(vector.dense), len(vector.sketch or b"")) == (32, 1024)
        assert np.linalg.norm(dense_floats(vector.dense)) == pytest.approx(1.0, abs=4e-3)
        assert vector.space_id == encoder.space_id
    (query,) = encoder.encode_queries(["nurse"])
    assert (len(query.dense), len(query.lexical or b"")) == (64, 4096)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_pooling_ignores_padding(directory: Path, pooling: Pooling) -> None:
    encoder = TransformerEncoder(directory, pooling=pooling)
    together = encoder.encode_queries(["nurse", "a much longer query about mechanics in Reno, Nevada"])
    np.testing.assert_allclose(np.frombuffer(together[0].dense, "<f4"), dense(encoder, "nurse"), atol=1e-5)


def test_poolings_differ(directory: Path) -> None:
    made = [dense(TransformerEncoder(directory, pooling=pooling), "night nurse") for pooling in ("mean", "cls", "last")]
    assert not np.allclose(made[0], made[1], atol=1e-3)
    assert not np.allclose(made[1], made[2], atol=1e-3)


def test_prefixes_go_before_each_side(directory: Path) -> None:
    plain = TransformerEncoder(directory)
    prefixed = TransformerEncoder(directory, query_prefix="query: ", posting_prefix="passage: ")
    np.testing.assert_allclose(dense(prefixed, "nurse"), dense(plain, "query: nurse"), atol=1e-6)
    posting = PostingText(title="Nurse", description="ward")
    wanted = plain.encode_postings([PostingText(title="passage: Nurse", description="ward")])[0]
    assert prefixed.encode_postings([posting])[0].dense == wanted.dense
    assert prefixed.space_id != plain.space_id


def test_space_follows_the_weights_and_not_the_place(directory: Path, tmp_path: Path) -> None:
    same = shutil.copytree(directory, tmp_path / "same")
    assert TransformerEncoder(same).space_id == TransformerEncoder(directory).space_id
    other = tiny_bert(tmp_path / "other", seed=1)
    assert TransformerEncoder(other).space_id != TransformerEncoder(directory).space_id


def test_long_postings_are_cut_at_the_token_limit(directory: Path) -> None:
    encoder = TransformerEncoder(directory, max_tokens=8)
    short = PostingText(title="alpha beta gamma delta epsilon", description="ward " * 10)
    long = PostingText(title="alpha beta gamma delta epsilon", description="ward " * 10_000)
    assert encoder.encode_postings([short])[0].dense == encoder.encode_postings([long])[0].dense


def test_what_is_missing_is_named(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(EncoderWeightsError, match="no such directory"):
        TransformerEncoder(tmp_path / "nowhere")
    for gone in ("config.json", "model.safetensors", "tokenizer.json"):
        broken = shutil.copytree(directory, tmp_path / f"without-{gone}")
        (broken / gone).unlink()
        with pytest.raises(EncoderWeightsError, match=r"config\.json|safetensors|tokenizer") as caught:
            TransformerEncoder(broken)
        assert caught.value.remedy


def test_damaged_weights_and_bad_options_are_refused(directory: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(directory, tmp_path / "damaged")
    (broken / "model.safetensors").write_bytes(b"x" * 64)
    with pytest.raises(EncoderWeightsError, match="damaged"):
        TransformerEncoder(broken)
    with pytest.raises(ValueError, match="pooling: got 'max'"):
        TransformerEncoder(directory, pooling="max")  # type: ignore[arg-type]
    with pytest.raises(EncoderWeightsError, match="device"):
        TransformerEncoder(directory, device="no-such-device")
