"""One forward of a packed plan: a logit an item, prefill only, nothing kept from one forward to the next.

Attention is two attentions merged by log-sum-exp, which is exact: an item's tokens to its prefix (one call a prefix),
and to themselves, causal (one call a run of items of equal length). In the last layer only the places that are scored
go on after keys and values. Everything else is a matter of single tokens and goes in chunks that stay in cache.

Invariant: a probability depends on its prompt alone. What shares the forward, and in which order, moves it by no more
than BOUND: sums of other lengths and places are rounded otherwise.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from penstock.ranker.engine.backend import Scored
from penstock.ranker.engine.plan import Forward, MalformedRequest
from penstock.ranker.engine.weights import Layer, Shape, Weights

BOUND = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # of a probability; held by tests/ranker/engine/test_determinism.py
CHUNK_TOKENS = 512  # a chunk of the MLP's input, output and weights fits a core's share of the last-level cache


def check_fits(forward: Forward, shape: Shape, longest: int) -> None:
    """Raises MalformedRequest where this model, with prompts of at most `longest` tokens, cannot score the forward."""
    if len(forward.rows) and forward.rows.shape[1] != shape.hidden:
        raise MalformedRequest(f"vectors of {forward.rows.shape[1]} numbers: the model's have {shape.hidden}")
    if not len(forward):
        return
    low, high, length = forward.tokens.min(), forward.tokens.max(), int(forward.positions.max()) + 1
    if low < 0 or high >= shape.vocabulary:
        raise MalformedRequest(f"tokens from {low} to {high}: the model has 0 to {shape.vocabulary - 1}")
    if length > longest:
        raise MalformedRequest(f"a prompt of {length} tokens: the model takes {longest}")


class TorchBackend:
    """On the CPU, in the weights' dtype; the residual stream is float32 at least. Owns its scratch under a lock.

    Safe to call from several threads; forwards run one at a time, each as it is launched.
    """

    in_flight = 1

    def __init__(self, weights: Weights, threads: int | None = None) -> None:
        """`threads` is torch's number for the whole process; as many as there are cores by default."""
        torch.set_num_threads(threads or os.cpu_count() or 1)
        self.weights = weights
        self._wide = weights.answer.dtype
        self._scratch = _Scratch()
        self._lock = threading.Lock()

    def launch(self, forward: Forward) -> Scored:
        """Raises MalformedRequest."""
        return Scored(self.logits(forward))

    def logits(self, forward: Forward) -> NDArray[np.float64]:
        """Log-odds of yes against no, float64 [N], in the forward's order. Raises MalformedRequest."""
        check_fits(forward, self.weights.shape, self.weights.shape.max_positions)
        if not len(forward.items):
            return np.zeros(0)
        with self._lock, torch.inference_mode():
            return self._run(forward)

    def _run(self, forward: Forward) -> NDArray[np.float64]:
        shape = self.weights.shape
        segments = _segments(forward)
        rope = self._rope(forward.positions)
        x = self._embedded(forward)
        qkv = self._scratch.take("qkv", len(x), shape.q_width + 2 * shape.kv_width, self.weights.dtype)
        *layers, last = self.weights.layers
        for layer in layers:
            self._project(layer, x, rope, qkv)
            attended = self._attend(qkv[:, : shape.q_width], qkv, segments)
            self._finish(layer, x, attended)
        self._project(last, x, rope, qkv)
        place = torch.from_numpy(forward.last)
        x = x[place]
        self._finish(last, x, self._attend(qkv[place, : shape.q_width], qkv, _scored(forward)))
        h = _rms_norm(x, self.weights.norm.to(self._wide), shape.epsilon)
        logits: NDArray[np.float64] = (h @ self.weights.answer).double().numpy()
        return logits

    def _embedded(self, forward: Forward) -> Tensor:
        """The residual stream's beginning, [T, hidden]."""
        x = self._scratch.take("x", len(forward), self.weights.shape.hidden, self._wide)
        x.copy_(F.embedding(torch.from_numpy(forward.tokens), self.weights.embedding))
        if len(forward.rows):
            x[torch.from_numpy(forward.embedded)] = torch.from_numpy(forward.rows).to(self._wide)
        return x

    def _rope(self, positions: NDArray[np.int32]) -> tuple[Tensor, Tensor]:
        """Cosines and sines, [T, 1, head_dim / 2] each."""
        angles = torch.arange(int(positions.max()) + 1).float()[:, None] * self.weights.inv_freq
        at = torch.from_numpy(positions)
        cos, sin = (
            (table * self.weights.rope_scale).to(self._wide)[at][:, None] for table in (angles.cos(), angles.sin())
        )
        return cos, sin

    def _project(self, layer: Layer, x: Tensor, rope: tuple[Tensor, Tensor], qkv: Tensor) -> None:
        """Norm, queries, keys and values [T, q_width + 2 kv_width] into `qkv`, with their norms and positions."""
        shape = self.weights.shape
        heads, half = shape.heads + shape.kv_heads, shape.head_dim // 2
        norm = layer.norm_in.to(self._wide)
        qk_norm = layer.qk_norm.to(self._wide)
        cos, sin = rope
        for chunk in _chunks(len(x)):
            h = _rms_norm(x[chunk], norm, shape.epsilon).to(self.weights.dtype)
            out = torch.mm(h, layer.qkv.T, out=qkv[chunk])
            if layer.qkv_bias is not None:
                out += layer.qkv_bias
            turned = out[:, : heads * shape.head_dim].view(-1, heads, shape.head_dim)
            qk = _rms_norm(turned.to(self._wide), qk_norm, shape.epsilon)
            a, b = qk[..., :half], qk[..., half:]
            turned[..., :half] = (a * cos[chunk]).addcmul_(b, sin[chunk], value=-1)
            turned[..., half:] = (b * cos[chunk]).addcmul_(a, sin[chunk])

    def _finish(self, layer: Layer, x: Tensor, attended: Tensor) -> None:
        """Adds what attention [T, q_width] and the MLP give to `x`."""
        shape, dtype = self.weights.shape, self.weights.dtype
        norm = layer.norm_mlp.to(self._wide)
        for chunk in _chunks(len(x)):
            part = x[chunk]
            _add_product(part, attended[chunk], layer.out)
            if layer.out_bias is not None:
                part += layer.out_bias
            h = _rms_norm(part, norm, shape.epsilon).to(dtype)
            gate_up = self._scratch.take("gate_up", len(part), 2 * shape.intermediate, dtype)
            torch.mm(h, layer.gate_up.T, out=gate_up)
            gate, up = gate_up[:, : shape.intermediate], gate_up[:, shape.intermediate :]
            _add_product(part, F.silu(gate).mul_(up), layer.down)

    def _attend(self, queries: Tensor, qkv: Tensor, segments: Sequence[_Segment]) -> Tensor:
        """[queries, q_width]. `queries` [any, q_width] are counted by the segments, keys and values stand in `qkv`."""
        shape = self.weights.shape
        size = shape.head_dim
        q = queries.view(-1, shape.heads, size)
        k = qkv[:, shape.q_width : -shape.kv_width].view(-1, shape.kv_heads, size)
        v = qkv[:, -shape.kv_width :].view(-1, shape.kv_heads, size)
        out = self._scratch.take("attended", len(q), shape.q_width, q.dtype).view(-1, shape.heads, size)
        for segment in segments:
            of_prefix = None
            first, end = segment.prefix
            if end > first:
                keys, values = (_batched(each[first:end], 1) for each in (k, v))
                of_prefix = _attention(_batched(q[segment.first : segment.end], 1), keys, values, causal=False)
            for run in segment.runs:
                keys, values = (
                    _batched(each[run.keys : run.keys + run.count * run.length], run.count) for each in (k, v)
                )
                asked = slice(run.first, run.first + run.count * run.queries)
                mine, lse = _attention(_batched(q[asked], run.count), keys, values, causal=run.queries > 1)
                place = _batched(out[asked], run.count)
                if of_prefix is None:
                    place.copy_(mine)
                else:
                    there = slice(asked.start - segment.first, asked.stop - segment.first)
                    theirs = _batched(of_prefix[0][0, :, there].transpose(0, 1), run.count)
                    lse_theirs = _batched(of_prefix[1][0, :, there].T[..., None], run.count)
                    weight = torch.sigmoid(lse_theirs - lse[..., None]).to(mine.dtype)
                    torch.lerp(mine, theirs, weight, out=place)
        return out.view(-1, shape.q_width)


