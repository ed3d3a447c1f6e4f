"""A model directory with random weights: the engine's work is that of a trained model, its scores mean nothing.

For showing and timing the engine where no trained model is at hand. The same texts, shape and seed give the same bytes.
A directory appears whole or not at all, and carries a file that says what it is; whoever loads one says so.

Weights are normal with deviation 0.02, norms one, as transformers begins, so logits are around half a unit. The
tokenizer is a byte-level BPE as Qwen's, made from texts like those to be read. Neither torch nor transformers is
needed to write one.
"""

from __future__ import annotations

import errno
import json
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MARK = "penstock_untrained.txt"  # a file of its own: what is trained from such a directory does not inherit it
_SAID = "Random weights, written by Penstock to show and time the engine. Scores of this model mean nothing.\n"
DEVIATION = 0.02
ANSWERS = ("yes", "no")
SPECIALS = ("<|im_start|>", "<|im_end|>")
_REPEATS = 1_000  # of the answers among the texts, so that each becomes one token
_MOST_TOKENS = 30_000  # of the tokenizer; a larger vocabulary has rows that no text reaches


@dataclass(frozen=True, slots=True)
class ModelShape:
    """As config.json names them."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    tie_word_embeddings: bool = True
    max_position_embeddings: int = 4_096


SMALL = ModelShape(30_000, 384, 1_152, 6, 6, 2, 64)  # what is timed
TINY = ModelShape(16_000, 128, 384, 4, 2, 1, 64)  # what is shown: 64 postings in 0.18 s of one slow core, 12 MB


def is_untrained(directory: Path) -> bool:
    """Whether the directory's weights are known to be random."""
    return (directory / MARK).is_file()


def write(directory: Path, texts: Sequence[str], shape: ModelShape = SMALL, *, seed: int = 0) -> Path:
    """config.json, model.safetensors (float32) and a tokenizer made from `texts`, in a directory that is new or empty.

    Raises FileExistsError where there is something already, ValueError when `shape` has no room for yes and no.
    """
    fresh = directory.with_name(f".{directory.name}-{secrets.token_hex(4)}")
    fresh.mkdir(parents=True)
    try:
        _write_tokenizer(fresh, texts, min(shape.vocab_size, _MOST_TOKENS))
        _write_json(fresh / "config.json", _config(shape))
        _write_weights(fresh / "model.safetensors", shape, seed)
        (fresh / MARK).write_text(_SAID, encoding="utf-8")
        fresh.rename(directory)  # over an empty directory too
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise FileExistsError(f"{directory} holds something already: expected a new directory") from error
        raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)  # not there any more where all went well
    return directory


def _write_tokenizer(directory: Path, texts: Sequence[str], vocabulary: int) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *ANSWERS * _REPEATS], trainer)
    for answer in ANSWERS:
        if len(tokenizer.encode(answer).ids) != 1:
            raise ValueError(f"a vocabulary of {vocabulary} has no token for {answer!r} with these texts: enlarge it")
    tokenizer.save(str(directory / "tokenizer.json"))
    _write_json(
        directory / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": SPECIALS[1], "eos_token": SPECIALS[1]},
    )


def _config(shape: ModelShape) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        **asdict(shape),
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "attention_bias": False,
        "initializer_range": DEVIATION,
        "pad_token_id": 1,
        "eos_token_id": 1,
        "torch_dtype": "float32",
    }


def _write_weights(path: Path, shape: ModelShape, seed: int) -> None:
    from safetensors.numpy import save_file

    rng = np.random.default_rng(seed)

    def random(*size: int) -> NDArray[np.float32]:
        values = rng.standard_normal(size, dtype=np.float32)
        values *= np.float32(DEVIATION)
        return values

    tensors = {name: np.ones(size, np.float32) if len(size) == 1 else random(*size) for name, size in _tensors(shape)}
    save_file(tensors, path, metadata={"format": "pt"})


def _tensors(shape: ModelShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and sizes as transformers has them for Qwen3; those of one dimension are norms."""
    hidden, inner, head = shape.hidden_size, shape.intermediate_size, shape.head_dim
    wide, narrow = shape.num_attention_heads * head, shape.num_key_value_heads * head
    yield "model.embed_tokens.weight", (shape.vocab_size, hidden)
    for layer in range(shape.num_hidden_layers):
        name = f"model.layers.{layer}"
        yield f"{name}.input_layernorm.weight", (hidden,)
        yield f"{name}.self_attn.q_proj.weight", (wide, hidden)
        yield f"{name}.self_attn.k_proj.weight", (narrow, hidden)
        yield f"{name}.self_attn.v_proj.weight", (narrow, hidden)
        yield f"{name}.self_attn.q_norm.weight", (head,)
        yield f"{name}.self_attn.k_norm.weight", (head,)
        yield f"{name}.self_attn.o_proj.weight", (hidden, wide)
        yield f"{name}.post_attention_layernorm.weight", (hidden,)
        yield f"{name}.mlp.gate_proj.weight", (inner, hidden)
        yield f"{name}.mlp.up_proj.weight", (inner, hidden)
        yield f"{name}.mlp.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)
    if not shape.tie_word_embeddings:
        yield "lm_head.weight", (shape.vocab_size, hidden)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
