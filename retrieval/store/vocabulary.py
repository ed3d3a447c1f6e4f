"""Strings to small codes and back to nothing: a dictionary whose codes return when the last row that used one goes.

Written by the store's one writer. Readers may call `find` at any time: a code that is given to another string belongs
only to rows that those readers cannot see, because rows release their codes after older readers have retired.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from penstock.retrieval.search.order import stable_hash
from penstock.retrieval.store.page import KEYWORD_FIELDS, MANY_FIELDS


class Vocabulary:
    """Codes from 0, counted by use, so that turnover does not grow it."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self._words: list[str | None] = []
        self._uses: list[int] = []
        self._free: list[int] = []
        self._word_bytes = 0
        self.nbytes = self._measured()  # memory held, as Python counts it

    def __len__(self) -> int:
        return len(self._codes)

    def _measured(self) -> int:
        own = sum(sys.getsizeof(held) for held in (self._codes, self._words, self._uses, self._free))
        return own + self._word_bytes

    def words(self) -> list[str | None]:
        """A copy: the word of each code."""
        return list(self._words)

    def restore(self, words: Sequence[str | None], uses: Sequence[int]) -> None:
        """Fills an empty vocabulary: the word of each code, and how often it is used. Words not used are let go."""
        self._uses = list(uses)
        self._words = [word if used else None for word, used in zip(words, self._uses, strict=True)]
        self._codes = {word: code for code, word in enumerate(self._words) if word is not None}
        self._free = [code for code, used in enumerate(self._uses) if not used]
        self._word_bytes = sum(map(sys.getsizeof, self._codes))
        self.nbytes = self._measured()

    def find(self, word: str) -> int | None:
        """The code of `word`, if any row uses it."""
        return self._codes.get(word)

    def lacks(self, word: str) -> bool:
        """Whether a word (not empty) is one that no row uses."""
        return bool(word) and word not in self._codes

    def word(self, code: int) -> str:
        """The word of a code in use."""
        word = self._words[code]
        assert word is not None, f"code {code} is not in use"
        return word

    def acquire(self, word: str) -> int:
        """The code of `word`, used once more."""
        code = self._codes.get(word)
        if code is not None:
            self._uses[code] += 1
            return code
        if self._free:
            code = self._free.pop()
            self._words[code] = word
            self._uses[code] = 1
        else:
            code = len(self._words)
            self._words.append(word)
            self._uses.append(1)
        self._codes[word] = code
        self._word_bytes += sys.getsizeof(word)
        self.nbytes = self._measured()
        return code

    def release(self, code: int) -> None:
        """One use less; the last one frees the code."""
        self._uses[code] -= 1
        if self._uses[code] == 0:
            word = self._words[code]
            assert word is not None, f"code {code} released more often than acquired"
            del self._codes[word]
            self._words[code] = None
            self._free.append(code)
            self._word_bytes -= sys.getsizeof(word)
            self.nbytes = self._measured()


class Dictionaries:
    """The dictionary of each coded field, and the ids that are not their own lower case: one for all pages."""

    def __init__(self, hash_id: Callable[[str], int] = stable_hash) -> None:
        self.of = {field: Vocabulary() for field in (*KEYWORD_FIELDS, *MANY_FIELDS)}
        self.hash_id = hash_id
        self._ids: dict[str, tuple[int, ...]] = {}  # of a word, the hashes of other ids that are it as a keyword

    @property
    def nbytes(self) -> int:
        return (
            sum(vocabulary.nbytes for vocabulary in self.of.values()) + sys.getsizeof(self._ids) + 170 * len(self._ids)
        )

    def code(self, field: str, word: str) -> int | None:
        """The code of a word as the field's rows hold it (`keyword`), if any row does."""
        return self.of[field].find(word)

    def hashes(self, word: str) -> tuple[int, ...]:
        """The hashes of the ids that are this word but for case and blanks; of an unknown id, of the word itself."""
        return (self.hash_id(word), *self._ids.get(word, ()))

    def acquire_id(self, posting_id: str) -> None:
        """One more row has this id."""
        word = keyword(posting_id)
        if word != posting_id:
            self._ids[word] = (*self._ids.get(word, ()), self.hash_id(posting_id))

    def acquire_ids(self, posting_ids: Sequence[str]) -> None:
        """One more row has each of these."""
        together = "\n".join(posting_ids)
        if together.casefold() == together and together.split() == list(posting_ids):
            return  # each is its own lower case, without blanks
        for posting_id in posting_ids:
            if posting_id.strip().casefold() != posting_id:
                self.acquire_id(posting_id)

    def release_id(self, posting_id: str) -> None:
        """One row less has it."""
        word = keyword(posting_id)
        if word != posting_id:
            left = list(self._ids[word])
            left.remove(self.hash_id(posting_id))
            if left:
                self._ids[word] = tuple(left)
            else:
                del self._ids[word]


def keyword(value: str) -> str:
    """A keyword as it is compared: without case, without blanks around it. Empty means missing."""
    return value.strip().casefold()
