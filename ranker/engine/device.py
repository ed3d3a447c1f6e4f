"""The packed forward by kernels on a device: what ranker/engine/forward.py computes on a CPU.

    1. fill      tokens, positions, starts, tiles and scored places: one block of pinned memory, one copy
    2. launch    on CUDA one graph, captured for the forward's bucket; in the interpreter kernel by kernel
    3. read      the logits, one copy behind the launch. `Launched.wait` waits for it: nothing else waits for the device

A layer is nine launches: add + RMSNorm, product, norms and positions of queries and keys, attention, product, add +
RMSNorm, product, SwiGLU, product; products are torch's, everything between is kernels/. In the last layer only the
scored places go on behind attention.

Buckets: tokens up to an eighth more than there are, places and tiles as many as are usual of so many tokens, or else a
power of two; those of usual forwards are captured ahead (`warm`). What is padded is computed and read by nobody: every
step but attention is a matter of single tokens, and no tile of attention names a padded one. All graphs work in one set
of buffers, sized for the longest forward when the backend is made, so a forward that was admitted finds its memory
there. Two forwards may be in flight: pinned memory is there twice, and the device takes them in order.

Invariant: as in ranker/engine/forward.py, a probability depends on its prompt alone, within BOUND.
"""

from __future__ import annotations

import gc
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penstock.kernels.add_rmsnorm.triton import add_rmsnorm
from penstock.kernels.gather_embeddings.triton import gather_embeddings
from penstock.kernels.prefix_attention.triton import prefix_attention
from penstock.kernels.prefix_attention.two_calls import Spans, two_calls
from penstock.kernels.qk_norm_rope.triton import qk_norm_rope
from penstock.kernels.runtime import INTERPRETING
from penstock.kernels.swiglu.triton import swiglu
from penstock.kernels.yes_no_head.triton import yes_no_head
from penstock.ranker.engine.forward import check_fits
from penstock.ranker.engine.plan import Forward
from penstock.ranker.engine.weights import Layer, Weights
from penstock.ranker.errors import UnfitScorer

LEAST_TOKENS = 256  # of a bucket
TOKENS_A_PLACE = 16  # of usual items, with their share of a prefix
IN_FLIGHT = 2
GRAPHS = 64  # that are kept; of more, the one that rested longest goes
SPARE_BYTES = 256 << 20  # for graphs, and what products work in

Capture = Callable[[Callable[[], None]], Callable[[], None]]
Attention = Literal["tiles", "two_calls"]


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


class Launched:
    """A forward in flight. `wait` once, from the thread that launched it."""

    def __init__(self, logits: Tensor, done: torch.cuda.Event | None) -> None:
        self._logits, self._done = logits, done

    def wait(self) -> NDArray[np.float64]:
        """Log-odds, float64 [N], in the forward's order. Raises what the device raises."""
        if self._done is not None:
            self._done.synchronize()
        found: NDArray[np.float64] = self._logits.double().numpy()
        return found


