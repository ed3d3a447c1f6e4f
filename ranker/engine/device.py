"""The packed forward by kernels on a device: what ranker/engine/forward.py computes on a CPU.

    1. fill      pieces (pieces.py), tokens that the device's arena lacks, tiles and scored places: one block of pinned
                 memory, one copy
    2. launch    on CUDA one graph, captured for the forward's bucket; in the interpreter kernel by kernel
    3. read      the logits, one copy behind the launch. `Launched.wait` waits for it: nothing else waits for the device

A layer is nine launches: add + RMSNorm, product, norms and positions of queries and keys, attention, product, add +
RMSNorm, product, SwiGLU, product; products are torch's, or of scaled weights kernels/scaled_gemm's
(ranker/engine/products.py), everything between is kernels/. In the last layer only the scored places go on behind
attention.

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
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penstock.kernels.gather_embeddings.triton import gather_embeddings
from penstock.kernels.gather_tokens.triton import gather_tokens
from penstock.kernels.prefix_attention.autotune import key_of
from penstock.kernels.prefix_attention.triton import MOST_VALUES, prefix_attention
from penstock.kernels.prefix_attention.tuning import Tuning
from penstock.kernels.prefix_attention.two_calls import Spans, two_calls
from penstock.kernels.qk_norm_rope.triton import qk_norm_rope
from penstock.kernels.runtime import INTERPRETING
from penstock.kernels.tunings.kept import Tunings
from penstock.kernels.tunings.taken import launched
from penstock.kernels.yes_no_head.triton import yes_no_head
from penstock.ranker.engine.buffers import Bucket, Buffers, Inputs, Launched, Slot, bytes_of
from penstock.ranker.engine.device_arena import NO_ROOM, Room
from penstock.ranker.engine.forward import check_fits
from penstock.ranker.engine.plan import Forward
from penstock.ranker.engine.products import Matrix, Products, bytes_of_products
from penstock.ranker.engine.weights import Layer, Weights
from penstock.ranker.errors import UnfitScorer

IN_FLIGHT = 2
GRAPHS = 64  # that are kept; of more, the one that rested longest goes
SPARE_BYTES = 256 << 20  # for graphs, and what products work in

Capture = Callable[[Callable[[], None]], Callable[[], None]]
Attention = Literal["tiles", "two_calls"]


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
        room: Room = NO_ROOM,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        capture: Capture | None = None,
        attention: Attention = "tiles",
        tunings: Tunings | None = None,
    ) -> None:
        """`weights` may lie anywhere; they are copied. `longest`: of a prompt, the model's own by default. `room`: for
        the arena, as far as the device has it. `capture` makes graphs, and None launches kernel by kernel. `attention`:
        our kernel, or two of torch's to hold it against, without graphs (kernels/prefix_attention/two_calls.py).
        `tunings`: of kernels, as they were measured here.

        Raises UnfitScorer: a shape that kernels do not take, or less memory than a forward needs.
        """
        shape = weights.shape
        if shape.head_dim < 16 or shape.head_dim & (shape.head_dim - 1):
            raise UnfitScorer(
                f"heads of {shape.head_dim}: kernels take powers of two from 16; set ranker.device to cpu"
            )
        self.device, self.most_tokens = device, Bucket.of(most_tokens, 1, 1).tokens
        row = shape.q_width + 2 * shape.kv_width
        if self.most_tokens * row >= MOST_VALUES:
            raise UnfitScorer(
                f"forwards of {self.most_tokens:,} tokens: attention takes less than {MOST_VALUES // row:,} of this "
                "model's; lower ranker.forward_tokens"
            )
        self.longest = min(longest or shape.max_positions, shape.max_positions)
        self.nbytes = bytes_of(weights, self.most_tokens, self.longest) + bytes_of_products(weights, self.most_tokens)
        room = room.within(_admit(self.nbytes, device, self.most_tokens))
        self.weights = moved(weights, device)
        self._cosines, self._sines = _tables(weights, self.longest, device)
        self._buffers = Buffers(self.weights, device, self.most_tokens, room)
        self.arena = self._buffers.arena(now_ms)
        self.nbytes += self.arena.nbytes
        self._products = Products(self.weights, device, self.most_tokens, tunings)
        self._tunings = tunings
        self._attention = key_of(weights.dtype, shape.heads, shape.kv_heads, shape.head_dim, device)
        self._slots = tuple(Slot(self.weights, device, self.most_tokens) for _ in range(IN_FLIGHT))
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._capture = capture or (None if self._stream is None else Captures().captured)
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
            with self.arena.reading(forward) as places:
                slot.fill(forward, bucket, self._buffers, places)
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

    def _run(self, inputs: Inputs) -> None:
        weights, buffers = self.weights, self._buffers
        shape = weights.shape
        tokens, places = len(inputs.codes), len(inputs.last)
        x, attended = buffers.x[:tokens], buffers.attended[:tokens]
        codes, positions, starts = inputs.codes, inputs.positions, inputs.starts
        gather_tokens(inputs.pieces, inputs.count, buffers.numbers, buffers.kept, codes, positions, starts)
        gather_embeddings(codes, weights.embedding, buffers.vectors, x)
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

    def _attend(self, layer: Layer, x: Tensor, delta: Tensor | None, attended: Tensor, inputs: Inputs) -> None:
        """Attention of all tokens into `attended`, with `delta` added to `x` before."""
        buffers, shape = self._buffers, self.weights.shape
        h, qkv = buffers.h[: len(x)], buffers.qkv[: len(x)]
        self._products.of_norm(x, delta, layer.norm_in, h, Matrix.of(layer, "qkv"), qkv)
        qk_norm_rope(qkv, layer.qk_norm, inputs.positions, self._cosines, self._sines, shape.epsilon)
        heads, kv_heads, size = shape.heads, shape.kv_heads, shape.head_dim
        if inputs.spans is None:

            def launch(tuning: Tuning | None) -> None:
                sizes = {"heads": heads, "kv_heads": kv_heads, "size": size}
                prefix_attention(qkv, inputs.starts, inputs.tiles, attended, **sizes, tuning=tuning)

            launched(self._tunings, self._attention, Tuning, launch)
        else:
            two_calls(qkv, inputs.spans, attended, heads=heads, kv_heads=kv_heads, size=size)

    def _finish(self, layer: Layer, x: Tensor, attended: Tensor) -> Tensor:
        """Adds what attention gives to `x`; what the MLP gives is returned, to be added by whoever reads `x` next."""
        buffers, rows = self._buffers, len(x)
        h, delta, gate_up = buffers.h[:rows], buffers.delta[:rows], buffers.gate_up[:rows]
        self._products.of_rows(attended, Matrix.of(layer, "out"), delta)
        self._products.of_norm(x, delta, layer.norm_mlp, h, Matrix.of(layer, "gate_up"), gate_up)
        self._products.of_swiglu(gate_up, buffers.activated[:rows], Matrix.of(layer, "down"), delta)
        return delta


class Captures:
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


def _admit(needed: int, device: torch.device, tokens: int) -> int | None:
    """Bytes that the device has free beyond that; None: nobody counts them. Raises UnfitScorer where it has less."""
    if device.type != "cuda":
        return None
    gc.collect()  # a backend before this one
    torch.cuda.empty_cache()
    free, whole = torch.cuda.mem_get_info(device)
    if needed + SPARE_BYTES > free:
        raise UnfitScorer(
            f"the model and forwards of {tokens} tokens need {(needed + SPARE_BYTES) >> 20:,} MiB of {device}, which "
            f"has {free >> 20:,} of {whole >> 20:,} MiB free: lower ranker.forward_tokens, or free the device"
        )
    return free - needed - SPARE_BYTES


def moved(weights: Weights, device: torch.device) -> Weights:
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
