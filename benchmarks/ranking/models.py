"""What the ranker's benchmark asks, and of what sizes: postings' texts, queries, requests.

The models are random ones of a stated shape, of ranker/engine/untrained.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.streaming.source import Source
from penstock.ranker.engine.plan import Request, Text, Tokens
from penstock.ranker.engine.untrained import SMALL, ModelShape
from penstock.ranker.summarizer.extractive import ExtractiveSummarizer
from penstock.schemas.events import PostingText

SUMMARY_TOKENS = 96  # the default of models.summary_tokens
QWEN_0_6B = ModelShape(151_936, 1_024, 3_072, 28, 16, 8, 128)


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
    """The judgement queries where the data folder has them, else none."""
    path = data / "relevance_judgements" / "queries.jsonl"
    return (
        [json.loads(line)["query"] for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    )


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
