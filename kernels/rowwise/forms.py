"""The Config of a kernel that goes row by row: it moves bytes, so its loads and stores are held to their width."""

from __future__ import annotations

from collections.abc import Mapping

from penstock.kernels.aot.config import Config, Expectation, kernel_of

WARPS_PER_SM = 64


def row_form(
    name: str,
    kernel: str,
    signature: Mapping[str, str],
    constexprs: Mapping[str, object],
    *,
    warps: int,
    busy: int = WARPS_PER_SM,
    wide_stores: bool = True,
    module: str = "triton",
) -> Config:
    """`kernel` is a function of that module of the operator's, one row a program; pointers are multiples of 16 bytes.

    `busy`: warps that a multiprocessor holds at least, which is what hides the memory's latency. `wide_stores`: unless
    it stores one number a row.
    """
    operator = name.split("/", 1)[0]
    return Config(
        name=name,
        operator=operator,
        kernel=kernel_of(f"penstock.kernels.{operator}.{module}", kernel),
        signature=signature,
        constexprs={**constexprs, "ROWS": 1},
        divisible=tuple(argument for argument, type_ in signature.items() if type_.startswith("*")),
        num_warps=warps,
        num_stages=1,
        expects=Expectation(wide_loads=True, wide_stores=wide_stores, ctas_per_sm=busy // warps),
    )
