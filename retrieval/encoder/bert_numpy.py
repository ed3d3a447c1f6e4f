"""The same BERT forward as `bert.py` in numpy, for a process that does little else: torch would cost it 500 MB.

Same weights and arithmetic, float32; the twins differ by rounding alone, and a test holds them together. It needs
about 1.4 times torch's time on one core (measured), which the slow lane can spare better than memory.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from penstock.retrieval.encoder.planes import Floats, normalised


class NumpyBertEncoder:
    """Texts to unit vectors, float32 [n, D]: mean of the last layer over each text's tokens. Immutable, thread-safe."""

    def __init__(self, directory: Path, *, max_tokens: int) -> None:
        """`directory` holds config.json, tokenizer.json and model.safetensors of a BertModel."""
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        self._heads: int = config["num_attention_heads"]
        self._epsilon: float = config["layer_norm_eps"]
        self.dimensions: int = config["hidden_size"]
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        weights = load_file(directory / "model.safetensors")
        self._words: Floats = weights["embeddings.word_embeddings.weight"]
        # Every token is of segment 0, so its embedding is part of the position's.
        self._positions = (
            weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
        )
        self._norm = (weights["embeddings.LayerNorm.weight"], weights["embeddings.LayerNorm.bias"])
        self._layers = [_Layer(weights, f"encoder.layer.{n}.") for n in range(config["num_hidden_layers"])]

    def encode(self, texts: Sequence[str]) -> Floats:
        """Unit vectors, float32 [len(texts), D], each text cut at `max_tokens` tokens with the special ones."""
        out = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        for row, encoding in enumerate(self._tokenizer.encode_batch(list(texts))):
            out[row] = self._mean(encoding.ids)
        return normalised(out)

    def _mean(self, tokens: list[int]) -> Floats:
        """One text at a time: no padding, and what it works on stays in cache."""
        hidden = self._normed(self._words[tokens] + self._positions[: len(tokens)], self._norm)
        for layer in self._layers:
            hidden = self._normed(hidden + self._attend(hidden, layer), layer.after_attention)
            inner = hidden @ layer.up[0]
            inner += layer.up[1]
            hidden = self._normed(hidden + (_gelu(inner) @ layer.down[0] + layer.down[1]), layer.after_feedforward)
        mean: Floats = hidden.mean(axis=0)
        return mean

    def _attend(self, hidden: Floats, layer: _Layer) -> Floats:
        width, size = hidden.shape
        qkv = (hidden @ layer.qkv[0] + layer.qkv[1]).reshape(width, 3, self._heads, size // self._heads)
        query, key, value = qkv.transpose(1, 2, 0, 3)  # each [heads, width, size / heads]
        mixed = np.empty((width, self._heads, size // self._heads), dtype=np.float32)
        scale = np.float32((size // self._heads) ** -0.5)
        for head in range(self._heads):
            scores = (query[head] * scale) @ key[head].T
            scores -= scores.max(axis=1, keepdims=True)
            np.exp(scores, out=scores)
            mixed[:, head] = (scores @ value[head]) / scores.sum(axis=1, keepdims=True)
        out: Floats = mixed.reshape(width, size) @ layer.out[0] + layer.out[1]
        return out

    def _normed(self, values: Floats, weights: tuple[Floats, Floats]) -> Floats:
        centred = values - values.mean(axis=1, keepdims=True)
        spread = np.sqrt(np.einsum("ij,ij->i", centred, centred) / values.shape[1] + np.float32(self._epsilon))
        normed: Floats = centred / spread[:, None] * weights[0] + weights[1]
        return normed


class _Layer:
    """One layer's weights as (matrix [in, out], bias [out]); query, key and value in one."""

    __slots__ = ("after_attention", "after_feedforward", "down", "out", "qkv", "up")

    def __init__(self, weights: dict[str, Any], prefix: str) -> None:
        def pair(name: str) -> tuple[Floats, Floats]:
            matrix = np.ascontiguousarray(weights.pop(f"{prefix}{name}.weight").T)
            return matrix, weights.pop(f"{prefix}{name}.bias")

        def norm(name: str) -> tuple[Floats, Floats]:
            return weights[f"{prefix}{name}.weight"], weights[f"{prefix}{name}.bias"]

        parts = [pair(f"attention.self.{name}") for name in ("query", "key", "value")]
        self.qkv = (np.concatenate([m for m, _ in parts], axis=1), np.concatenate([bias for _, bias in parts]))
        self.out = pair("attention.output.dense")
        self.after_attention = norm("attention.output.LayerNorm")
        self.up = pair("intermediate.dense")
        self.down = pair("output.dense")
        self.after_feedforward = norm("output.LayerNorm")


def _gelu(x: Floats) -> Floats:
    """x * Phi(x), erf by Abramowitz and Stegun 7.1.26, whose error is below 1.5e-7: float32's own."""
    z = np.abs(x)
    z *= np.float32(0.5**0.5)
    t = np.float32(0.3275911) * z
    t += np.float32(1.0)
    np.reciprocal(t, out=t)
    tail = np.full_like(t, np.float32(1.061405429))
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        tail *= t
        tail += np.float32(coefficient)
    tail *= t
    np.multiply(z, -z, out=z)
    np.exp(z, out=z)
    tail *= z
    tail *= np.float32(0.5)  # 1 - Phi(|x|)
    return np.where(x < 0, x * tail, x - x * tail)
