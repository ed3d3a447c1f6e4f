"""Pages written by hand for tests of filters and zone maps: rows from updates, read off by the oracle's `value_of`.

Rows that nobody wrote hold rubbish, as freed ones do.
"""

import itertools

import numpy as np
from store_oracle import tie, value_of

from penstock.retrieval.store.page import ABSENT, BLOCK, INLINE, NEVER, make_page
from penstock.retrieval.store.zones import Zones
from penstock.schemas.filters import FIELDS


def folded(word):
    return word.strip().casefold()


class SmallPages:
    """`updates[i]` lies in slot `slots[i]`. `codes` yields the code of every new word, whatever its field."""

    def __init__(self, updates, slots=None, *, pages=2, blocks=3, codes=None):
        self.page_rows = blocks * BLOCK
        self.pages = tuple(make_page(number * self.page_rows, self.page_rows) for number in range(pages))
        for page in self.pages:
            _litter(page)
        self.zones = tuple(Zones(page) for page in self.pages)
        self.updates = dict(zip(range(len(updates)) if slots is None else slots, updates, strict=True))
        self.tenants = {}
        self._codes = itertools.count() if codes is None else iter(codes)
        self._dictionaries = {}
        self._past_eight = []  # (field, code, slot)
        for slot, update in self.updates.items():
            page, row = self.pages[slot // self.page_rows], slot % self.page_rows
            self._write(page, row, slot, update)
        for page, zone in zip(self.pages, self.zones, strict=True):
            zone.widen(np.asarray([slot - page.first for slot in self.slots_of(page)], np.int64))

    def slots_of(self, page):
        return [slot for slot in self.updates if page.first <= slot < page.first + page.rows]

    def _coded(self, field, word):
        words = self._dictionaries.setdefault(field, {})
        if word not in words:
            words[word] = next(self._codes)
        return words[word]

    def _write(self, page, row, slot, update):
        page.ties[row] = int.from_bytes(tie(update.posting_id), "big")
        page.expires[row] = NEVER if update.expires_at is None else update.expires_at
        page.tenant[row] = self.tenants.setdefault(update.tenant, len(self.tenants))
        for field, codes in page.codes.items():
            value = folded(_value(update, field) or "")
            codes[row] = self._coded(field, value) if value else ABSENT
        for field, symbols in page.symbols.items():
            value = value_of(update, field)
            symbols[row] = 0 if value is None else list(FIELDS[field].symbols).index(value)
        for field, numbers in page.numbers.items():
            value = value_of(update, field)
            numbers[row] = np.nan if value is None else value
        for field, places in page.places.items():
            places[:, row] = value_of(update, field) or (np.nan, np.nan)
        for field, many in page.many.items():
            words = dict.fromkeys(folded(word) for word in value_of(update, field) if word.strip())
            coded = [self._coded(field, word) for word in words]
            many[row] = (coded + [ABSENT] * INLINE)[:INLINE]
            page.counts[field][row] = len(coded)
            self._past_eight += [(field, code, slot) for code in coded[INLINE:]]

    # --- what a program asks of the store ---------------------------------------------------------------------------

    def code(self, field, word):
        return self._dictionaries.get(field, {}).get(word)

    def hashes(self, word):
        return [
            int.from_bytes(tie(update.posting_id), "big")
            for update in self.updates.values()
            if folded(update.posting_id) == word
        ]

    def rows_with(self, field, codes):
        wanted = set(codes.tolist())
        found = {slot for of, code, slot in self._past_eight if of == field and code in wanted}
        return np.asarray(sorted(found), np.int64)


def _value(update, field):
    return value_of(update, field) if update.attributes.location is not None or "location" not in field else None


def _litter(page):
    rubbish = np.random.default_rng(page.first)
    for arrays, high in ((page.codes, 9), (page.symbols, 3), (page.many, 9), (page.counts, 12)):
        for array in arrays.values():
            array[:] = rubbish.integers(0, high, array.shape)
    for array in (*page.numbers.values(), *page.places.values()):
        array[:] = rubbish.uniform(-90, 90, array.shape)
    page.expires[:] = NEVER
    page.tenant[:] = rubbish.integers(0, 9, page.rows)
