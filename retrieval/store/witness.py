"""A live row picked from the pages alone: what a search must find, said by nothing that searches.

No zone map, no dictionary and no plan is asked: what is wrong with one of those shall not hide the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from penstock.retrieval.store.page import Longs, Page
from penstock.retrieval.store.pages import Table


@dataclass(frozen=True, slots=True)
class Witness:
    posting_id: str
    version: int
    revision: int
    recency: int  # epoch ms
    epoch: int  # at which it is visible


def pick(table: Table, ids: Sequence[Sequence[str]], epoch: int, turn: int, now_ms: int) -> Witness | None:
    """The `turn`-th row of a pinned epoch that expires after `now_ms`, tenants by turns; None where there is none.

    `ids`: of each page, by row. A tenant comes again after as many turns as there are tenants, with a row of another
    page if it has one.
    """
    visible = [_visible(page, epoch, now_ms) for page in table.pages]
    counts = [np.bincount(page.tenant[rows]) for page, rows in zip(table.pages, visible, strict=True)]
    held = np.zeros((len(counts), max(map(len, counts), default=0)), np.int64)  # rows, by page and tenant
    for line, some in zip(held, counts, strict=True):
        line[: len(some)] = some
    tenants = np.flatnonzero(held.any(axis=0))
    if not len(tenants):
        return None
    again, place = divmod(turn, len(tenants))
    with_some = np.flatnonzero(held[:, tenants[place]])
    number = int(with_some[again % len(with_some)])
    page = table.pages[number]
    own = visible[number][page.tenant[visible[number]] == tenants[place]]
    row = int(own[again % len(own)])
    return Witness(ids[number][row], int(page.version[row]), int(page.revision[row]), int(page.recency[row]), epoch)


def _visible(page: Page, epoch: int, now_ms: int) -> Longs:
    return np.flatnonzero((page.birth <= epoch) & (page.death > epoch) & (page.expires > now_ms))
