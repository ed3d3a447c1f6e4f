"""Texts into the tokens of a prompt: prefix = before + query + between, item = item text + after.

The pieces are tokenised apart, here as in training, so an item's tokens depend on neither the query nor its neighbours
and can be kept. What stands in a query or posting is text only: a piece of it that reads like a special token (the end
of a turn, say) is tokenised as the characters it is made of; only the template has special tokens.

A text is read up to a number of tokens, and of characters so that a giant one costs no more to tokenise than it can
matter; either cut is reported. Tokens the tokenizer does not know are read as its unknown token.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.ranker.backends.prompt import MAX_ITEM_TOKENS, MAX_QUERY_TOKENS, Template, read_template
from penstock.ranker.engine.errors import UnreadableText
from penstock.ranker.errors import UnfitScorer

CHARACTERS_A_TOKEN = 16  # read of a text, for each token that may come of it
SLICE = 32  # texts a worker thread tokenises at a time
_ODD = "\x01\u0378\U0010ffff\u00e9"  # characters that no vocabulary has as words


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """One prefix or item, whole."""

    tokens: NDArray[np.int32]  # [n]
    cut: bool = False  # the text had more than was read
    empty: bool = False  # there was no text: the tokens are the template's alone
    unknown: bool = False  # there was text, and the tokenizer knows nothing of it


class Tokenizer:
    """A model's tokenizer and the wording of its prompts. Safe to share between threads; owns `threads` of its own.

    `yes` and `no` are the ids of the two answers.
    """

    def __init__(self, directory: Path, template: Template | None = None, *, threads: int = 1) -> None:
        """`template` None: the directory's own, else the shipped one.

        Raises UnfitScorer: no tokenizer, one without yes or no, one that fails on unknown text or does not belong to
        the model.
        """
        self.template = template or read_template(directory)
        whole = _load(directory)
        _check_vocabulary(directory, whole)
        self.yes, self.no = (_single_token(whole, word, directory) for word in ("yes", "no"))
        self._unknown = _unknown_token(whole)
        self._before, self._between, self._after = (
            np.array(whole.encode(piece, add_special_tokens=False).ids, dtype=np.int32)
            for piece in (self.template.before, self.template.between, self.template.after)
        )
        if not len(self._after):
            raise UnfitScorer(f"{directory}: its template ends in nothing: an item without text has no place to score")
        self._text = copy.deepcopy(whole)
        self._text.encode_special_tokens = True  # read special tokens as text
        try:
            self._text.encode(_ODD, add_special_tokens=False)
        except Exception as error:
            raise UnfitScorer(
                f"{directory}: its tokenizer fails on text that it does not know ({error}); "
                "it needs an unknown token or a vocabulary of bytes"
            ) from error
        self.identity = _identity(whole, self.template)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tokenise")

    def prefix(self, query: str) -> Encoded:
        """What every item of a request shares. Raises UnreadableText."""
        [encoded] = self._encode([query], MAX_QUERY_TOKENS)
        return _framed(self._before, encoded, self._between)

    def items(self, texts: Sequence[str]) -> list[Encoded]:
        """One a text, in order. Waits for the worker threads where there is more than one slice.

        Raises UnreadableText.
        """
        slices = [texts[start : start + SLICE] for start in range(0, len(texts), SLICE)]
        if len(slices) == 1:
            return self._items(texts)
        return [item for part in self._pool.map(self._items, slices) for item in part]

    @property
    def longest(self) -> int:
        """Tokens a prompt may have, at most."""
        frame = len(self._before) + len(self._between) + len(self._after)
        return frame + MAX_QUERY_TOKENS + MAX_ITEM_TOKENS

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _items(self, texts: Sequence[str]) -> list[Encoded]:
        nothing = np.empty(0, dtype=np.int32)
        return [_framed(nothing, encoded, self._after) for encoded in self._encode(texts, MAX_ITEM_TOKENS)]

    def _encode(self, texts: Sequence[str], limit: int) -> list[Encoded]:
        read = [_well_formed(text[: limit * CHARACTERS_A_TOKEN]) for text in texts]
        try:
            encodings = self._text.encode_batch_fast(read, add_special_tokens=False)
        except Exception as error:
            raise UnreadableText(
                f"the tokenizer failed on one of {len(texts)} texts: {type(error).__name__}: {error}"
            ) from error
        encoded = []
        for text, encoding in zip(texts, encodings, strict=True):
            ids = np.array(encoding.ids, dtype=np.int32)
            encoded.append(
                Encoded(
                    tokens=ids[:limit],
                    cut=len(ids) > limit or len(text) > limit * CHARACTERS_A_TOKEN,
                    empty=not len(ids),
                    unknown=len(ids) > 0 and self._unknown is not None and bool((ids == self._unknown).all()),
                )
            )
        return encoded


def answers(directory: Path) -> tuple[int, int]:
    """The tokens of yes and no. Raises UnfitScorer."""
    whole = _load(directory)
    return _single_token(whole, "yes", directory), _single_token(whole, "no", directory)


def notes(query: Encoded, items: Sequence[Encoded]) -> Iterator[str]:
    """What a result says of its input: what was cut, what had no text, what the tokenizer knows nothing of."""
    if query.cut:
        yield f"language model: query cut to {MAX_QUERY_TOKENS} tokens"
    if query.empty:
        yield "language model: the query has no text"
    if query.unknown:
        yield "language model: the query has no known token"
    if number := sum(item.cut for item in items):
        yield f"language model: {number} postings cut to {MAX_ITEM_TOKENS} tokens"
    if number := sum(item.empty for item in items):
        yield f"language model: {number} postings without text"
    if number := sum(item.unknown for item in items):
        yield f"language model: {number} postings without a known token"


def identity_of(directory: Path, tokenizer: Tokenizer) -> str:
    """12 hex digits of weights, config, tokenizer, template and limits: equal ones score equally."""
    digest = hashlib.blake2b(tokenizer.identity.encode(), digest_size=6)
    for path in [directory / "config.json", *sorted(directory.glob("*.safetensors"))]:
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _framed(before: NDArray[np.int32], encoded: Encoded, after: NDArray[np.int32]) -> Encoded:
    tokens = np.concatenate([before, encoded.tokens, after])
    tokens.flags.writeable = False
    return Encoded(tokens, encoded.cut, encoded.empty, encoded.unknown)


def _well_formed(text: str) -> str:
    """Text without lone surrogates, which JSON can carry and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def _load(directory: Path) -> Any:
    """The directory's tokenizer as a tokenizers.Tokenizer that neither pads nor cuts."""
    from transformers import AutoTokenizer

    if not (directory / "config.json").is_file():
        raise UnfitScorer(
            f"{directory} has no config.json; expected the directory of a causal language model "
            "(config.json, tokenizer.json, model.safetensors)"
        )
    try:
        loaded = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        tokenizer = copy.deepcopy(loaded.backend_tokenizer)
    except Exception as error:  # transformers raises whatever the directory leads it to
        raise UnfitScorer(
            f"{directory} has no tokenizer that can be used: {type(error).__name__}: {error}; expected the "
            "tokenizer.json that the model was trained with"
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _check_vocabulary(directory: Path, tokenizer: Any) -> None:
    try:
        vocabulary = int(json.loads((directory / "config.json").read_text(encoding="utf-8"))["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnfitScorer(
            f"{directory}/config.json does not say how many tokens the model knows "
            f"({type(error).__name__}: {error}); expected vocab_size"
        ) from error
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= vocabulary:
        raise UnfitScorer(
            f"{directory}: the tokenizer has tokens up to {largest}, the model {vocabulary} from 0: "
            "they do not belong together"
        )


def _single_token(tokenizer: Any, word: str, directory: Path) -> int:
    ids = tokenizer.encode(word, add_special_tokens=False).ids
    if len(ids) != 1 or ids[0] == _unknown_token(tokenizer):
        raise UnfitScorer(
            f"{directory}: its tokenizer has no single token for {word!r} (got {ids}); "
            "a yes/no scorer needs one for each"
        )
    return int(ids[0])


def _unknown_token(tokenizer: Any) -> int | None:
    token = getattr(tokenizer.model, "unk_token", None)
    return None if token is None else tokenizer.token_to_id(token)


def _identity(tokenizer: Any, template: Template) -> str:
    """12 hex digits of tokenizer, template and limits: equal ones make equal tokens of a text."""
    form = [template.before, template.between, template.after, MAX_QUERY_TOKENS, MAX_ITEM_TOKENS, CHARACTERS_A_TOKEN]
    return hashlib.blake2b((tokenizer.to_str() + json.dumps(form)).encode(), digest_size=6).hexdigest()
