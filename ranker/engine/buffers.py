"""What the packed forward on a device works in: buckets, the device's buffers, pinned memory of forwards in flight.

All sizes follow from the longest forward, so that `bytes_of` can say before anything is taken what will be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penstock.ranker.engine.blocks import BLOCK
from penstock.ranker.engine.device_arena import NO_ROOM, DeviceArena, Place, Room
from penstock.ranker.engine.pieces import NUMBERS, pieces_of
from penstock.ranker.engine.plan import Forward
from penstock.ranker.engine.weights import Layer, Weights

if TYPE_CHECKING:  # it brings Triton
    from penstock.kernels.prefix_attention.two_calls import Spans

LEAST_TOKENS = 256  # of a bucket
TOKENS_A_PLACE = 16  # of usual items, with their share of a prefix
_HEADER = 4  # int32, of which the first is how many pieces there are


@dataclass(frozen=True, slots=True)
class Bucket:
    """Sizes of one graph."""

    tokens: int
    places: int  # scored
    tiles: int

    @classmethod
    def of(cls, tokens: int, places: int, tiles: int) -> Bucket:
        """The least that holds these."""
        step = max(LEAST_TOKENS // 8, 1 << max(0, (tokens - 1).bit_length() - 4))
        wide = max(LEAST_TOKENS, -(-tokens // step) * step)
        usual = wide // 32 + 16  # half full, and some that are hardly begun
        return cls(wide, min(_power(places, wide // TOKENS_A_PLACE), wide), _power(tiles, usual))

    @classmethod
    def usual(cls, most_tokens: int) -> list[Bucket]:
        """Of forwards of usual items, up to so many tokens, the least first."""
        found = [cls.of(1, 1, 1)]
        while found[-1].tokens < most_tokens:
            found.append(cls.of(found[-1].tokens + 1, 1, 1))
        return found

    @property
    def numbers(self) -> int:
        """int32 of its inputs, before pieces and tokens."""
        return _HEADER + 4 * self.tiles + -(-self.places // 4) * 4  # a multiple of 16 bytes, as all before it


@dataclass(frozen=True, slots=True)
class Inputs:
    count: Tensor  # int32 [1], of the pieces
    pieces: Tensor  # int32 [tokens, NUMBERS]
    last: Tensor  # int32 [places]
    tiles: Tensor  # int32 [tiles, 4]
    codes: Tensor  # int32 [tokens], as the next two made of the pieces
    positions: Tensor  # int32 [tokens]
    starts: Tensor  # int32 [tokens]
    spans: Spans | None  # for attention in two calls


def _split(numbers: Any, bucket: Bucket) -> tuple[Any, Any, Any, Any]:
    """count, tiles, last, pieces: views of one array or tensor of int32. Behind the pieces stand the tokens sent."""
    behind = _HEADER + 4 * bucket.tiles
    pieces = numbers[bucket.numbers :][: NUMBERS * bucket.tokens].reshape(-1, NUMBERS)
    return numbers[:1], numbers[_HEADER:behind].reshape(-1, 4), numbers[behind : behind + bucket.places], pieces


class Buffers:
    """What a forward works in, on the device; used by one after the other. And the tables of the device's arena."""

    def __init__(self, weights: Weights, device: torch.device, tokens: int, room: Room = NO_ROOM) -> None:
        shape, wide = weights.shape, weights.answer.dtype

        def zeros(width: int, dtype: torch.dtype = weights.dtype) -> Tensor:
            return torch.zeros(tokens, width, dtype=dtype, device=device)

        self.x, self.scored = zeros(shape.hidden, wide), zeros(shape.hidden, wide)
        self.h, self.delta = zeros(shape.hidden), zeros(shape.hidden)
        self.qkv = zeros(shape.q_width + 2 * shape.kv_width)
        self.attended, self.heard = zeros(shape.q_width), zeros(shape.q_width)
        self.gate_up, self.activated = zeros(2 * shape.intermediate), zeros(shape.intermediate)
        # Those of the forward, and behind them the arena's: one table of which embeddings are gathered.
        rows = tokens + room.rows(shape.hidden)
        self.vectors = torch.zeros(rows, shape.hidden, dtype=torch.float32, device=device)
        self.kept = torch.zeros(room.blocks(), BLOCK, dtype=torch.int32, device=device)
        self.places = torch.zeros(3, tokens, dtype=torch.int32, device=device)  # codes, positions, starts
        self.logits = torch.zeros(tokens, dtype=wide, device=device)
        self.numbers = torch.zeros(most_numbers(tokens), dtype=torch.int32, device=device)

    def inputs(self, bucket: Bucket, spans: Spans | None = None) -> Inputs:
        count, tiles, last, pieces = _split(self.numbers, bucket)
        codes, positions, starts = self.places[:, : bucket.tokens]
        return Inputs(count, pieces, last, tiles, codes, positions, starts, spans)

    def arena(self, now_ms: Callable[[], int]) -> DeviceArena:
        """In the tables that are here."""
        return DeviceArena(self.kept, self.vectors[len(self.x) :], now_ms)


