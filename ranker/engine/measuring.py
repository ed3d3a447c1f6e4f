"""Times what a device may do in more than one way: products of a model, whole and scaled, and the kernels' tunings.

On CUDA a contender is a graph of its launches, as in a forward, so the host's time is in none. Elsewhere, for tests,
with a clock of their own, it is launched as it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from penstock.kernels.prefix_attention import autotune as of_attention
from penstock.kernels.prefix_attention import tuning as attentions
from penstock.kernels.prefix_attention.triton import prefix_attention
from penstock.kernels.runtime import INTERPRETING
from penstock.kernels.scaled_gemm import autotune as of_products
from penstock.kernels.scaled_gemm import tuning as products_of
from penstock.kernels.scaled_gemm.numbers import FORMS
from penstock.kernels.scaled_gemm.triton import scaled_gemm
from penstock.kernels.tunings.kept import Tunings
from penstock.kernels.tunings.measured import clock_of, medians, quickest
from penstock.ranker.engine.buffers import Bucket, Buffers
from penstock.ranker.engine.choosing import DRIFT, Decision, Timing, decide, forms_of
from penstock.ranker.engine.device import Captures, DeviceBackend, moved
from penstock.ranker.engine.plan import Request, Text, plan
from penstock.ranker.engine.products import Matrix, Products
from penstock.ranker.engine.scaled import MULTIPLE, PRODUCTS, Choice, scalable, scaled
from penstock.ranker.engine.weights import Layer, Shape, Weights

PREFIX, ITEM = 70, 150  # tokens of the requests that attention is measured with
LAUNCHES = 8  # of a kernel in a graph


@dataclass(frozen=True, slots=True)
class Tuned:
    """One shape, and how long it took to measure."""

    name: str
    seconds: float


class Device:
    """Where contenders run. `clock`: seconds, once all that was launched is done; None: the device's."""

    def __init__(self, place: torch.device, clock: Callable[[], float] | None = None) -> None:
        self.place = place
        self.clock = clock or clock_of(place)
        self._on_cuda = place.type == "cuda"

    def launching(self) -> AbstractContextManager[object]:
        stack = ExitStack()
        stack.enter_context(torch.inference_mode())
        if self._on_cuda:
            stack.enter_context(torch.cuda.stream(torch.cuda.Stream(self.place)))  # type: ignore[no-untyped-call]
        else:
            stack.enter_context(INTERPRETING)
        return stack

    def contender(self, launch: Callable[[], object], times: int = 1) -> Callable[[], None]:
        """Runs `launch`; on CUDA so many times, by a graph that its first run captures."""
        graph: list[Callable[[], None]] = []

        def run() -> None:
            if not graph:
                # In a pool of its own: contenders' graphs are replayed by turns, in any order.
                graph.append(Captures().captured(repeated) if self._on_cuda else repeated)
            graph[0]()

        def repeated() -> None:
            for _ in range(times if self._on_cuda else 1):
                launch()

        return run


def decided(
    weights: Weights, known: Sequence[Request], device: Device, most_tokens: int, longest: int, tunings: Tunings
) -> Decision:
    """By forwards of `most_tokens`, and the log-odds of `known`."""
    timings = {form: timed(weights, form, device, most_tokens, tunings) for form in forms_of(device.place)}
    whole: list[np.ndarray[tuple[int], np.dtype[np.float64]]] = []

    def logits(choice: Choice) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        backend = DeviceBackend(scaled(weights, choice), device.place, most_tokens, longest=longest, tunings=tunings)
        forwards = plan(known, most_tokens, most_tokens)
        return np.concatenate([backend.logits(forward) for forward in forwards])

    def drift(choice: Choice) -> float:
        if not whole:
            whole.append(logits(Choice()))
        return float(np.abs(logits(choice) - whole[0]).max())

    return decide(timings, drift, DRIFT[weights.dtype])


def timed(weights: Weights, form: str, device: Device, tokens: int, tunings: Tunings) -> Mapping[str, Timing]:
    """Each product of all layers, whole and of that form, with what stands before it; forever, where it has none."""
    found, fit = {}, scalable(weights.shape)
    with device.launching():
        buffers = Buffers(weights, device.place, Bucket.of(tokens, 1, 1).tokens)
        chance = torch.Generator(device.place).manual_seed(1)
        for rows in (buffers.x, buffers.attended, buffers.gate_up):
            rows.normal_(generator=chance)  # of zeros a product takes less power, and less time
        for name in PRODUCTS:
            contenders, forms = {}, {"whole": weights}
            if name in fit:
                forms["scaled"] = scaled(weights, Choice(form, (name,)))
            for which, given in forms.items():
                alone = moved(_alone(given, name), device.place)
                products = Products(alone, device.place, len(buffers.x), tunings)
                contenders[which] = device.contender(partial(_multiply, alone, name, products, buffers))
            spent = medians(contenders, device.clock)
            found[name] = Timing(spent["whole"], spent.get("scaled", float("inf")))
    return found


