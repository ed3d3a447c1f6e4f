"""WordPiece ids of a text, quickly: the Hugging Face tokenizer for new words, a cache for the rest.

Invariant: the ids are exactly those of the tokenizer without special tokens, cut at `max_tokens`. BERT's
pre-tokeniser splits at blanks and punctuation, so for plain text (ASCII and the usual typographic marks) a regular
expression finds the same words, line by line, and a word's ids do not depend on its neighbours. Any other text goes
through the tokenizer whole.
"""

from __future__ import annotations

import functools
import re
from itertools import chain
from pathlib import Path

from tokenizers import Tokenizer

LINES_REMEMBERED = 8_192  # half of the lines of real postings stand in another posting too
LONGEST_REMEMBERED = 500  # characters
_TYPOGRAPHIC = "‐‑‒–—―‘’‚“”„†‡•…"  # punctuation to Unicode and to BERT alike
_PLAIN = re.compile(rf"[\t\n\r -~{_TYPOGRAPHIC}]*")
_PIECE = re.compile(rf"[a-z0-9]+|[!-/:-@\[-`{{-~{_TYPOGRAPHIC}]")


class WordPieces:
    """Text to token ids. Thread-safe; the only state are bounded caches of words and of lines."""

    def __init__(self, file: Path) -> None:
        """`file` is a tokenizer.json of a lower-casing BERT."""
        self._tokenizer = Tokenizer.from_file(str(file))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.vocabulary: int = self._tokenizer.get_vocab_size()
        self._word = functools.lru_cache(maxsize=131_072)(self._encode)
        self._line = functools.lru_cache(maxsize=LINES_REMEMBERED)(self._pieces)

    def ids(self, text: str, max_tokens: int) -> list[int]:
        """At most `max_tokens` ids of the text's beginning."""
        if _PLAIN.fullmatch(text) is None:
            return self._encode(text)[:max_tokens]
        out: list[int] = []
        for line in text.split("\n"):
            out += self._line(line) if len(line) <= LONGEST_REMEMBERED else self._pieces(line)
            if len(out) >= max_tokens:
                break
        return out[:max_tokens]

    def _pieces(self, line: str) -> tuple[int, ...]:
        return tuple(chain.from_iterable(map(self._word, _PIECE.findall(line.lower()))))

    def special(self, token: str) -> int:
        """The id of a token such as [CLS]. Raises KeyError when the vocabulary lacks it."""
        found: int | None = self._tokenizer.token_to_id(token)
        if found is None:
            raise KeyError(token)
        return found

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids
