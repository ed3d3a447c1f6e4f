"""The forms of the int8 scan that are compiled ahead of time."""

from __future__ import annotations

from penstock.kernels.aot.config import Config
from penstock.kernels.filtered_topk.configs import scan_config

OPERATOR = "int8_topk"


def configs() -> tuple[Config, ...]:
    return (
        *(scan_config(OPERATOR, width, batch, 0, quantised=True) for width in (256, 384) for batch in (16, 64)),
        scan_config(OPERATOR, 384, 64, 64, quantised=True),
        scan_config(OPERATOR, 384, 64, 64, quantised=True, seed=True),
    )