class DeviceBackend:
    """Forwards of at most `most_tokens`, launched in order by one thread at a time."""

    in_flight = IN_FLIGHT

    def __init__(
        self,
        weights: Weights,
        device: torch.device,
        most_tokens: int,
        *,
        longest: int | None = None,
        capture: Capture | None = None,
        attention: Attention = "tiles",
    ) -> None:
        """`weights` may lie anywhere; they are copied. `longest`: of a prompt, the model's own by default. `capture`
        makes graphs, and None launches kernel by kernel. `attention`: our kernel, or two of torch's to hold it against,
        without graphs (kernels/prefix_attention/two_calls.py).

        Raises UnfitScorer: a shape that kernels do not take, or less memory than a forward needs.
        """
        shape = weights.shape
        if shape.head_dim < 16 or shape.head_dim & (shape.head_dim - 1):
            raise UnfitScorer(
                f"heads of {shape.head_dim}: kernels take powers of two from 16; set ranker.device to cpu"
            )
        self.device, self.most_tokens = device, Bucket.of(most_tokens, 1, 1).tokens
        self.longest = min(longest or shape.max_positions, shape.max_positions)
        self.nbytes = bytes_of(weights, self.most_tokens, self.longest)
        _admit(self.nbytes, device, self.most_tokens)
        self.weights = _moved(weights, device)
        self._cosines, self._sines = _tables(weights, self.longest, device)
        self._buffers = _Buffers(self.weights, device, self.most_tokens)
        self._slots = tuple(_Slot(self.weights, device, self.most_tokens) for _ in range(IN_FLIGHT))
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._capture = capture or (None if self._stream is None else _Captures().captured)
        self._by_tiles = attention == "tiles"
        if not self._by_tiles:
            self._capture = None
        self._graphs: OrderedDict[Bucket, Callable[[], None]] = OrderedDict()
        self._turn = 0
        self._lock = threading.Lock()
        if self._stream is not None:
            torch.cuda.synchronize(device)  # what was written above was in another stream

    def warm(self) -> int:
        """Graphs of usual forwards, the longest first; how many were captured: none where none can be."""
        buckets = [] if self._capture is None else Bucket.usual(self.most_tokens)[-GRAPHS:]
        for bucket in reversed(buckets):
            with self._launching():
                self._ready(bucket)
        return len(buckets)

    def logits(self, forward: Forward) -> NDArray[np.float64]:
        """Log-odds of yes against no, float64 [N], in the forward's order. Raises MalformedRequest."""
        return self.launch(forward).wait()

    def launch(self, forward: Forward) -> Launched:
        """The forward on its way: at most IN_FLIGHT may be. Raises MalformedRequest."""
        check_fits(forward, self.weights.shape, self.longest)
        if not len(forward.items):
            return Launched(torch.zeros(0), None)
        if len(forward) > self.most_tokens:
            raise ValueError(f"a forward of {len(forward)} tokens: this backend was made for {self.most_tokens}")
        sizes = len(forward), len(forward.items), len(forward.tiles)
        bucket = Bucket(*sizes) if self._capture is None else Bucket.of(*sizes)
        with self._launching():
            slot, self._turn = self._slots[self._turn], (self._turn + 1) % IN_FLIGHT
            slot.fill(forward, bucket, self._buffers)
            spans = None if self._by_tiles else Spans.of(forward.prefixes, forward.items, self.device)
            self._ready(bucket, spans)()
            return slot.read(self._buffers, len(forward.items))

    @contextmanager
    def _launching(self) -> Iterator[None]:
        where = INTERPRETING if self._stream is None else torch.cuda.stream(self._stream)
        with self._lock, torch.inference_mode(), where:
            yield

    def _ready(self, bucket: Bucket, spans: Spans | None = None) -> Callable[[], None]:
        """What launches a forward of this bucket."""

        def launch() -> None:
            self._run(self._buffers.inputs(bucket, spans))

        if self._capture is None:
            return launch
        graph = self._graphs.get(bucket)
        if graph is None:
            while len(self._graphs) >= GRAPHS:
                self._graphs.popitem(last=False)
            graph = self._graphs[bucket] = self._capture(launch)
        self._graphs.move_to_end(bucket)
        return graph

    def _run(self, inputs: _Inputs) -> None:
        weights, buffers = self.weights, self._buffers
        shape = weights.shape
        tokens, places = len(inputs.codes), len(inputs.last)
        x, attended = buffers.x[:tokens], buffers.attended[:tokens]
        gather_embeddings(inputs.codes, weights.embedding, buffers.vectors, x)
        delta = None
        *layers, last = weights.layers
        for layer in layers:
            self._attend(layer, x, delta, attended, inputs)
            delta = self._finish(layer, x, attended)
        self._attend(last, x, delta, attended, inputs)
        scored = torch.index_select(x, 0, inputs.last, out=buffers.scored[:places])
        heard = torch.index_select(attended, 0, inputs.last, out=buffers.heard[:places])
        delta = self._finish(last, scored, heard)
        logits = buffers.logits[:places]
        yes_no_head(scored, delta, weights.norm, weights.answer, logits, shape.epsilon)

    def _attend(self, layer: Layer, x: Tensor, delta: Tensor | None, attended: Tensor, inputs: _Inputs) -> None:
        """Attention of all tokens into `attended`, with `delta` added to `x` before."""
        buffers, shape = self._buffers, self.weights.shape
        h, qkv = buffers.h[: len(x)], buffers.qkv[: len(x)]
        add_rmsnorm(x, delta, layer.norm_in, h, shape.epsilon)
        _product(h, layer.qkv, layer.qkv_bias, qkv)
        qk_norm_rope(qkv, layer.qk_norm, inputs.positions, self._cosines, self._sines, shape.epsilon)
        heads, kv_heads, size = shape.heads, shape.kv_heads, shape.head_dim
        if inputs.spans is None:
            prefix_attention(qkv, inputs.starts, inputs.tiles, attended, heads=heads, kv_heads=kv_heads, size=size)
        else:
            two_calls(qkv, inputs.spans, attended, heads=heads, kv_heads=kv_heads, size=size)

    def _finish(self, layer: Layer, x: Tensor, attended: Tensor) -> Tensor:
        """Adds what attention gives to `x`; what the MLP gives is returned, to be added by whoever reads `x` next."""
        buffers, rows = self._buffers, len(x)
        h, delta = buffers.h[:rows], buffers.delta[:rows]
        _product(attended, layer.out, layer.out_bias, delta)
        add_rmsnorm(x, delta, layer.norm_mlp, h, self.weights.shape.epsilon)
        _product(h, layer.gate_up, None, buffers.gate_up[:rows])
        swiglu(buffers.gate_up[:rows], buffers.activated[:rows])
        _product(buffers.activated[:rows], layer.down, None, delta)
        return delta


