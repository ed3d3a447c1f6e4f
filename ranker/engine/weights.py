"""The weights of a Qwen3-architecture directory as the engine's forward wants them: fused, and no vocabulary head.

Read through transformers' config and tokenizer, and straight from the safetensors: a tensor is in memory once. Of the
head only the difference of the rows of "yes" and "no" is kept. Nothing is fetched.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from penstock.ranker.engine import tokens
from penstock.ranker.errors import UnfitScorer

# Their frequencies depend on the longest prompt of a batch, so a score would depend on its company.
_BATCH_ROPE = ("dynamic", "longrope")


@dataclass(frozen=True, slots=True)
class Shape:
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    max_positions: int
    epsilon: float  # of every RMSNorm

    @classmethod
    def of(cls, directory: Path) -> Shape:
        """Of a model's config alone. Raises UnfitScorer."""
        return _shape(directory, _config(directory))

    @property
    def q_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class Layer:
    """One block. Matrices are [out, in] in the dtype of computation; those with steps are numbers of one byte, a step a
    row (ranker/engine/scaled.py)."""

    norm_in: Tensor  # [hidden]
    qkv: Tensor  # [q_width + 2 kv_width, hidden]
    qkv_bias: Tensor | None  # [q_width + 2 kv_width]
    qk_norm: Tensor  # [heads + kv_heads, head_dim], a row a head
    out: Tensor  # [hidden, q_width]
    out_bias: Tensor | None  # [hidden]
    norm_mlp: Tensor  # [hidden]
    gate_up: Tensor  # [2 intermediate, hidden]
    down: Tensor  # [hidden, intermediate]
    qkv_steps: Tensor | None = None  # float32 [out], likewise below
    out_steps: Tensor | None = None
    gate_up_steps: Tensor | None = None
    down_steps: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Weights:
    """Immutable once loaded; safe to share between threads."""

    shape: Shape
    embedding: Tensor  # [vocabulary, hidden]
    layers: tuple[Layer, ...]
    norm: Tensor  # [hidden]
    answer: Tensor  # float32 (float64 when that is the dtype) [hidden]: the head's row of yes less that of no
    inv_freq: Tensor  # float32 [head_dim / 2]
    rope_scale: float

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype

    @classmethod
    def load(
        cls, directory: Path, dtype: torch.dtype = torch.float32, answers: tuple[int, int] | None = None
    ) -> Weights:
        """`answers`: tokens of yes and no, the tokenizer's by default.

        Raises UnfitScorer: no such directory, another architecture, tensors missing, of other shapes or not finite,
        no single token for yes or no.
        """
        config = _config(directory)
        shape = _shape(directory, config)
        yes, no = answers or tokens.answers(directory)
        if not all(0 <= token < shape.vocabulary for token in (yes, no)):
            raise UnfitScorer(
                f"{directory}: yes and no are tokens {yes} and {no}, the model has {shape.vocabulary}: "
                "the tokenizer and the model do not belong together"
            )
        inv_freq, scale = _rope(directory, config)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        with contextlib.ExitStack() as stack:
            file = _Tensors(directory, stack)
            head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
            rows = file.rows(head, (yes, no), (shape.vocabulary, shape.hidden)).to(wide)
            return cls(
                shape=shape,
                embedding=file.get("model.embed_tokens.weight", (shape.vocabulary, shape.hidden)).to(dtype),
                layers=tuple(
                    _layer(file, f"model.layers.{at}", shape, bool(config.attention_bias), dtype)
                    for at in range(shape.layers)
                ),
                norm=file.get("model.norm.weight", (shape.hidden,)).to(dtype),
                answer=rows[0] - rows[1],
                inv_freq=inv_freq,
                rope_scale=scale,
            )


