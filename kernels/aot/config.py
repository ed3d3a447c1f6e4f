"""One tuned form of one kernel: what Triton needs to compile it without a device, and what the result must hold.

Configs are written by the operator's owner in kernels/<operator>/configs.py, as values that the launcher also uses, so
that what is checked here is what runs there. This file imports neither torch nor triton: a list of configs is cheap.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

MOST_REGISTERS = 255  # a thread's, on every GPU that Triton compiles for


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the machine code of a config must hold; what is not said here is reported and not held to anything.

    The main loop is the innermost loop with tensor-core instructions, else the one with most bytes loaded from device
    memory. No config may spill in it, whatever is written here, nor need more shared memory than a CTA can have.
    """

    tensor_core: bool = False  # HGMMA or IGMMA in the main loop
    async_copies_128: bool = False  # the main loop's tiles come by 128-bit LDGSTS, or by TMA; none by narrower LDGSTS
    least_async_copies_128: int = 0  # 128-bit LDGSTS of a thread in the main loop: a tile, beside loads that are meant
    wide_loads: bool = False  # most bytes are loaded 128 bits at a time a thread, for kernels that only move them
    wide_stores: bool = False  # and stored
    max_registers: int = MOST_REGISTERS  # a thread's
    ctas_per_sm: int = 1  # what the launcher's grid and the model assume; the compiled form must allow as many
    max_loop_instructions: int | None = None  # of the main loop's SASS, all warps running the same code
    max_spills_outside: int = 0  # LDL and STL instructions outside the main loop


@dataclass(frozen=True, slots=True)
class Config:
    """`name` is unique and says the shape: "filtered_topk/scan/d256/b64"."""

    name: str
    operator: str  # the folder's name
    kernel: Callable[[], Any]  # imports the module and returns its triton.JITFunction: listing configs compiles nothing
    signature: Mapping[str, str]  # argument -> Triton's type, "*bf16", "i32", "fp32"; constexprs are left out
    constexprs: Mapping[str, object]
    divisible: tuple[str, ...]  # pointers, and integers, that are multiples of 16 (bytes of address; values)
    num_warps: int
    num_stages: int
    options: Mapping[str, object] = field(default_factory=dict)  # further ones, "maxnreg": 128
    expects: Expectation = field(default_factory=Expectation)

    def __post_init__(self) -> None:
        both = self.signature.keys() & self.constexprs.keys()
        if both:
            raise ValueError(f"{self.name}: {sorted(both)} are both in signature and in constexprs: leave one out")
        strangers = set(self.divisible) - self.signature.keys()
        if strangers:
            raise ValueError(f"{self.name}: divisible names {sorted(strangers)}, which are not in its signature")
        if not self.name.startswith(f"{self.operator}/"):
            raise ValueError(f"{self.name}: expected a name that begins with its operator, {self.operator}/")


def kernel_of(module: str, name: str) -> Callable[[], Any]:
    """A config's `kernel`: the module is imported when its kernel is asked for."""
    return lambda: getattr(importlib.import_module(module), name)
