"""Random Qwen3 directories at a stated shape, the tokenizer they carry, and the requests that are timed on them.

Weights are normal with deviation 0.02, as transformers begins, so logits are around half a unit: scores mean nothing,
the work is that of a trained model. The tokenizer is a byte-level BPE as Qwen's, made from the postings' own texts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.streaming.source import Source
from penstock.ranker.engine.plan import Request, Text, Tokens
from penstock.ranker.summarizer.extractive import ExtractiveSummarizer
from penstock.schemas.events import PostingText

SUMMARY_TOKENS = 96  # the default of models.summary_tokens
TEXTS = 4_000  # that the tokenizer is made from


@dataclass(frozen=True, slots=True)
class ModelShape:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    tie_word_embeddings: bool = True
    max_position_embeddings: int = 4_096


SMALL = ModelShape(30_000, 384, 1_152, 6, 6, 2, 64)
QWEN_0_6B = ModelShape(151_936, 1_024, 3_072, 28, 16, 8, 128)


def make_directory(path: Path, shape: ModelShape, texts: Sequence[str]) -> Path:
    """config.json, model.safetensors (float32) and a tokenizer made from `texts` that knows yes and no."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(shape.vocab_size, SMALL.vocab_size),
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *["yes", "no"] * 1_000], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|im_end|>").save_pretrained(path)
    torch.manual_seed(0)
    Qwen3ForCausalLM(Qwen3Config(**asdict(shape))).save_pretrained(path)
    return path


def item_texts(source: Source, count: int) -> list[str]:
    """What the ranker reads of `count` postings spread over the source: attributes and summary."""
    summarizer = ExtractiveSummarizer(SUMMARY_TOKENS)
    step = max(1, len(source.postings) // count)
    texts = []
    for posting in source.postings[::step][:count]:
        text = PostingText(
            title=posting.title,
            company=posting.company,
            location=posting.location.text if posting.location else None,
            grade=posting.grade,
            category=posting.category,
            description=posting.description or "",
        )
        texts.append(summarizer.item_text(text, summarizer.summarize(text)))
    return texts


def queries(data: Path) -> list[str]:
    """The judgement queries on federal postings where the data folder has them, else none."""
    path = data / "relevance_judgements" / "queries.jsonl"
    if not path.exists():
        return []
    judged = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [each["query"] for each in judged if each["split"] in ("train", "dev")]


def fixed(items: int, prefix: int, item: int, seed: int = 0) -> Request:
    """Random tokens of stated lengths."""
    rng = np.random.default_rng(seed)
    return Request(_random(rng, prefix), tuple(Text(_random(rng, item)) for _ in range(items)))


def real(directory: Path, query: str, texts: Sequence[str]) -> Request:
    """As the yes/no scorer's template frames them, query and item tokenised apart."""
    from transformers import AutoTokenizer

    from penstock.ranker.backends.prompt import MAX_ITEM_TOKENS, TEMPLATE

    tokenizer: Any = AutoTokenizer.from_pretrained(directory, local_files_only=True)

    def tokens(*parts: str) -> Tokens:
        pieces = [tokenizer.encode(part, add_special_tokens=False)[:MAX_ITEM_TOKENS] for part in parts]
        return np.array([token for piece in pieces for token in piece], np.int32)

    prefix = tokens(TEMPLATE.before, query, TEMPLATE.between)
    return Request(prefix, tuple(Text(tokens(text, TEMPLATE.after)) for text in texts))


def _random(rng: np.random.Generator, count: int) -> Tokens:
    return rng.integers(0, SMALL.vocab_size, count, dtype=np.int32)
