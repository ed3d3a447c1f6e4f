"""The asymmetric posting encoder: a table of token vectors aligned with the transformer's space. numpy only.

A posting's vector is the unit-norm sum over its tokens of row[token] * scale[token] * weight[position]. Rows are
int8; `scale` holds both the row's quantisation step and the token's learned weight; the learned linear layer is
already folded into the rows. Title and attributes (the head) and the description (the body) have their own positions.
The idea of token vectors taken from a transformer's own outputs is model2vec's (Minish Lab, 2024); the asymmetric fit
against the transformer is ../shared/research/encoders.md, made by training/posting_encoder.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from penstock.retrieval.encoder.planes import Floats, normalised
from penstock.retrieval.encoder.template import attribute_text
from penstock.retrieval.encoder.wordpieces import WordPieces
from penstock.schemas.events import PostingText

HEAD_TOKENS = 48  # of title and attributes
BODY_TOKENS = 208  # of the description
BODY_CHARS = 2_048  # read of the description, about 400 tokens: bounds the work, not the result
POSITIONS = HEAD_TOKENS + BODY_TOKENS


class TokenTable:
    """Postings to unit vectors. Read-only after construction."""

    def __init__(self, pieces: WordPieces, rows: npt.NDArray[np.int8], scale: Floats, position_weight: Floats) -> None:
        """rows int8 [vocabulary, D], scale float32 [vocabulary], position_weight float32 [POSITIONS]."""
        if rows.shape[0] != pieces.vocabulary or scale.shape != rows.shape[:1] or position_weight.shape != (POSITIONS,):
            raise ValueError(
                f"token table: got rows {rows.shape}, scale {scale.shape}, position_weight {position_weight.shape}; "
                f"expected [{pieces.vocabulary}, D], [{pieces.vocabulary}] and [{POSITIONS}]"
            )
        self._pieces = pieces
        self._rows = rows
        self._scale = scale.astype(np.float32)
        self._position_weight = position_weight.astype(np.float32)
        self.dimensions = int(rows.shape[1])

    def encode(self, postings: Sequence[PostingText]) -> Floats:
        """Unit vectors, float32 [len(postings), D]; a posting without a single token gets a zero vector."""
        out = np.zeros((len(postings), self.dimensions), dtype=np.float32)
        for row, posting in enumerate(postings):
            tokens, positions = posting_tokens(self._pieces, attribute_text(posting), posting.description)
            if tokens:
                index = np.asarray(tokens)
                weight = self._scale[index] * self._position_weight[np.asarray(positions)]
                out[row] = weight @ self._rows[index].astype(np.float32)
        return normalised(out)


def posting_tokens(pieces: WordPieces, head: str, body: str) -> tuple[list[int], list[int]]:
    """Token ids and positions in [0, POSITIONS) of a head and a body, each cut at its own number of tokens."""
    first = pieces.ids(head, HEAD_TOKENS)
    rest = pieces.ids(body[:BODY_CHARS], BODY_TOKENS)
    return first + rest, [*range(len(first)), *range(HEAD_TOKENS, HEAD_TOKENS + len(rest))]
