"""What rows and blocks of the host's pages are on a device: values of the arrays of kernels/slabs/layout.py by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from penstock.kernels.filtered_topk.prepare import plane
from penstock.kernels.slabs.layout import BLOCK, Layout
from penstock.retrieval.store.page import HASHED, Doubles, Longs, Page
from penstock.retrieval.store.zones import Zones

Values = dict[str, npt.NDArray[Any]]

_FLIP = np.uint64(1 << 63)


def signed(hashes: npt.NDArray[np.uint64]) -> Longs:
    """Unsigned hashes as signed ones of the same order."""
    return (hashes ^ _FLIP).view(np.int64)


def on_sphere(lat: Doubles, lon: Doubles) -> Doubles:
    """Degrees north and east [n] as points of the unit sphere: float64 [n, 3], NaN where a degree is."""
    north, east = np.radians(lat), np.radians(lon)
    out: Doubles = np.stack((np.cos(north) * np.cos(east), np.cos(north) * np.sin(east), np.sin(north)), axis=-1)
    return out


def of_rows(page: Page, rows: Longs, layout: Layout) -> Values:
    """Everything but births and deaths, each with its rows first. dense is int16, the bits of bfloat16, [n, width]."""
    dense = np.zeros((len(rows), layout.width), np.int16)
    dense[:, : page.dense.shape[1]] = page.dense.view(torch.int16).numpy()[rows]
    out: Values = {
        "dense": dense,
        "sketch": page.sketch.numpy()[rows],
        "expires": page.expires[rows],
        "tenant": page.tenant[rows],
        f"column.{HASHED}": signed(page.ties[rows]),
    }
    if layout.quantised:
        quantised, scales = plane(torch.from_numpy(dense).view(torch.bfloat16))
        out |= {"quantised": quantised.numpy(), "scales": scales.numpy()}
    for arrays in (page.symbols, page.codes, page.numbers, page.many):
        out |= {f"column.{field}": array[rows] for field, array in arrays.items()}
    out |= {f"column.{field}.counts": array[rows] for field, array in page.counts.items()}
    out |= {f"column.{field}": on_sphere(*array[:, rows]) for field, array in page.places.items()}
    return out


def of_blocks(page: Page, zones: Zones, blocks: Longs) -> Values:
    """The zone maps of blocks, each with its blocks first."""
    out: Values = {
        "zone.rows": zones.rows[blocks].astype(np.int32),
        "zone.expires_max": zones.expires_max[blocks],
        "zone.tenants": zones.tenants[blocks].view(np.int64),
        "zone.norms": rounded_up(page.norms.reshape(-1, BLOCK, 2)[blocks].max(1)),
    }
    for name, arrays in (("low", zones.low), ("high", zones.high)):
        out |= {f"zone.{field}.{name}": array[..., blocks].T for field, array in arrays.items()}
    out |= {f"zone.{field}.lacks": array[blocks].astype(np.int32) for field, array in zones.lacks.items()}
    out |= {f"zone.{field}.bits": array[blocks].view(np.int32) for field, array in zones.bits.items()}
    out |= {f"zone.{field}.signature": array[blocks].view(np.int64) for field, array in zones.signature.items()}
    return out


def rounded_up(values: Doubles) -> npt.NDArray[np.float32]:
    """To float32, never to less."""
    with np.errstate(over="ignore"):  # to infinity, which is not less
        out = values.astype(np.float32)
    return np.where(out < values, np.nextafter(out, np.float32(np.inf)), out)