@dataclass(frozen=True, slots=True)
class _Run:
    """`count` neighbours of `length` tokens each, of which `queries` ask: all of them, or the last one."""

    first: int  # of the queries
    keys: int  # the first key
    count: int
    length: int
    queries: int


@dataclass(frozen=True, slots=True)
class _Segment:
    """Runs whose queries first:end stand together and share a prefix, which may be empty."""

    prefix: tuple[int, int]
    first: int
    end: int
    runs: tuple[_Run, ...]


def _segments(forward: Forward) -> list[_Segment]:
    """Every token asks: each prefix on its own, then its items by runs of equal length."""
    segments = []
    for (start, stop), items in _by_prefix(forward):
        if stop > start:
            own = _Run(start, start, 1, stop - start, stop - start)
            segments.append(_Segment((start, start), start, stop, (own,)))
        if len(items):
            runs = tuple(_Run(first, first, count, length, length) for first, count, length in _equal(items))
            segments.append(_Segment((start, stop), int(items[0, 0]), int(items[-1, 1]), runs))
    return segments


def _scored(forward: Forward) -> list[_Segment]:
    """Only the last token of each item asks; queries are counted by items."""
    segments = []
    asked = 0
    for prefix, items in _by_prefix(forward):
        begin, runs = asked, []
        for first, count, length in _equal(items):
            runs.append(_Run(asked, first, count, length, 1))
            asked += count
        if runs:
            segments.append(_Segment(prefix, begin, asked, tuple(runs)))
    return segments


