"""Requests into forwards: which tokens stand where, what each may attend to, and which places are scored.

Pure numpy, no model. A forward is [prefix 1 | its items | prefix 2 | its items ...]. Requests with equal prefixes share
one. An item's positions go on from its own prefix's length, whatever stands between them. Items with one prefix stand
by length, so that a backend can take runs of equal lengths at once.

Invariants: every item of every request is in exactly one forward; an item is never split. A request may be (its prefix
is then repeated). Equal requests in equal order give equal forwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from penstock.ranker.errors import RankerError

TILE_TOKENS = 64  # of one attention tile, at most: that of kernels/prefix_attention

Tokens = NDArray[np.int32]  # [n]


class MalformedRequest(RankerError, ValueError):
    """A request that no model can score: nothing to score in an item, wrong shapes or types, numbers not finite."""


@dataclass(frozen=True, slots=True)
class Text:
    """An item as tokens, with what closes its prompt."""

    tokens: Tokens

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class Vectors:
    """An item as vectors in place of embedded text, before `tail`."""

    rows: NDArray[np.float32]  # [m, hidden]
    tail: Tokens

    def __len__(self) -> int:
        return len(self.rows) + len(self.tail)


Item = Text | Vectors


@dataclass(frozen=True, slots=True)
class Request:
    """Items that are scored after one prefix, which may be empty. `interactive`: somebody waits for it."""

    prefix: Tokens
    items: tuple[Item, ...]
    interactive: bool = False


@dataclass(frozen=True, slots=True)
class Forward:
    """T tokens in P prefixes, N items and S tiles. Spans are [first, end)."""

    tokens: Tokens  # [T]; 0 where an embedding stands
    positions: NDArray[np.int32]  # [T]
    embedded: NDArray[np.int64]  # [E], the places of `rows`, ascending
    rows: NDArray[np.float32]  # [E, hidden]; [0, 0] when there are none
    prefixes: NDArray[np.int32]  # [P, 2], in order; its items follow each
    items: NDArray[np.int32]  # [N, 2], in order
    prefix_of: NDArray[np.int32]  # [N], index into `prefixes`, ascending
    last: NDArray[np.int64]  # [N], the place that is scored
    scores_of: tuple[tuple[int, int], ...]  # [N], (request, item)
    starts: NDArray[np.int32]  # [T], where each place's own segment begins: a prefix or an item
    # int32 [S, 4]: first, end, prefix first, prefix end. The places first:end, at most TILE_TOKENS, are of items that
    # follow one prefix; each attends to its whole span (empty for a prefix's own tiles), and causally from its start.
    tiles: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.tokens)


def plan(requests: Sequence[Request], budget: int, interactive: int) -> list[Forward]:
    """Forwards of at most `budget` tokens; those of interactive requests come first and hold at most `interactive`.

    One item with its prefix always fits, however long. Raises MalformedRequest.
    """
    if min(budget, interactive) < 1:
        raise ValueError(f"a forward of {min(budget, interactive)} tokens: expected at least 1")
    for request in requests:
        check(request)
    if len(widths := {item.rows.shape[1] for one in requests for item in one.items if isinstance(item, Vectors)}) > 1:
        raise MalformedRequest(f"items as vectors of {sorted(widths)} numbers: a model has one hidden size")
    made = []
    for urgent, room in ((True, interactive), (False, budget)):
        chosen = [(number, request) for number, request in enumerate(requests) if request.interactive is urgent]
        made += [_lay_out(bin_.parts) for bin_ in _packed(_groups(chosen), room)]
    return made


def check(request: Request) -> None:
    """Raises MalformedRequest: nothing to score in an item, wrong shapes or types, numbers not finite."""
    _check_tokens("the prefix", request.prefix)
    for at, item in enumerate(request.items):
        if isinstance(item, Vectors):
            _check_tokens(f"the tail of item {at}", item.tail)
            rows = item.rows
            if rows.ndim != 2 or rows.dtype != np.float32 or not np.isfinite(rows).all():
                raise MalformedRequest(
                    f"item {at}: rows of {rows.dtype} {list(rows.shape)}: expected finite float32 [m, hidden]"
                )
        else:
            _check_tokens(f"item {at}", item.tokens)
        if not len(item):
            raise MalformedRequest(f"item {at} has no token: there is no place to score; give it what closes a prompt")


def unpack(
    requests: Sequence[Request], forwards: Sequence[Forward], logits: Sequence[NDArray[np.float64]]
) -> list[NDArray[np.float64]]:
    """What each forward's backend gave, float64 [N] each, as float64 [items] a request."""
    scores = [np.full(len(request.items), np.nan) for request in requests]
    for forward, found in zip(forwards, logits, strict=True):
        for (request, item), logit in zip(forward.scores_of, found, strict=True):
            scores[request][item] = logit
    return scores


