"""A Hugging Face text encoder: tokens, forward, pooling, unit norm.

Owns the model; inference only. Texts are grouped by length, so padding is small, and padding never changes a text's
vector beyond rounding. How many threads torch may use is the process's decision, not made here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors import SafetensorError

from penstock.retrieval.encoder.batches import by_length
from penstock.retrieval.encoder.planes import Floats
from penstock.retrieval.encoder.weights import EncoderWeightsError

Pooling = Literal["mean", "cls", "last"]
Precision = Literal["float32", "bfloat16"]


class TextTransformer:
    """Texts to unit vectors, float32 [n, D]."""

    def __init__(
        self,
        directory: str | Path,
        *,
        device: str = "cpu",
        pooling: Pooling = "mean",
        precision: Precision = "float32",
        max_tokens: int = 256,
    ) -> None:
        """Loads the model of a directory. Raises EncoderWeightsError naming the directory or file at fault."""
        if pooling not in get_args(Pooling):
            raise ValueError(f"pooling: got {pooling!r}, expected one of {', '.join(get_args(Pooling))}")
        self.directory = Path(directory)
        _check_directory(self.directory)
        self._tokenizer, self._model = _load(self.directory)
        try:
            self._model.to(device=device, dtype=getattr(torch, precision)).eval()
        except (RuntimeError, AssertionError) as error:
            raise EncoderWeightsError(
                self.directory, f"device {device!r}: {error}", "a device torch can use", "Set device to cpu."
            ) from error
        self._device = torch.device(device)
        self._pooling = pooling
        positions = int(getattr(self._model.config, "max_position_embeddings", max_tokens))
        self.max_tokens = min(max_tokens, positions)
        self.dimensions = int(self._model.config.hidden_size)

    def encode(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> Floats:
        """Unit vectors, float32 [len(texts), D], each text cut at `max_tokens` tokens with the special ones."""
        out = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        if not texts:
            return out
        ids: list[list[int]] = self._tokenizer(list(texts), truncation=True, max_length=self.max_tokens)["input_ids"]
        done = 0
        for batch in by_length([len(row) for row in ids]):
            out[batch] = self._forward([ids[i] for i in batch])
            done += len(batch)
            if progress is not None:
                progress(done)
        return out

    @torch.inference_mode()
    def _forward(self, rows: list[list[int]]) -> Floats:
        width = max(1, max(len(row) for row in rows))
        tokens = torch.full((len(rows), width), self._tokenizer.pad_token_id or 0, dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for r, row in enumerate(rows):
            tokens[r, : len(row)] = torch.tensor(row, dtype=torch.long)
            mask[r, : len(row)] = 1
        tokens, mask = tokens.to(self._device), mask.to(self._device)
        hidden = self._model(input_ids=tokens, attention_mask=mask).last_hidden_state.float()
        if self._pooling == "cls":
            pooled = hidden[:, 0]
        elif self._pooling == "last":
            pooled = hidden[torch.arange(len(rows), device=self._device), mask.sum(1).clamp(min=1) - 1]
        else:
            weight = mask.unsqueeze(-1).float()
            pooled = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1.0)
        unit: Floats = torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()
        return unit


def _check_directory(directory: Path) -> None:
    remedy = "Give the directory of a Hugging Face encoder: config.json, tokenizer files and model.safetensors."
    if not directory.is_dir():
        raise EncoderWeightsError(directory, "no such directory", "a model directory", remedy)
    if not (directory / "config.json").is_file():
        raise EncoderWeightsError(directory / "config.json", "no such file", "the model's configuration", remedy)
    if not weight_files(directory):
        raise EncoderWeightsError(directory, "no *.safetensors in it", "the model's weights as safetensors", remedy)
    if not any((directory / name).is_file() for name in ("tokenizer.json", "vocab.txt", "tokenizer.model")):
        raise EncoderWeightsError(directory / "tokenizer.json", "no such file", "the model's tokenizer", remedy)


def weight_files(directory: Path) -> list[Path]:
    """The directory's weight files, in name order."""
    return sorted(directory.glob("*.safetensors"))


def _load(directory: Path) -> tuple[Any, Any]:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers import AutoModel, AutoTokenizer  # seconds to import: only processes that hold a model pay

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
        model = AutoModel.from_pretrained(str(directory), local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise EncoderWeightsError(
            directory, f"{type(error).__name__}: {error}", "a model that transformers can load", "See the message."
        ) from error
    return tokenizer, model
