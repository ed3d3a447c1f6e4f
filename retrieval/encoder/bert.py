"""A BERT encoder's forward in plain torch, for the one model that every installation runs.

transformers takes seconds of CPU and over 100 MB to import, which on two cores is most of a role's start; this takes
neither. Same weights, same arithmetic (post-layer-norm BERT, Devlin et al. 2018, as transformers' BertModel); a test
holds the two together. Any other model goes through transformers (`text_transformer.py`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from penstock.retrieval.encoder.batches import by_length
from penstock.retrieval.encoder.planes import Floats


class BertEncoder:
    """Texts to unit vectors, float32 [n, D]: mean of the last layer over each text's tokens. Immutable, thread-safe."""

    def __init__(self, directory: Path, *, device: str, precision: torch.dtype, max_tokens: int) -> None:
        """`directory` holds config.json, tokenizer.json and model.safetensors of a BertModel."""
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        self._heads: int = config["num_attention_heads"]
        self._epsilon: float = config["layer_norm_eps"]
        self._pad: int = config["pad_token_id"]
        self.dimensions: int = config["hidden_size"]
        self._device = torch.device(device)
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        weights = {
            name: tensor.to(device=self._device, dtype=precision)
            for name, tensor in load_file(directory / "model.safetensors").items()
            if tensor.is_floating_point()
        }
        self._words = weights["embeddings.word_embeddings.weight"]
        # Every token is of segment 0, so its embedding is part of the position's.
        self._positions = (
            weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
        )
        self._norm = _pair(weights, "embeddings.LayerNorm")
        self._layers = [_Layer(weights, f"encoder.layer.{n}.") for n in range(config["num_hidden_layers"])]

    def encode(self, texts: Sequence[str]) -> Floats:
        """Unit vectors, float32 [len(texts), D], each text cut at `max_tokens` tokens with the special ones."""
        out = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        for batch in by_length([len(row) for row in rows]):
            out[batch] = self._forward([rows[i] for i in batch])
        return out

    @torch.inference_mode()
    def _forward(self, rows: list[list[int]]) -> Floats:
        width = max(len(row) for row in rows)
        tokens = torch.tensor([row + [self._pad] * (width - len(row)) for row in rows], device=self._device)
        lengths = torch.tensor([len(row) for row in rows], device=self._device)
        real = torch.arange(width, device=self._device) < lengths[:, None]  # [n, width]
        # A mask makes attention several times slower on a CPU, and equal lengths need none.
        mask = None if bool(real.all()) else real[:, None, None, :]
        hidden = self._normed(self._words[tokens] + self._positions[:width], self._norm)
        for layer in self._layers:
            hidden = self._normed(hidden + self._attend(hidden, layer, mask), layer.after_attention)
            inner = functional.gelu(functional.linear(hidden, *layer.up))
            hidden = self._normed(hidden + functional.linear(inner, *layer.down), layer.after_feedforward)
        summed = (hidden.float() * real[..., None]).sum(1)
        unit: Floats = functional.normalize(summed / lengths[:, None], dim=-1).cpu().numpy()
        return unit

    def _attend(self, hidden: Tensor, layer: _Layer, mask: Tensor | None) -> Tensor:
        n, width, size = hidden.shape
        qkv = functional.linear(hidden, *layer.qkv).view(n, width, 3, self._heads, size // self._heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each [n, heads, width, size / heads]
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return functional.linear(mixed.transpose(1, 2).reshape(n, width, size), *layer.out)

    def _normed(self, values: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
        return functional.layer_norm(values, (self.dimensions,), *weights, self._epsilon)


class _Layer:
    """One layer's weights, (weight, bias) each; query, key and value in one matrix."""

    __slots__ = ("after_attention", "after_feedforward", "down", "out", "qkv", "up")

    def __init__(self, weights: dict[str, Tensor], prefix: str) -> None:
        parts = [_pair(weights, f"{prefix}attention.self.{name}") for name in ("query", "key", "value")]
        self.qkv = (torch.cat([weight for weight, _ in parts]), torch.cat([bias for _, bias in parts]))
        self.out = _pair(weights, f"{prefix}attention.output.dense")
        self.after_attention = _pair(weights, f"{prefix}attention.output.LayerNorm")
        self.up = _pair(weights, f"{prefix}intermediate.dense")
        self.down = _pair(weights, f"{prefix}output.dense")
        self.after_feedforward = _pair(weights, f"{prefix}output.LayerNorm")


def _pair(weights: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return weights[f"{name}.weight"], weights[f"{name}.bias"]