class _Tensors:
    """A directory's safetensors, in one file or several with an index. Every tensor is checked as it is read."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack) -> None:
        from safetensors import safe_open

        self._directory = directory
        self._file_of: dict[str, Any] = {}
        try:
            for path in _files(directory):
                file = stack.enter_context(safe_open(path, framework="pt"))
                self._file_of.update(dict.fromkeys(file.keys(), file))
        except Exception as error:  # safetensors raises a type of its own, and OSError
            raise UnfitScorer(
                f"{directory}: its safetensors cannot be read ({type(error).__name__}: {error}); "
                "expected model.safetensors, or its parts with model.safetensors.index.json"
            ) from error

    def get(self, name: str, shape: Sequence[int]) -> Tensor:
        return self._finite(name, self._slice(name, shape)[:])

    def rows(self, name: str, rows: Sequence[int], shape: Sequence[int]) -> Tensor:
        """[len(rows), shape[1]], without reading the others."""
        found = self._slice(name, shape)
        return self._finite(name, torch.cat([found[row : row + 1] for row in rows]))

    def _slice(self, name: str, shape: Sequence[int]) -> Any:
        if name not in self._file_of:
            raise UnfitScorer(
                f"{self._directory}: {name} is not in its safetensors; it would be random: give the whole model"
            )
        found = self._file_of[name].get_slice(name)
        if (given := list(found.get_shape())) != list(shape):
            raise UnfitScorer(f"{self._directory}: {name} has shape {given}, its config.json says {list(shape)}")
        return found

    def _finite(self, name: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            raise UnfitScorer(f"{self._directory}: {name} holds {tensor.dtype}; quantised directories are not read")
        if not torch.isfinite(tensor).all():
            raise UnfitScorer(f"{self._directory}: {name} has values that are not finite: the weights are damaged")
        return tensor


def _files(directory: Path) -> Iterator[Path]:
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        yield directory / "model.safetensors"
        return
    for name in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())):
        yield directory / name


def _layer(file: _Tensors, name: str, shape: Shape, biased: bool, dtype: torch.dtype) -> Layer:
    hidden, wide, narrow = shape.hidden, shape.q_width, shape.kv_width
    attention, mlp = f"{name}.self_attn", f"{name}.mlp"
    widths = {"q": wide, "k": narrow, "v": narrow}

    def get(tensor: str, *expected: int) -> Tensor:
        return file.get(tensor, expected).to(dtype)

    def fused(kind: str, *inner: int) -> Tensor:
        return torch.cat([get(f"{attention}.{each}_proj.{kind}", width, *inner) for each, width in widths.items()])

    return Layer(
        norm_in=get(f"{name}.input_layernorm.weight", hidden),
        qkv=fused("weight", hidden),
        qkv_bias=fused("bias") if biased else None,
        qk_norm=torch.cat(
            [
                get(f"{attention}.{each}_norm.weight", shape.head_dim).expand(heads, -1)
                for each, heads in (("q", shape.heads), ("k", shape.kv_heads))
            ]
        ),
        out=get(f"{attention}.o_proj.weight", hidden, wide),
        out_bias=get(f"{attention}.o_proj.bias", hidden) if biased else None,
        norm_mlp=get(f"{name}.post_attention_layernorm.weight", hidden),
        gate_up=torch.cat([get(f"{mlp}.{each}_proj.weight", shape.intermediate, hidden) for each in ("gate", "up")]),
        down=get(f"{mlp}.down_proj.weight", hidden, shape.intermediate),
    )


def _config(directory: Path) -> Any:
    from transformers import AutoConfig

    if not (directory / "config.json").is_file():
        raise UnfitScorer(
            f"{directory} has no config.json; expected the directory of a Qwen3 causal language model "
            "(config.json, tokenizer.json, model.safetensors)"
        )
    try:
        config: Any = AutoConfig.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # transformers raises whatever the file leads it to
        raise UnfitScorer(f"{directory}: config.json cannot be read ({type(error).__name__}: {error})") from error
    if config.model_type != "qwen3":
        raise UnfitScorer(f"{directory} is of architecture {config.model_type!r}; the engine runs 'qwen3'")
    if "sliding_attention" in config.layer_types:
        raise UnfitScorer(f"{directory} attends within a sliding window; the engine attends to whole prompts")
    if config.hidden_act != "silu":
        raise UnfitScorer(f"{directory} uses {config.hidden_act!r} between its matrices; the engine computes 'silu'")
    if getattr(config, "quantization_config", None) is not None:
        raise UnfitScorer(f"{directory} is quantised; give the directory it was made from")
    return config


def _shape(directory: Path, config: Any) -> Shape:
    shape = Shape(
        hidden=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim or config.hidden_size // (config.num_attention_heads or 1),
        intermediate=config.intermediate_size,
        vocabulary=config.vocab_size,
        max_positions=config.max_position_embeddings,
        epsilon=config.rms_norm_eps,
    )
    positive = all(getattr(shape, field.name) > 0 for field in fields(shape))
    if not positive or shape.heads % shape.kv_heads or shape.head_dim % 2:
        raise UnfitScorer(
            f"{directory}: its config.json describes {shape}; expected positive sizes, heads in equal groups, and "
            "heads of an even size"
        )
    return shape


def _rope(directory: Path, config: Any) -> tuple[Tensor, float]:
    """Frequencies and scale, as transformers' Qwen3RotaryEmbedding has them.

    Not from itself: its module brings transformers' whole modelling, many seconds of a ranker's start.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind = config.rope_parameters["rope_type"]
    if kind in _BATCH_ROPE:
        raise UnfitScorer(
            f"{directory} has positions of type {kind!r}: a score would depend on the batch's longest prompt"
        )
    try:
        if kind == "default":
            size = config.head_dim or config.hidden_size // config.num_attention_heads
            places = torch.arange(0, size, 2, dtype=torch.float32) / size
            found = 1.0 / float(config.rope_parameters["rope_theta"]) ** places, 1.0
        else:
            inv_freq, scale = ROPE_INIT_FUNCTIONS[kind](config)
            found = inv_freq.float(), float(scale)
    except Exception as error:  # a kind that transformers does not know, or parameters that it cannot compute with
        raise UnfitScorer(
            f"{directory}: positions of type {kind!r} cannot be computed ({type(error).__name__}: {error}); expected "
            f"one of default, {', '.join(ROPE_INIT_FUNCTIONS)}"
        ) from error
    if not torch.isfinite(found[0]).all() or not math.isfinite(found[1]):
        raise UnfitScorer(f"{directory}: positions of type {kind!r} have frequencies that are not finite")
    return found