class Slot:
    """Pinned memory of one forward in flight: what goes in, and its logits."""

    def __init__(self, weights: Weights, device: torch.device, tokens: int) -> None:
        pinned = device.type == "cuda"
        self._numbers = torch.zeros(most_numbers(tokens), dtype=torch.int32, pin_memory=pinned)
        self._vectors = torch.zeros(tokens, weights.shape.hidden, pin_memory=pinned)
        self._logits = torch.zeros(tokens, dtype=weights.answer.dtype, pin_memory=pinned)
        self._done: torch.cuda.Event | None = None
        self._pinned = pinned

    def fill(self, forward: Forward, bucket: Bucket, buffers: Buffers, places: Sequence[Place | None]) -> None:
        """The device's inputs, once the forward that had this slot before is done. `places`: where items lie there."""
        if self._done is not None:
            self._done.synchronize()
        pieces = pieces_of(
            forward, places, begin=bucket.numbers, kept_tokens=len(self._numbers), kept_rows=len(buffers.x)
        )
        numbers, used = self._numbers.numpy(), bucket.numbers + pieces.numbers
        count, tiles, last, _ = _split(numbers, bucket)
        count[0] = len(pieces.table)
        tiles[: len(forward.tiles)], tiles[len(forward.tiles) :] = forward.tiles, 0
        last[: len(forward.last)], last[len(forward.last) :] = forward.last, 0
        tokens = bucket.numbers + pieces.table.size
        numbers[bucket.numbers : tokens], numbers[tokens:used] = pieces.table.reshape(-1), pieces.tokens
        buffers.numbers[:used].copy_(self._numbers[:used], non_blocking=True)
        if rows := len(pieces.rows):
            self._vectors.numpy()[:rows] = pieces.rows
            buffers.vectors[:rows].copy_(self._vectors[:rows], non_blocking=True)

    def read(self, buffers: Buffers, places: int) -> Launched:
        out = self._logits[:places]
        out.copy_(buffers.logits[:places], non_blocking=True)
        if not self._pinned:
            return Launched(out, None)
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's
        self._done.record()
        return Launched(out, self._done)


class Launched:
    """A forward in flight. `wait` once, from the thread that launched it."""

    def __init__(self, logits: Tensor, done: torch.cuda.Event | None) -> None:
        self._logits, self._done = logits, done

    def wait(self) -> NDArray[np.float64]:
        """Log-odds, float64 [N], in the forward's order, the caller's own. Raises what the device raises."""
        if self._done is not None:
            self._done.synchronize()
        found: NDArray[np.float64] = self._logits.to(torch.float64, copy=True).numpy()  # the slot is filled again
        return found


def bytes_of(weights: Weights, tokens: int, longest: int) -> int:
    """What a backend takes of its device for forwards of so many tokens and prompts as long as `longest`; its arena
    apart."""
    shape, value, wide = weights.shape, weights.dtype.itemsize, weights.answer.dtype.itemsize
    held = [weights.embedding, weights.norm, weights.answer]
    for layer in weights.layers:
        held += [tensor for name in Layer.__slots__ if (tensor := getattr(layer, name)) is not None]
    narrow = 2 * shape.hidden + 3 * shape.q_width + 2 * shape.kv_width + 3 * shape.intermediate
    a_token = narrow * value + shape.hidden * (2 * wide + 4) + wide
    return (
        sum(tensor.nbytes for tensor in held)
        + tokens * a_token
        + 4 * (most_numbers(tokens) + 3 * tokens)
        + wide * longest * shape.head_dim
    )


def most_numbers(tokens: int) -> int:
    """int32 of a forward's inputs at most: then each place is a piece and its token is sent."""
    return Bucket(tokens, tokens, _power(tokens, LEAST_TOKENS)).numbers + (NUMBERS + 1) * tokens


def _power(count: int, least: int) -> int:
    """`least`, or a power of two where that is not enough."""
    return least if count <= least else 1 << (count - 1).bit_length()
