"""A Config to machine code for sm_90, without a device, on Triton 3.6 to 3.9.

What differs between those versions, and between compiling here and launching there, is settled in `source`: the
signature names every argument in the kernel's order, constexprs among them, and divisibility is what the backend itself
makes of "D", the mark that a launch gives a multiple of 16. So the code is that of a launch with such arguments; an
integer that happens to be 1 is not specialised, as in a launch with `do_not_specialize`, or with another value.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
import warnings
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction

from penstock.kernels.aot.config import Config

HOPPER = GPUTarget("cuda", 90, 32)


class NotCompiled(RuntimeError):
    """Triton refused a config, or it cannot be compiled in this process."""


@dataclass(frozen=True, slots=True)
class Compiled:
    config: Config
    cubin: bytes
    entry: str  # the function's name in the cubin
    shared: int  # bytes of shared memory that the launch asks for; what the cubin holds statically comes on top
    seconds: float  # of wall time; next to nothing where Triton's cache had it


def source(config: Config, target: GPUTarget = HOPPER) -> Any:
    """The config as Triton's compiler takes it."""
    function = config.kernel()
    if not isinstance(function, JITFunction):
        raise NotCompiled(
            f"{config.name}: its kernel is a {type(function).__name__}, not a triton.JITFunction: "
            "unset TRITON_INTERPRET and run this in a process of its own"
        )
    given = config.signature.keys() | config.constexprs.keys()
    if given != set(function.arg_names):
        missing, strange = set(function.arg_names) - given, given - set(function.arg_names)
        raise NotCompiled(
            f"{config.name}: the config and the kernel's arguments differ: not given {sorted(missing)}, "
            f"not an argument {sorted(strange)}"
        )
    divisible = make_backend(target).parse_attr("D")
    return ASTSource(
        fn=function,
        signature={name: config.signature.get(name, "constexpr") for name in function.arg_names},
        constexprs=dict(config.constexprs),
        attrs={(function.arg_names.index(name),): divisible for name in config.divisible},
    )


def compiled(config: Config, target: GPUTarget = HOPPER) -> Compiled:
    """NotCompiled, with what Triton said, where it does not compile."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise NotCompiled("TRITON_INTERPRET is set: kernels are Python functions here; compile in another process")
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages, **config.options}
    began = time.perf_counter()
    said = io.StringIO()  # where ptxas fails, Triton prints the whole PTX
    try:
        with contextlib.redirect_stdout(said), warnings.catch_warnings():
            # Triton 3.9 asks every user to say what 3.10 shall do about fused products; nothing is decided here.
            warnings.filterwarnings("ignore", message="TRITON_DEFAULT_FP_FUSION")
            kernel = triton.compile(source(config, target), target=target, options=options)
    except NotCompiled:
        raise
    except Exception as error:  # the compiler's passes raise what they like
        raise NotCompiled(f"{config.name}: {_said(error)}") from error
    return Compiled(
        config, kernel.asm["cubin"], kernel.metadata.name, kernel.metadata.shared, time.perf_counter() - began
    )


def _said(error: BaseException) -> str:
    """The error and its causes: an error in a function that a kernel calls is the cause of one at the call."""
    said: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        said.append(f"{type(cause).__name__}: {cause}")
        cause = cause.__cause__
    return "\ncaused by ".join(said)
