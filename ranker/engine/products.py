"""The products of a forward on a device, with what stands before each: of whole matrices by torch, of scaled ones by
kernels/scaled_gemm, for which norms and activations leave numbers and steps themselves.

Owns the numbers and steps of one product's rows, which the next overwrites: launches follow one another.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from penstock.kernels.add_rmsnorm.triton import add_rmsnorm
from penstock.kernels.scaled_gemm.autotune import key_of
from penstock.kernels.scaled_gemm.triton import quantised, scaled_gemm
from penstock.kernels.scaled_gemm.tuning import Tuning, bucket
from penstock.kernels.swiglu.triton import swiglu
from penstock.kernels.tunings.kept import Tunings
from penstock.kernels.tunings.taken import launched
from penstock.ranker.engine.scaled import PRODUCTS
from penstock.ranker.engine.weights import Layer, Weights


class Matrix(NamedTuple):
    weight: Tensor  # [out, in]
    steps: Tensor | None  # float32 [out], of numbers of one byte
    bias: Tensor | None  # [out]

    @classmethod
    def of(cls, layer: Layer, name: str) -> Matrix:
        return cls(getattr(layer, name), getattr(layer, f"{name}_steps"), getattr(layer, f"{name}_bias", None))


class Products:
    """Of forwards of at most `tokens`; `tunings`: those that were measured on the device."""

    def __init__(self, weights: Weights, device: torch.device, tokens: int, tunings: Tunings | None = None) -> None:
        self._epsilon = weights.shape.epsilon
        widest = widest_of(weights)
        self._numbers = torch.zeros(tokens * widest, dtype=torch.int8, device=device)
        self._steps = torch.zeros(tokens if widest else 0, dtype=torch.float32, device=device)
        self._device, self._tunings = device, tunings

    def of_norm(self, x: Tensor, delta: Tensor | None, norm: Tensor, h: Tensor, matrix: Matrix, out: Tensor) -> None:
        """`delta` is added to `x`, in place; out = norm of that @ matrix.T + bias. `h`: where a norm of whole values
        goes."""
        if matrix.steps is None:
            add_rmsnorm(x, delta, norm, h, self._epsilon)
            _whole(h, matrix, out)
        else:
            numbers, steps = self._room(h, matrix)
            add_rmsnorm(x, delta, norm, numbers, self._epsilon, steps)
            self._scaled(numbers, steps, matrix, out)

    def of_swiglu(self, gate_up: Tensor, activated: Tensor, matrix: Matrix, out: Tensor) -> None:
        """out = (silu(gate) * up) @ matrix.T; `activated` as `h` above."""
        if matrix.steps is None:
            swiglu(gate_up, activated)
            _whole(activated, matrix, out)
        else:
            numbers, steps = self._room(activated, matrix)
            swiglu(gate_up, numbers, steps)
            self._scaled(numbers, steps, matrix, out)

    def of_rows(self, rows: Tensor, matrix: Matrix, out: Tensor) -> None:
        """out = rows @ matrix.T + bias."""
        if matrix.steps is None:
            _whole(rows, matrix, out)
        else:
            numbers, steps = self._room(rows, matrix)
            quantised(rows, numbers, steps)
            self._scaled(numbers, steps, matrix, out)

    def _room(self, rows: Tensor, matrix: Matrix) -> tuple[Tensor, Tensor]:
        """Numbers and steps of as many."""
        return self._numbers[: rows.numel()].view(matrix.weight.dtype).view(rows.shape), self._steps[: len(rows)]

    def _scaled(self, numbers: Tensor, steps: Tensor, matrix: Matrix, out: Tensor) -> None:
        assert matrix.steps is not None
        weight, of_weight, bias = matrix.weight, matrix.steps, matrix.bias

        def launch(tuning: Tuning | None) -> None:
            scaled_gemm(numbers, steps, weight, of_weight, out, bias=bias, tuning=tuning)

        if self._tunings is None:
            launch(None)
            return
        columns, depth = weight.shape
        key = key_of(weight.dtype, bucket(len(numbers)), columns, depth, self._device)
        launched(self._tunings, key, Tuning, launch)


def widest_of(weights: Weights) -> int:
    """Numbers of a token that a scaled product multiplies, at most; 0 where none is scaled."""
    matrices = (Matrix.of(layer, name) for layer in weights.layers for name in PRODUCTS)
    return max((matrix.weight.shape[1] for matrix in matrices if matrix.steps is not None), default=0)


def bytes_of_products(weights: Weights, tokens: int) -> int:
    """What Products take of the device."""
    widest = widest_of(weights)
    return tokens * (widest + 4) if widest else 0


def _whole(rows: Tensor, matrix: Matrix, out: Tensor) -> None:
    if matrix.bias is None:
        torch.mm(rows, matrix.weight.T, out=out)
    else:
        torch.addmm(matrix.bias, rows, matrix.weight.T, out=out)