@dataclass(frozen=True, slots=True)
class _Placed:
    item: Item
    of: tuple[int, int]  # request, item


@dataclass(frozen=True, slots=True)
class _Group:
    """Items that share a prefix in one forward."""

    prefix: Tokens
    items: Sequence[_Placed]

    def __len__(self) -> int:
        return len(self.prefix) + sum(len(each.item) for each in self.items)


@dataclass(slots=True)
class _Bin:
    """A forward in the making."""

    parts: list[_Group] = field(default_factory=list)
    tokens: int = 0

    def put(self, group: _Group) -> None:
        self.parts.append(group)
        self.tokens += len(group)


def _groups(requests: Sequence[tuple[int, Request]]) -> list[_Group]:
    """One group a distinct prefix, in order of first use; its items by length, then in the order they came."""
    prefixes: dict[bytes, Tokens] = {}
    items: dict[bytes, list[_Placed]] = {}
    for number, request in requests:
        key = request.prefix.tobytes()
        prefixes.setdefault(key, request.prefix)
        items.setdefault(key, []).extend(_Placed(item, (number, at)) for at, item in enumerate(request.items))
    return [
        _Group(prefixes[key], sorted(placed, key=lambda each: len(each.item)))
        for key, placed in items.items()
        if placed
    ]


def _packed(groups: Sequence[_Group], budget: int) -> list[_Bin]:
    """First fit: a group goes whole into the first forward with room; one longer than a forward is split."""
    bins: list[_Bin] = []
    for group in groups:
        for part in _split(group, budget):
            tokens = len(part)
            chosen = next((bin_ for bin_ in bins if bin_.tokens + tokens <= budget), None)
            if chosen is None:
                bins.append(chosen := _Bin())
            chosen.put(part)
    return bins


def _split(group: _Group, budget: int) -> Iterator[_Group]:
    """Parts of at most `budget` tokens, or of one item."""
    part: list[_Placed] = []
    tokens = len(group.prefix)
    for placed in group.items:
        if part and tokens + len(placed.item) > budget:
            yield _Group(group.prefix, part)
            part, tokens = [], len(group.prefix)
        part.append(placed)
        tokens += len(placed.item)
    yield _Group(group.prefix, part)


def _lay_out(groups: Sequence[_Group]) -> Forward:
    pieces: list[Tokens] = []
    positions: list[Tokens] = []
    embedded: list[NDArray[np.int64]] = []
    rows: list[NDArray[np.float32]] = []
    prefixes: list[tuple[int, int]] = []
    spans: list[tuple[int, int]] = []
    prefix_of: list[int] = []
    starts: list[Tokens] = []
    tiles: list[tuple[int, int, int, int]] = []
    place = 0
    for number, group in enumerate(groups):
        length = len(group.prefix)
        prefix = (place, place + length)
        prefixes.append(prefix)
        pieces.append(group.prefix)
        positions.append(np.arange(length, dtype=np.int32))
        starts.append(np.full(length, place, np.int32))
        tiles += _tiles(*prefix, (prefix[0], prefix[0]))
        place += length
        for placed in group.items:
            item, end = placed.item, place + len(placed.item)
            if isinstance(item, Vectors):
                embedded.append(np.arange(place, place + len(item.rows), dtype=np.int64))
                rows.append(item.rows)
                pieces += [np.zeros(len(item.rows), np.int32), item.tail]
            else:
                pieces.append(item.tokens)
            positions.append(np.arange(length, length + len(item), dtype=np.int32))
            spans.append((place, end))
            prefix_of.append(number)
            starts.append(np.full(len(item), place, np.int32))
            place = end
        tiles += _tiles(prefix[1], place, prefix)
    items = np.array(spans, np.int32).reshape(-1, 2)
    return Forward(
        tokens=np.concatenate(pieces),
        positions=np.concatenate(positions),
        embedded=np.concatenate(embedded) if embedded else np.zeros(0, np.int64),
        rows=np.concatenate(rows) if rows else np.zeros((0, 0), np.float32),
        prefixes=np.array(prefixes, np.int32).reshape(-1, 2),
        items=items,
        prefix_of=np.array(prefix_of, np.int32),
        last=items[:, 1].astype(np.int64) - 1,
        scores_of=tuple(placed.of for group in groups for placed in group.items),
        starts=np.concatenate(starts),
        tiles=np.array(tiles, np.int32).reshape(-1, 4),
    )


def _tiles(first: int, end: int, prefix: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    for start in range(first, end, TILE_TOKENS):
        yield start, min(start + TILE_TOKENS, end), *prefix


def _check_tokens(name: str, tokens: Tokens) -> None:
    if tokens.ndim != 1 or tokens.dtype != np.int32:
        raise MalformedRequest(f"{name}: tokens of {tokens.dtype} {list(tokens.shape)}: expected int32 [n]")
