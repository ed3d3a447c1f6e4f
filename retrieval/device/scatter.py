"""Writes values to places of a page on a device: rows, or the zone maps of blocks. One copy, then a write an array."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
import torch

from penstock.kernels.slabs.layout import BLOCK
from penstock.retrieval.device.arenas import Arenas
from penstock.retrieval.device.staging import Staging
from penstock.retrieval.store.page import Longs


def write(arenas: Arenas, staging: Staging, page: int, places: Longs, values: Mapping[str, npt.NDArray[Any]]) -> None:
    """`places` int64 [n], distinct: rows of the page, or blocks of it for zone maps; `values` have them first."""
    at, *sent = staging.sent((places, *values.values()))
    for name, there in zip(values, sent, strict=True):
        view, array = arenas.view(page, name), arenas.layout.arrays[name]
        if name == "sketch":
            view[at // BLOCK, :, at % BLOCK] = there
        elif array.parts > 1:
            view[:, at] = there.T
        else:
            view[at] = there.view(torch.bfloat16) if name == "dense" else there
