"""Which products of a forward multiply numbers of one byte, and a model's weights as such (kernels/scaled_gemm).

Embeddings, norms, attention and the answer stay as they were, and so does what a product leaves. Scores differ from
those of whole weights, so a model's id names the choice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from penstock.kernels.scaled_gemm.numbers import FORMS, quantised
from penstock.ranker.engine.weights import Layer, Shape, Weights
from penstock.ranker.errors import UnfitScorer

PRODUCTS = ("qkv", "out", "gate_up", "down")  # of a layer, as Layer names their matrices
# What a probability may move by in other company: where a value lies between two numbers, other roundings before it
# may make it the other one. Held by tests/ranker/engine/test_scaled.py.
COMPANY = {"int8": 4e-2, "fp8": 8e-2}
MULTIPLE = 16  # of what a product sums up: the kernel's


@dataclass(frozen=True, slots=True)
class Choice:
    """`form` is int8 or fp8, and `products` which ones have it; none where nothing is scaled."""

    form: str = ""
    products: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What it adds to a model's id: nothing, -int8, or -int8.qkv.down where others stay whole."""
        if not self.products:
            return ""
        return f"-{self.form}" if self.products == PRODUCTS else f"-{'.'.join((self.form, *self.products))}"

    def __bool__(self) -> bool:
        return bool(self.products)


def scalable(shape: Shape) -> tuple[str, ...]:
    """The products of such a model that can be scaled."""
    return tuple(name for name, depth in _depths(shape).items() if depth % MULTIPLE == 0)


def _depths(shape: Shape) -> dict[str, int]:
    """What each product sums up, in the order of PRODUCTS."""
    return {"qkv": shape.hidden, "out": shape.q_width, "gate_up": shape.hidden, "down": shape.intermediate}


def scaled(weights: Weights, choice: Choice) -> Weights:
    """The same weights, the matrices of `choice` as numbers and steps. Raises UnfitScorer: a width that has none."""
    if not choice:
        return weights
    fit, depths = scalable(weights.shape), _depths(weights.shape)
    wrong = {name: depths[name] for name in choice.products if name not in fit}
    if wrong:
        raise UnfitScorer(
            f"ranker.weights is {choice.form}, and of this model {wrong} values are summed up: expected multiples of "
            f"{MULTIPLE}; set it to auto, which leaves such products whole, or to plain"
        )
    return replace(weights, layers=tuple(_scaled(layer, choice) for layer in weights.layers))


def _scaled(layer: Layer, choice: Choice) -> Layer:
    dtype = next(dtype for form, dtype in FORMS.items() if form == choice.form)
    changed: dict[str, Any] = {}
    for name in choice.products:
        matrix: Tensor = getattr(layer, name)
        changed[name], changed[f"{name}_steps"] = quantised(matrix, dtype)
    return replace(layer, **changed)
