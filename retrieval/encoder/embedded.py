"""The embedded default: the transformer for queries, the token table for postings, the sketch on both.

One space, two speeds: a posting is published at once with the table's vector and may later be refined by the
transformer (`refine_postings`), same space_id, another encoder_id.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from penstock.retrieval.encoder.minilm import MiniLM, tokenizer_file
from penstock.retrieval.encoder.planes import Floats, dense_bytes, float_bytes
from penstock.retrieval.encoder.shipped import DENSE_SPACE, SHIPPED_SPACE, TABLES, load_sketch, load_token_table
from penstock.retrieval.encoder.sketch import SKETCH_ID, LexicalSketch
from penstock.retrieval.encoder.template import TEMPLATE_ID, posting_text
from penstock.retrieval.encoder.token_table import TokenTable
from penstock.retrieval.encoder.wordpieces import WordPieces
from penstock.schemas.events import PostingText, QueryVector, Vector

REFINE_CHARS = 4_096  # of the description, well past the transformer's 256 tokens: bounds tokenisation


class EmbeddedEncoder:
    """Encoder of the embedded stack (see `interface.Encoder`). Thread-safe. Loads about 110 MB."""

    def __init__(self, *, device: str = "cpu", tables: Path = TABLES, minilm: MiniLM | None = None) -> None:
        """Raises EncoderWeightsError when any weight file is absent or altered."""
        table, lexical = load_token_table(tables), load_sketch(tables)
        self._minilm = minilm if minilm is not None else MiniLM(device=device)
        self._table = TokenTable(WordPieces(tokenizer_file()), table.rows, table.scale, table.position_weight)
        self.sketch = LexicalSketch(lexical.parameters)
        made_of = f"{TEMPLATE_ID}-{self._minilm.tokenizer_digest}"
        self._space_id = SHIPPED_SPACE
        self._encoder_id = f"token-table/{table.digest}/{made_of}+{SKETCH_ID}/{lexical.digest}"
        self._refined_id = f"{DENSE_SPACE}/{made_of}+{SKETCH_ID}/{lexical.digest}"

    @property
    def space_id(self) -> str:
        return self._space_id

    @property
    def encoder_id(self) -> str:
        """Of the fast lane's posting vectors."""
        return self._encoder_id

    @property
    def refined_encoder_id(self) -> str:
        """Of `refine_postings` and of queries: the transformer."""
        return self._refined_id

    def encode_postings(self, postings: Sequence[PostingText]) -> list[Vector]:
        """The fast lane: over a thousand postings a second on one core. A posting without a token has a zero vector."""
        return self._vectors(postings, self._table.encode(postings), self._encoder_id)

    def refine_postings(self, postings: Sequence[PostingText]) -> list[Vector]:
        """The slow lane: the transformer's vectors in the same space, tens a second on a CPU."""
        dense = self._minilm.encode([posting_text(posting, REFINE_CHARS) for posting in postings])
        return self._vectors(postings, dense, self._refined_id)

    def encode_queries(self, texts: Sequence[str]) -> list[QueryVector]:
        return [
            QueryVector(
                space_id=self._space_id,
                encoder_id=self._refined_id,
                dense=float_bytes(row),
                lexical=float_bytes(self.sketch.query(text)),
            )
            for text, row in zip(texts, self._minilm.encode_cached(texts), strict=True)
        ]

    def _vectors(self, postings: Sequence[PostingText], dense: Floats, encoder_id: str) -> list[Vector]:
        return [
            Vector(
                space_id=self._space_id,
                encoder_id=encoder_id,
                dense=dense_bytes(row),
                sketch=self.sketch.posting(posting).tobytes(),
            )
            for posting, row in zip(postings, dense, strict=True)
        ]