def _by_prefix(forward: Forward) -> Iterator[tuple[tuple[int, int], NDArray[np.int32]]]:
    """Each prefix's span with its items' spans [n, 2]."""
    bounds = np.searchsorted(forward.prefix_of, np.arange(len(forward.prefixes) + 1))
    for number, (start, stop) in enumerate(forward.prefixes.tolist()):
        yield (start, stop), forward.items[bounds[number] : bounds[number + 1]]


def _equal(items: NDArray[np.int32]) -> Iterator[tuple[int, int, int]]:
    """(first place, items, length of each) of each run of items of one length."""
    lengths = items[:, 1] - items[:, 0]
    changes = [0, *(np.flatnonzero(np.diff(lengths)) + 1).tolist(), len(items)]
    for begin, end in itertools.pairwise(changes):
        if end > begin:
            yield int(items[begin, 0]), end - begin, int(lengths[begin])


def _batched(rows: Tensor, count: int) -> Tensor:
    """[count * n, heads, size] as a view [count, heads, n, size]."""
    return rows.view(count, len(rows) // count, *rows.shape[1:]).transpose(1, 2)


def _attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> tuple[Tensor, Tensor]:
    """(attended [count, heads, n, size], log-sum-exp of its scores [count, heads, n])."""
    attended, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)
    return attended, lse


def _rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Over the last dimension."""
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True).add_(epsilon))).mul_(weight)


def _add_product(x: Tensor, h: Tensor, weight: Tensor) -> None:
    """x += h @ weight.T, in place."""
    if x.dtype == weight.dtype:
        x.addmm_(h, weight.T)
    else:
        x += h @ weight.T


def _chunks(count: int) -> list[slice]:
    return [slice(start, min(start + CHUNK_TOKENS, count)) for start in range(0, count, CHUNK_TOKENS)]


class _Scratch:
    """Buffers that grow and are used again: a fresh one costs a page fault every 4 KiB."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def take(self, name: str, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """[rows, columns], with whatever stood there before."""
        wanted = rows * columns
        kept = self._kept.get(name)
        if kept is None or kept.numel() < wanted:
            kept = self._kept[name] = torch.empty(wanted, dtype=dtype)
        return kept[:wanted].view(rows, columns)
