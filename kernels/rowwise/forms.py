"""The Config of a kernel that goes row by row: it moves bytes, so its loads and stores are held to their width."""

from __future__ import annotations

from collections.abc import Mapping

from penstock.kernels.aot.config import Config, Expectation, kernel_of


def row_form(
    name: str,
    kernel: str,
    signature: Mapping[str, str],
    constexprs: Mapping[str, object],
    *,
    warps: int,
    resident: int,
    module: str = "triton",
) -> Config:
    """`kernel` is a function of that module of the operator's, one row a program; pointers are multiples of 16 bytes.

    `resident`: programs that a multiprocessor holds, at least, which is what hides the memory's latency.
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
        expects=Expectation(wide_access=True, ctas_per_sm=resident),
    )
