"""What an encoder is: postings and queries in, rows and query vectors of one space out.

Contract: the score of a posting for a query is `dense . q_dense + sketch . q_lexical`, whoever made either side, as
long as their `space_id` is the same. `encoder_id` says who made a vector; it belongs in every cache key.
A text's vector does not depend on what else was in its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from penstock.schemas.events import PostingText, QueryVector, Vector


class Encoder(Protocol):
    """Text to vectors. Callable from several threads; no state but caches."""

    @property
    def space_id(self) -> str:
        """Which vectors may be compared with each other."""
        ...

    @property
    def encoder_id(self) -> str:
        """Model, template, tokenizer and table hashes of whoever encodes postings here."""
        ...

    def encode_postings(self, postings: Sequence[PostingText]) -> list[Vector]:
        """One vector a posting, in order: dense bfloat16 [D] of unit norm, sketch int8 [1024] or None."""
        ...

    def encode_queries(self, texts: Sequence[str]) -> list[QueryVector]:
        """One vector a text, in order: dense float32 [D] of unit norm, lexical float32 [1024] or None.

        `lexical` carries the hybrid weight and the sketch's scale, so that the plain sum of the two inner products
        is the hybrid score.
        """
        ...
