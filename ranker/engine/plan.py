"""Requests into forwards: which tokens stand where, what each may attend to, and which places are scored.

Pure numpy, no model. A forward is [prefix 1 | its items | prefix 2 | its items ...]. Requests with equal prefixes share
one. An item's positions go on from its own prefix's length, whatever stands between them. Items with one prefix stand
by length, so that a backend can take runs of equal lengths at once.

Invariants: every item of every request is in exactly one forward; an item is never split. A request may be (its prefix
is then repeated). Equal requests in equal order give equal forwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.ranker.errors import RankerError

TILE_TOKENS = 64  # of one attention tile, at most: that of kernels/prefix_attention

Tokens = NDArray[np.int32]  # [n]
_INT32, _FLOAT32 = np.dtype(np.int32), np.dtype(np.float32)


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
    scores_of: NDArray[np.int32]  # [N, 2]: request, item
    starts: NDArray[np.int32]  # [T], where each place's own segment begins: a prefix or an item
    # int32 [S, 4]: first, end, prefix first, prefix end. The places first:end, at most TILE_TOKENS, are of items that
    # follow one prefix; each attends to its whole span (empty for a prefix's own tiles), and causally from its start.
    # Those that read most keys stand first: a device takes them in turn, and what is left for the end is short.
    tiles: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.tokens)


def plan(requests: Sequence[Request], budget: int, interactive: int, *, checked: bool = False) -> list[Forward]:
    """Forwards of at most `budget` tokens; those of interactive requests come first and hold at most `interactive`.

    One item with its prefix always fits, however long. `checked`: each request went through `check` before. Raises
    MalformedRequest.
    """
    if min(budget, interactive) < 1:
        raise ValueError(f"a forward of {min(budget, interactive)} tokens: expected at least 1")
    if not checked:
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
    if not _are_tokens(request.prefix):
        raise _no_tokens("the prefix", request.prefix)
    with np.errstate(over="ignore", invalid="ignore"):
        for at, item in enumerate(request.items):
            _check_item(at, item)


def _check_item(at: int, item: Item) -> None:
    if isinstance(item, Vectors):
        if not _are_tokens(item.tail):
            raise _no_tokens(f"the tail of item {at}", item.tail)
        if not _are_vectors(item.rows):
            raise MalformedRequest(
                f"item {at}: rows of {item.rows.dtype} {list(item.rows.shape)}: expected finite float32 [m, hidden]"
            )
    elif not _are_tokens(item.tokens):
        raise _no_tokens(f"item {at}", item.tokens)
    if not len(item):
        raise MalformedRequest(f"item {at} has no token: there is no place to score; give it what closes a prompt")


def unpack(
    requests: Sequence[Request], forwards: Sequence[Forward], logits: Sequence[NDArray[np.float64]]
) -> list[NDArray[np.float64]]:
    """What each forward's backend gave, float64 [N] each, as float64 [items] a request."""
    scores = [np.full(len(request.items), np.nan) for request in requests]
    for forward, found in zip(forwards, logits, strict=True):
        for request, items, of_items in by_request(forward, found):
            scores[request][items] = of_items
    return scores


def by_request(
    forward: Forward, logits: NDArray[np.float64]
) -> Iterator[tuple[int, NDArray[np.int32], NDArray[np.float64]]]:
    """Each request that has items in the forward, with these and their logits."""
    requests, items = forward.scores_of.T
    order = np.argsort(requests, kind="stable")
    for chosen in np.split(order, np.flatnonzero(np.diff(requests[order])) + 1):
        yield int(requests[chosen[0]]), items[chosen], logits[chosen]


@dataclass(frozen=True, slots=True)
class _Group:
    """Items that share a prefix in one forward, the shortest first."""

    prefix: Tokens
    items: Sequence[Item]
    lengths: NDArray[np.int64]  # [n]
    of: NDArray[np.int32]  # [n, 2]: request, item

    def __len__(self) -> int:
        return len(self.prefix) + int(self.lengths.sum())


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
    sharing: dict[bytes, list[tuple[int, Request]]] = {}
    for number, request in requests:
        sharing.setdefault(request.prefix.tobytes(), []).append((number, request))
    return [_group(each) for each in sharing.values() if any(request.items for _, request in each)]


def _group(requests: Sequence[tuple[int, Request]]) -> _Group:
    """Of requests with one prefix."""
    items = [item for _, request in requests for item in request.items]
    numbers, counts = zip(*((number, len(request.items)) for number, request in requests), strict=True)
    of = np.stack([np.repeat(numbers, counts), _runs(np.zeros(len(counts), np.int64), np.array(counts))], axis=1)
    lengths = np.fromiter(map(len, items), np.int64, len(items))
    order = np.argsort(lengths, kind="stable")
    sorted_items = [items[at] for at in order.tolist()]
    return _Group(requests[0][1].prefix, sorted_items, lengths[order], of[order].astype(np.int32))


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
    room = budget - len(group.prefix)
    through = np.cumsum(group.lengths)  # tokens of the items up to each
    begin = 0
    while begin < len(through):
        before = int(through[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(through, before + room, side="right")))
        yield _Group(group.prefix, group.items[begin:end], group.lengths[begin:end], group.of[begin:end])
        begin = end