@dataclass(frozen=True, slots=True)
class _Inputs:
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


class _Buffers:
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
        self.numbers = torch.zeros(_most_numbers(tokens), dtype=torch.int32, device=device)

    def inputs(self, bucket: Bucket, spans: Spans | None) -> _Inputs:
        codes, positions, starts, tiles, last = _split(self.numbers, bucket)
        return _Inputs(codes, positions, starts, last, tiles, spans)


class _Slot:
    """Pinned memory of one forward in flight: what goes in, and its logits."""

    def __init__(self, weights: Weights, device: torch.device, tokens: int) -> None:
        pinned = device.type == "cuda"
        self._numbers = torch.zeros(_most_numbers(tokens), dtype=torch.int32, pin_memory=pinned)
        self._vectors = torch.zeros(tokens, weights.shape.hidden, pin_memory=pinned)
        self._logits = torch.zeros(tokens, dtype=weights.answer.dtype, pin_memory=pinned)
        self._done: torch.cuda.Event | None = None
        self._pinned = pinned

    def fill(self, forward: Forward, bucket: Bucket, buffers: _Buffers) -> None:
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

    def read(self, buffers: _Buffers, places: int) -> Launched:
        out = self._logits[:places]
        out.copy_(buffers.logits[:places], non_blocking=True)
        if not self._pinned:
            return Launched(out, None)
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's
        self._done.record()
        return Launched(out, self._done)


class _Captures:
    """CUDA graphs that share one pool of memory."""

    def __init__(self) -> None:
        self._pool: Any = None

    def captured(self, launch: Callable[[], None]) -> Callable[[], None]:
        """What launches again what `launch` does, in the current stream."""
        launch()  # what has to be compiled is
        torch.cuda.current_stream().synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            launch()
        self._pool = self._pool or graph.pool()
        return graph.replay


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
        + 4 * _most_numbers(tokens)
        + wide * longest * shape.head_dim
    )


def _admit(needed: int, device: torch.device, tokens: int) -> None:
    """Raises UnfitScorer where the device has not as much free."""
    if device.type != "cuda":
        return
    gc.collect()  # a backend before this one
    torch.cuda.empty_cache()
    free, whole = torch.cuda.mem_get_info(device)
    if needed + SPARE_BYTES > free:
        raise UnfitScorer(
            f"the model and forwards of {tokens} tokens need {(needed + SPARE_BYTES) >> 20:,} MiB of {device}, which "
            f"has {free >> 20:,} of {whole >> 20:,} MiB free: lower ranker.forward_tokens, or free the device"
        )


def _most_numbers(tokens: int) -> int:
    return Bucket(tokens, tokens, _power(tokens, LEAST_TOKENS)).numbers


def _moved(weights: Weights, device: torch.device) -> Weights:
    def there(one: Any) -> Any:
        return one.to(device) if isinstance(one, Tensor) else one

    layers = tuple(Layer(*(there(getattr(layer, name)) for name in Layer.__slots__)) for layer in weights.layers)
    return Weights(
        shape=weights.shape,
        embedding=there(weights.embedding),
        layers=layers,
        norm=there(weights.norm),
        answer=there(weights.answer),
        inv_freq=there(weights.inv_freq),
        rope_scale=weights.rope_scale,
    )


def _tables(weights: Weights, longest: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines by position, [longest, head_dim / 2] each, as ranker/engine/forward.py has them."""
    angles = torch.arange(longest).float()[:, None] * weights.inv_freq.cpu()
    cosines, sines = (
        (table * weights.rope_scale).to(weights.answer.dtype).to(device) for table in (angles.cos(), angles.sin())
    )
    return cosines, sines


def _product(rows: Tensor, matrix: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """out = rows @ matrix.T + bias."""
    if bias is None:
        torch.mm(rows, matrix.T, out=out)
    else:
        torch.addmm(bias, rows, matrix.T, out=out)


def _power(count: int, least: int) -> int:
    """`least`, or a power of two where that is not enough."""
    return least if count <= least else 1 << (count - 1).bit_length()