def _alone(weights: Weights, name: str) -> Weights:
    """Without the matrices of other products, which are not moved then."""
    nothing = torch.empty(0)
    others = {other: nothing for other in PRODUCTS if other != name}
    return replace(
        weights,
        embedding=nothing.to(weights.dtype),
        layers=tuple(replace(layer, **others) for layer in weights.layers),
    )


def _multiply(weights: Weights, name: str, products: Products, buffers: Buffers) -> None:
    for layer in weights.layers:
        _one(layer, name, products, buffers)


def _one(layer: Layer, name: str, products: Products, buffers: Buffers) -> None:
    """As DeviceBackend launches it."""
    matrix = Matrix.of(layer, name)
    if name == "qkv":
        products.of_norm(buffers.x, buffers.delta, layer.norm_in, buffers.h, matrix, buffers.qkv)
    elif name == "out":
        products.of_rows(buffers.attended, matrix, buffers.delta)
    elif name == "gate_up":
        products.of_norm(buffers.x, buffers.delta, layer.norm_mlp, buffers.h, matrix, buffers.gate_up)
    else:
        products.of_swiglu(buffers.gate_up, buffers.activated, matrix, buffers.delta)


def tuned(shape: Shape, dtype: torch.dtype, device: Device, most_tokens: int, tunings: Tunings) -> Iterator[Tuned]:
    """Measures and keeps the quickest tuning of each kernel that has several, shape by shape, as it is done."""
    began = time.perf_counter()
    found = _attention(shape, dtype, device, most_tokens, tunings)
    yield Tuned(f"attention of {shape.heads} heads: {found.keys} keys at a time", time.perf_counter() - began)
    row = shape.q_width + 2 * shape.kv_width
    sizes = {(row, shape.hidden), (shape.hidden, shape.q_width), (2 * shape.intermediate, shape.hidden)}
    sizes.add((shape.hidden, shape.intermediate))
    for form in forms_of(device.place):
        for columns, depth in sorted(size for size in sizes if size[1] % MULTIPLE == 0):
            rows = products_of.LEAST_ROWS
            while True:
                began = time.perf_counter()
                one = _product(form, min(rows, most_tokens), columns, depth, device, tunings)
                name = f"{form} product of {rows} by {columns} by {depth}: tiles of {one.rows} by {one.columns}"
                yield Tuned(name, time.perf_counter() - began)
                if rows >= most_tokens:
                    break
                rows = products_of.bucket(rows + 1)


def _attention(
    shape: Shape, dtype: torch.dtype, device: Device, most_tokens: int, tunings: Tunings
) -> attentions.Tuning:
    count = max(1, (most_tokens - PREFIX) // ITEM)
    request = Request(np.zeros(PREFIX, np.int32), (Text(np.zeros(ITEM, np.int32)),) * count)
    (forward, *_) = plan([request], most_tokens, most_tokens)
    place = device.place
    qkv = torch.randn(len(forward), shape.q_width + 2 * shape.kv_width, device=place).to(dtype)
    out = torch.empty(len(forward), shape.q_width, dtype=dtype, device=place)
    starts, tiles = (torch.from_numpy(one).to(place) for one in (forward.starts, forward.tiles))
    sizes = {"heads": shape.heads, "kv_heads": shape.kv_heads, "size": shape.head_dim}

    def launch(tuning: attentions.Tuning) -> None:
        prefix_attention(qkv, starts, tiles, out, **sizes, tuning=tuning)

    with device.launching():
        candidates = list(attentions.fitting(shape.heads // shape.kv_heads, shape.head_dim))
        runs = {one: device.contender(partial(launch, one), LAUNCHES) for one in candidates}
        found = quickest(candidates, lambda one: runs[one](), device.clock)
    tunings.keep(of_attention.key_of(dtype, shape.heads, shape.kv_heads, shape.head_dim, place), found)
    return found


def _product(form: str, rows: int, columns: int, depth: int, device: Device, tunings: Tunings) -> products_of.Tuning:
    dtype, place = next(dtype for name, dtype in FORMS.items() if name == form), device.place

    def numbers(count: int) -> Tensor:
        if dtype == torch.int8:
            return torch.randint(-100, 100, (count, depth), dtype=dtype, device=place)
        return torch.randn(count, depth, device=place).to(dtype)  # of any bytes some are NaN

    x, w = numbers(rows), numbers(columns)
    x_steps, w_steps = (torch.ones(len(one), device=place) for one in (x, w))
    out = torch.empty(rows, columns, dtype=torch.bfloat16, device=place)

    def launch(tuning: products_of.Tuning) -> None:
        scaled_gemm(x, x_steps, w, w_steps, out, tuning=tuning)

    with device.launching():
        candidates = list(products_of.fitting(form))
        runs = {one: device.contender(partial(launch, one), LAUNCHES) for one in candidates}
        found = quickest(candidates, lambda one: runs[one](), device.clock)
    tunings.keep(of_products.key_of(dtype, products_of.bucket(rows), columns, depth, place), found)
    return found