def _lay_out(groups: Sequence[_Group]) -> Forward:
    """Segments are each group's prefix and then its items, all one behind the other."""
    segments = np.array([1 + len(group.items) for group in groups])
    lengths = np.concatenate([part for group in groups for part in ([len(group.prefix)], group.lengths)])
    ends = np.cumsum(lengths)
    firsts = ends - lengths
    heads = np.cumsum(segments) - segments  # which segments are prefixes
    of_item = np.ones(len(lengths), np.bool_)
    of_item[heads] = False
    before = np.repeat(lengths[heads], segments)  # what a segment's positions go on from
    before[heads] = 0
    spans = np.stack([firsts, ends], axis=1).astype(np.int32)
    prefixes, items = spans[heads], spans[of_item]
    starts = np.repeat(spans[:, 0], lengths)
    tokens, embedded, rows = _contents(groups, firsts, int(ends[-1]))
    return Forward(
        tokens=tokens,
        positions=_runs(before, lengths).astype(np.int32),
        embedded=embedded,
        rows=rows,
        prefixes=prefixes,
        items=items,
        prefix_of=np.repeat(np.arange(len(groups), dtype=np.int32), segments - 1),
        last=items[:, 1].astype(np.int64) - 1,
        scores_of=np.concatenate([group.of for group in groups]),
        starts=starts,
        tiles=_tiles(prefixes, spans[heads + segments - 1, 1], starts),
    )


def _contents(
    groups: Sequence[_Group], firsts: NDArray[np.int64], total: int
) -> tuple[Tokens, NDArray[np.int64], NDArray[np.float32]]:
    """`tokens`, `embedded` and `rows` of a forward whose segments begin at `firsts`."""
    written: list[Tokens] = []
    rows: list[NDArray[np.float32]] = []
    having: list[int] = []  # which segments have rows
    for group in groups:
        written.append(group.prefix)
        for item in group.items:
            if isinstance(item, Vectors):
                having.append(len(written))
                rows.append(item.rows)
                written.append(item.tail)
            else:
                written.append(item.tokens)
    if not rows:
        return np.concatenate(written), np.zeros(0, np.int64), np.zeros((0, 0), np.float32)
    embedded = _runs(firsts[having], np.fromiter(map(len, rows), np.int64, len(rows)))
    tokens = np.zeros(total, np.int32)
    own = np.ones(total, np.bool_)
    own[embedded] = False
    tokens[own] = np.concatenate(written)
    return tokens, embedded, np.concatenate(rows)


def _tiles(prefixes: NDArray[np.int32], ends: NDArray[np.int32], starts: NDArray[np.int32]) -> NDArray[np.int32]:
    """Of each prefix and of its items, which go on to its `ends`; by keys, those of equal numbers in their order."""
    first, end = prefixes[:, 0], prefixes[:, 1]
    blocks = np.stack([first, end, first, first, end, ends, first, end], axis=1).reshape(-1, 4)
    counts = -(-(blocks[:, 1] - blocks[:, 0]) // TILE_TOKENS)
    tiles = np.repeat(blocks, counts, axis=0)
    tiles[:, 0] += TILE_TOKENS * _runs(np.zeros(len(counts), np.int64), counts).astype(np.int32)
    tiles[:, 1] = np.minimum(tiles[:, 0] + TILE_TOKENS, tiles[:, 1])
    keys = tiles[:, 3] - tiles[:, 2] + tiles[:, 1] - starts[tiles[:, 0]]
    found: NDArray[np.int32] = tiles[np.argsort(-keys, kind="stable")]
    return found


def _runs(firsts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """firsts[0], firsts[0] + 1, ... counts[0] of them, then likewise from firsts[1], and so on."""
    found: NDArray[np.int64] = np.repeat(firsts - (np.cumsum(counts) - counts), counts)
    found += np.arange(len(found))
    return found


def _are_tokens(given: NDArray[Any]) -> bool:
    return given.ndim == 1 and given.dtype == _INT32


def _are_vectors(given: NDArray[Any]) -> bool:
    if given.ndim != 2 or given.dtype != _FLOAT32:
        return False
    flat = given.reshape(-1)
    # The sum of squares is finite only where all are, and takes one pass. That of great numbers may not be.
    return math.isfinite(np.dot(flat, flat)) or bool(np.isfinite(given).all())


def _no_tokens(name: str, given: NDArray[Any]) -> MalformedRequest:
    return MalformedRequest(f"{name}: tokens of {given.dtype} {list(given.shape)}: expected int32 [n]")
