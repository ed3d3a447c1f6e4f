"""Any Hugging Face encoder directory, for queries and postings alike, with the lexical sketch beside it.

The space is the model: space_id is a hash of its configuration, its weights, the pooling and the prefixes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from penstock.retrieval.encoder.planes import dense_bytes, float_bytes
from penstock.retrieval.encoder.shipped import TABLES, load_sketch
from penstock.retrieval.encoder.sketch import SKETCH_ID, WIDTH, LexicalSketch
from penstock.retrieval.encoder.template import TEMPLATE_ID, posting_text
from penstock.retrieval.encoder.text_transformer import Pooling, Precision, TextTransformer, weight_files
from penstock.retrieval.encoder.weights import file_sha256
from penstock.schemas.events import PostingText, QueryVector, Vector

_CHARS_PER_TOKEN = 16  # more than any text needs: bounds tokenisation


class TransformerEncoder:
    """Encoder over a model directory (see `interface.Encoder`). Thread-safe; owns the model."""

    def __init__(
        self,
        directory: str | Path,
        device: str = "cpu",
        pooling: Pooling = "mean",
        query_prefix: str = "",
        posting_prefix: str = "",
        *,
        max_tokens: int = 256,
        precision: Precision = "float32",
        tables: Path = TABLES,
    ) -> None:
        """Raises EncoderWeightsError naming the directory or file at fault, ValueError for an unknown pooling."""
        self._transformer = TextTransformer(
            directory, device=device, pooling=pooling, precision=precision, max_tokens=max_tokens
        )
        lexical = load_sketch(tables)
        self.sketch = LexicalSketch(lexical.parameters)
        self._query_prefix = query_prefix
        self._posting_prefix = posting_prefix
        path = Path(directory)
        model = _digest(
            file_sha256(path / "config.json"),
            *(file_sha256(file) for file in weight_files(path)),
            pooling,
            query_prefix,
            posting_prefix,
        )
        tokenizer = next(file for name in _TOKENIZER_FILES if (file := path / name).is_file())
        made_of = _digest(TEMPLATE_ID, file_sha256(tokenizer), str(self._transformer.max_tokens))
        self._space_id = f"hf-{model}/{self._transformer.dimensions}+{SKETCH_ID}/{WIDTH}"
        self._encoder_id = f"hf-{model}/{TEMPLATE_ID}-{made_of}+{SKETCH_ID}/{lexical.digest}"

    @property
    def space_id(self) -> str:
        return self._space_id

    @property
    def encoder_id(self) -> str:
        return self._encoder_id

    @property
    def dimensions(self) -> int:
        """D, of the dense plane."""
        return self._transformer.dimensions

    def encode_postings(self, postings: Sequence[PostingText]) -> list[Vector]:
        limit = self._transformer.max_tokens * _CHARS_PER_TOKEN
        texts = [self._posting_prefix + posting_text(posting, limit) for posting in postings]
        return [
            Vector(
                space_id=self._space_id,
                encoder_id=self._encoder_id,
                dense=dense_bytes(row),
                sketch=self.sketch.posting(posting).tobytes(),
            )
            for posting, row in zip(postings, self._transformer.encode(texts), strict=True)
        ]

    def encode_queries(self, texts: Sequence[str]) -> list[QueryVector]:
        dense = self._transformer.encode([self._query_prefix + text for text in texts])
        return [
            QueryVector(
                space_id=self._space_id,
                encoder_id=self._encoder_id,
                dense=float_bytes(row),
                lexical=float_bytes(self.sketch.query(text)),
            )
            for text, row in zip(texts, dense, strict=True)
        ]


_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "tokenizer.model")


def _digest(*parts: str) -> str:
    """Eight hex digits of a hash over all parts, their borders kept."""
    return hashlib.sha256("\x00".join(parts).encode()).hexdigest()[:8]
