"""What the ranker's benchmark asks, and of what sizes: postings' texts, queries, requests.

The models are random ones of a stated shape, of ranker/engine/untrained.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.streaming.source import Source
from penstock.ranker.engine.plan import Request, Text, Tokens
from penstock.ranker.engine.tokens import Tokenizer
from penstock.ranker.engine.untrained import SMALL
from penstock.ranker.summarizer.extractive import ExtractiveSummarizer
from penstock.schemas.events import PostingText

SUMMARY_TOKENS = 96  # the default of models.summary_tokens


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


def real(tokenizer: Tokenizer, query: str, texts: Sequence[str]) -> Request:
    """As the engine reads them."""
    items = tokenizer.items(texts)
    return Request(tokenizer.prefix(query).tokens, tuple(Text(item.tokens) for item in items))


def _random(rng: np.random.Generator, count: int) -> Tokens:
    return rng.integers(0, SMALL.vocab_size, count, dtype=np.int32)
