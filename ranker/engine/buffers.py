"""What the packed forward on a device works in: buckets, the device's buffers, pinned memory of forwards in flight.

All sizes follow from the longest forward, so that `bytes_of` can say before anything is taken what will be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penstock.ranker.engine.plan import Forward
from penstock.ranker.engine.weights import Layer, Weights

if TYPE_CHECKING:  # it brings Triton
    from penstock.kernels.prefix_attention.two_calls import Spans

LEAST_TOKENS = 256  # of a bucket
TOKENS_A_PLACE = 16  # of usual items, with their share of a prefix


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
        """int32 of its inputs."""
        return 3 * self.tokens + self.places + 4 * self.tiles


@dataclass(frozen=True, slots=True)
class Inputs:
    codes: Tensor  # int32 [tokens]
    positions: Tensor  # int32 [tokens]
    starts: Tensor  # int32 [tokens]
    last: Tensor  # int32 [places]
    tiles: Tensor  # int32 [tiles, 4]
    spans: Spans | None  # for attention in two calls


def _split(numbers: Any, bucket: Bucket) -> tuple[Any, Any, Any, Any, Any]:
    """codes, positions, starts, tiles, last: views of one array or tensor of int32."""
    tokens = bucket.tokens
    behind = 3 * tokens + 4 * bucket.tiles
    codes, positions, starts = numbers[: 3 * tokens].reshape(3, tokens)
    return codes, positions, starts, numbers[3 * tokens : behind].reshape(-1, 4), numbers[behind : bucket.numbers]


class Buffers:
    """What a forward works in, on the device; used by one after the other."""

    def __init__(self, weights: Weights, device: torch.device, tokens: int) -> None:
        shape, wide = weights.shape, weights.answer.dtype

        def zeros(width: int, dtype: torch.dtype = weights.dtype) -> Tensor:
            return torch.zeros(tokens, width, dtype=dtype, device=device)

        self.x, self.scored = zeros(shape.hidden, wide), zeros(shape.hidden, wide)
        self.h, self.delta = zeros(shape.hidden), zeros(shape.hidden)
        self.qkv = zeros(shape.q_width + 2 * shape.kv_width)
        self.attended, self.heard = zeros(shape.q_width), zeros(shape.q_width)
        self.gate_up, self.activated = zeros(2 * shape.intermediate), zeros(shape.intermediate)
        self.vectors = zeros(shape.hidden, torch.float32)
        self.logits = torch.zeros(tokens, dtype=wide, device=device)
        self.numbers = torch.zeros(most_numbers(tokens), dtype=torch.int32, device=device)

    def inputs(self, bucket: Bucket, spans: Spans | None = None) -> Inputs:
        codes, positions, starts, tiles, last = _split(self.numbers, bucket)
        return Inputs(codes, positions, starts, last, tiles, spans)


class Slot:
    """Pinned memory of one forward in flight: what goes in, and its logits."""

    def __init__(self, weights: Weights, device: torch.device, tokens: int) -> None:
        pinned = device.type == "cuda"
        self._numbers = torch.zeros(most_numbers(tokens), dtype=torch.int32, pin_memory=pinned)
        self._vectors = torch.zeros(tokens, weights.shape.hidden, pin_memory=pinned)
        self._logits = torch.zeros(tokens, dtype=weights.answer.dtype, pin_memory=pinned)
        self._done: torch.cuda.Event | None = None
        self._pinned = pinned

    def fill(self, forward: Forward, bucket: Bucket, buffers: Buffers) -> None:
        """The device's inputs, once the forward that had this slot before is done."""
        if self._done is not None:
            self._done.synchronize()
        tokens = len(forward)
        codes, positions, starts, tiles, last = _split(self._numbers.numpy(), bucket)
        for part, values in ((codes, forward.tokens), (positions, forward.positions), (starts, forward.starts)):
            part[:tokens], part[tokens:] = values, 0
        codes[forward.embedded] = -1 - np.arange(len(forward.embedded), dtype=np.int32)
        tiles[: len(forward.tiles)], tiles[len(forward.tiles) :] = forward.tiles, 0
        last[: len(forward.last)], last[len(forward.last) :] = forward.last, 0
        used = bucket.numbers
        buffers.numbers[:used].copy_(self._numbers[:used], non_blocking=True)
        if count := len(forward.rows):
            self._vectors.numpy()[:count] = forward.rows
            buffers.vectors[:count].copy_(self._vectors[:count], non_blocking=True)

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
    """What a backend takes of its device for forwards of so many tokens and prompts as long as `longest`."""
    shape, value, wide = weights.shape, weights.dtype.itemsize, weights.answer.dtype.itemsize
    held = [weights.embedding, weights.norm, weights.answer]
    for layer in weights.layers:
        held += [tensor for name in Layer.__slots__ if (tensor := getattr(layer, name)) is not None]
    narrow = 2 * shape.hidden + 3 * shape.q_width + 2 * shape.kv_width + 3 * shape.intermediate
    a_token = narrow * value + shape.hidden * (2 * wide + 4) + wide
    return (
        sum(tensor.nbytes for tensor in held)
        + tokens * a_token
        + 4 * most_numbers(tokens)
        + wide * longest * shape.head_dim
    )


def most_numbers(tokens: int) -> int:
    return Bucket(tokens, tokens, _power(tokens, LEAST_TOKENS)).numbers


def _power(count: int, least: int) -> int:
    """`least`, or a power of two where that is not enough."""
    return least if count <= least else 1 << (count - 1).bit_length()
