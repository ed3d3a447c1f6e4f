"""A batch of queries as the scan takes it: rounded for tensor cores, with what rounding can have changed.

Every query is scaled by a power of two so that its greatest term weight lies in [1/2, 1): float16 holds the weights of
any query then, and scaling loses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from penstock.kernels.slabs.batch import TERMS, Queries
from penstock.kernels.slabs.layout import ALIGN, Layout

NOBODY = 63  # the filter of a query that only fills a batch: no row has the highest bit, since filters are fewer
# Of the sum of two fp32 products' magnitudes, a term: tensor cores truncate, and keep at least this much (the unit of
# retrieval/search/scan_first.py where bfloat16 is native).
UNIT = 2.0**-22
ROUNDED = 1 + 2.0**-20  # covers the float32 arithmetic on bounds
TINY = 1e-37  # what underflow can take from a term


@dataclass(frozen=True, slots=True)
class Prepared:
    """Queries padded to `BN` of them, on one device. See `scan` for the arrays."""

    count: int
    vectors: Tensor  # bfloat16 [BN, D], or int8 where quantised
    steps_of: Tensor  # float32 [2, BN]: where quantised, a query's step, and its norm for what rows lost; else zeros
    weights: Tensor  # float16 [BN, T]
    terms: Tensor  # int32 [T]
    slack: Tensor  # float32 [3, BN]
    filter_of: Tensor  # int32 [BN]
    exact: Tensor  # float32 [BN, D]: the queries as they are, zeros behind
    starts: Tensor  # int32 [BN + 1]
    exact_terms: Tensor  # int32
    exact_weights: Tensor  # float32

    @property
    def batch(self) -> int:
        return self.vectors.shape[0]

    def to(self, device: torch.device) -> Prepared:
        """The same on another device: all arrays in one copy, from pinned memory, which is not waited for."""
        if device.type == "cpu":
            return self
        held = tensors_of(self)
        begins, total = {}, 0
        for name, one in held.items():
            begins[name] = total
            total += -(-one.nbytes // ALIGN) * ALIGN
        pinned = torch.empty(total, dtype=torch.uint8, pin_memory=True)  # torch keeps it until the copy has ended
        for name, one in held.items():
            pinned[begins[name] : begins[name] + one.nbytes].copy_(one.contiguous().view(-1).view(torch.uint8))
        there = pinned.to(device, non_blocking=True)
        moved: dict[str, Any] = {
            name: there[begins[name] : begins[name] + one.nbytes].view(one.dtype).view(one.shape)
            for name, one in held.items()
        }
        return replace(self, **moved)


def tensors_of(prepared: Prepared) -> dict[str, Any]:
    """Its tensors by name."""
    found = {field.name: getattr(prepared, field.name) for field in fields(prepared)}
    return {name: one for name, one in found.items() if isinstance(one, Tensor)}


def picked(queries: Prepared, which: Sequence[int], batch: int) -> Prepared:
    """Some queries of a batch, in this order, and nobody behind them up to `batch`. Waits for the device."""
    device = queries.vectors.device
    chosen = torch.tensor(which, dtype=torch.int64)
    here = chosen.to(device)

    def rows(values: Tensor, fill: float = 0) -> Tensor:
        out = torch.full((batch, *values.shape[1:]), fill, dtype=values.dtype, device=device)
        out[: len(which)] = values[here]
        return out

    begins = queries.starts.to("cpu", torch.int64)
    lengths = begins.diff()[chosen]
    starts = torch.full((batch + 1,), int(lengths.sum()), dtype=torch.int32)
    starts[0] = 0
    starts[1 : len(which) + 1] = torch.cumsum(lengths, 0)
    of_terms = torch.arange(int(lengths.sum())) + torch.repeat_interleave(
        begins[chosen] - starts[: len(which)], lengths
    )
    return replace(
        queries,
        count=len(which),
        vectors=rows(queries.vectors),
        weights=rows(queries.weights),
        slack=rows(queries.slack.T).T.contiguous(),
        steps_of=rows(queries.steps_of.T).T.contiguous(),
        filter_of=rows(queries.filter_of, NOBODY),
        exact=rows(queries.exact),
        starts=starts.to(device),
        exact_terms=queries.exact_terms[of_terms.to(device)],
        exact_weights=queries.exact_weights[of_terms.to(device)],
    )


def bucket(count: int) -> int:
    """Queries that a batch is padded to: the N axis of a tensor core tile."""
    return max(16, 1 << (count - 1).bit_length())


def term_bucket(count: int) -> int:
    """Terms that a batch is padded to."""
    return 0 if count == 0 else next(size for size in (16, 64, TERMS) if count <= size)


def prepared(
    queries: Queries, layout: Layout, *, quantised: bool = False, batch: int = 0, most: int = TERMS
) -> Prepared:
    """On the host, as `queries` are; `batch`: queries to pad to, 0: a power of two; `most`: terms that are multiplied.

    Raises ValueError where their shapes are not the layout's, or where values leave bfloat16's range.
    """
    count, width = queries.dense.shape
    if width != layout.dense:
        raise ValueError(f"queries of {width} dense values: expected {layout.dense}, as the rows have")
    batch = batch or bucket(count)
    dense = torch.zeros(batch, layout.width, dtype=torch.float64)
    dense[:count, :width] = queries.dense.double()
    starts = torch.full((batch + 1,), int(queries.starts[-1]), dtype=torch.int32)
    starts[: count + 1] = queries.starts
    asked, of_term, lexical = _terms(queries, batch, layout.sketch, most)
    greatest = torch.zeros(batch, dtype=torch.float64)  # of all terms, also those that are left out
    greatest.scatter_reduce_(0, _owners(queries), queries.weights.double().abs(), "amax")
    _, exponent = torch.frexp(torch.where(greatest > 0, greatest, torch.ones_like(greatest)))
    scale = torch.where(greatest > 0, torch.ldexp(torch.ones_like(greatest), exponent), torch.ones_like(greatest))
    dense, lexical = dense / scale[:, None], lexical / scale[:, None]
    steps_of = torch.zeros(2, batch, dtype=torch.float64)
    if quantised:
        vectors, steps_of[0], lost_dense = quantise(dense)
        steps_of[1] = (_norm(dense) + lost_dense) * ROUNDED
    else:
        vectors = dense.to(torch.bfloat16)
        lost_dense = _norm(dense - vectors.double())
    weights = lexical.to(torch.float16)
    left_out = _left_out(queries, batch, asked) / scale
    terms_added = layout.width + of_term.numel() + 8
    sizes = torch.stack([_norm(dense), torch.sqrt(_norm(lexical) ** 2 + left_out**2)])
    lost = torch.stack([lost_dense, _norm(lexical - weights.double()) + left_out])
    slack = torch.zeros(3, batch, dtype=torch.float64)
    slack[:2] = (lost + terms_added * UNIT * sizes) * ROUNDED
    slack[2] = TINY * terms_added
    if not (bool(torch.isfinite(slack).all()) and (quantised or bool(torch.isfinite(vectors.float()).all()))):
        raise ValueError(
            "a query whose values, over its greatest term weight, leave bfloat16's range: score it elsewhere"
        )
    filter_of = torch.full((batch,), NOBODY, dtype=torch.int32)
    filter_of[:count] = queries.filter_of
    exact = torch.zeros(batch, layout.width, dtype=torch.float32)
    exact[:count, :width] = queries.dense
    return Prepared(
        count=count,
        vectors=vectors,
        steps_of=_rounded_up(steps_of),
        weights=weights,
        terms=of_term,
        slack=_rounded_up(slack),
        filter_of=filter_of,
        exact=exact,
        starts=starts,
        exact_terms=queries.terms.to(torch.int32),
        exact_weights=queries.weights.to(torch.float32),
    )


def quantise(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """int8 [n, D] of values [n, D], and float64 [n] each: a row's step, and the norm of its rest.

    row = int8 * step + rest, where the step is a float32: whoever multiplies by it multiplies by the same number.
    """
    wide = values.double()
    step = (
        (wide.abs().amax(1) / 127).to(torch.float32) if wide.numel() else wide.new_zeros(len(wide), dtype=torch.float32)
    )
    step = torch.where(step * 127 > 0, step, torch.ones_like(step)).double()
    rounded = torch.clamp(torch.round(wide / step[:, None]), -127, 127)
    return rounded.to(torch.int8), step, _norm(wide - rounded * step[:, None])


def plane(dense: Tensor) -> tuple[Tensor, Tensor]:
    """The int8 plane of rows: int8 [n, D] of bfloat16 [n, D], and float32 [n, 2]: a row's step, and the norm of its
    rest, rounded up."""
    values, step, lost = quantise(dense)
    return values, _rounded_up(torch.stack([step, lost], dim=1))


def _terms(queries: Queries, batch: int, lines: int, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """The distinct terms that are multiplied, the same padded to a bucket (int32), and the weights by query (float64
    [batch, T]). Where a batch has more than `most`, those of the greatest weight."""
    terms, weights = queries.terms.long(), queries.weights.double()
    if terms.numel() and (int(terms.min()) < 0 or int(terms.max()) >= lines):
        raise ValueError(f"terms {int(terms.min())} to {int(terms.max())}: expected 0 to {lines - 1}")
    asked = torch.unique(terms)
    if asked.numel() > most:
        heaviest = torch.zeros(lines, dtype=torch.float64)
        heaviest.scatter_reduce_(0, terms, weights.abs() / _row_norms(queries)[_owners(queries)], "amax")
        asked = torch.sort(torch.topk(heaviest, most).indices).values
    padded = torch.zeros(term_bucket(asked.numel()), dtype=torch.int32)
    padded[: asked.numel()] = asked
    out = torch.zeros(batch, padded.numel(), dtype=torch.float64)
    if asked.numel():
        place = torch.searchsorted(asked, terms).clamp_(max=asked.numel() - 1)
        there = asked[place] == terms
        out[_owners(queries)[there], place[there]] = weights[there]
    return asked, padded, out


def _owners(queries: Queries) -> Tensor:
    """Of each term, whose it is: int64 [t]."""
    return torch.repeat_interleave(torch.arange(queries.count), queries.starts.diff().long())


def _row_norms(queries: Queries) -> Tensor:
    out = torch.zeros(queries.count, dtype=torch.float64)
    out.index_add_(0, _owners(queries), queries.weights.double() ** 2)
    return out.sqrt().clamp_(min=1e-300)


def _left_out(queries: Queries, batch: int, asked: Tensor) -> Tensor:
    """By query, the norm of its weights of terms that are not in the tile: float64 [batch]."""
    out = torch.zeros(batch, dtype=torch.float64)
    missing = ~torch.isin(queries.terms.long(), asked)
    out.index_add_(0, _owners(queries)[missing], queries.weights.double()[missing] ** 2)
    return out.sqrt()


def _norm(values: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(values, dim=1) * (1 + 1e-12)
    return norms


def _rounded_up(values: Tensor) -> Tensor:
    """float32, none below its float64."""
    out = values.to(torch.float32)
    return torch.where(out.double() < values, torch.nextafter(out, torch.full_like(out, torch.inf)), out)
