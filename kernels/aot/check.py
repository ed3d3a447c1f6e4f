"""Figures against what is expected of them, one config at a time, and what becomes of it as JSON."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from typing import Any

from penstock.kernels.aot.config import Config
from penstock.kernels.aot.registry import configs
from penstock.kernels.aot.sass import SHARED_PER_CTA, Figures, Part, figures

# Of the bytes that a main loop loads: what must come by 128-bit asynchronous copies where they are expected.
MOSTLY = 0.75


@dataclass(frozen=True, slots=True)
class Checked:
    name: str
    operator: str
    seconds: float  # to compile
    figures: Figures | None  # None: not compiled
    failures: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "failures": list(self.failures)}

    @classmethod
    def from_json(cls, read: dict[str, Any]) -> Checked:
        found = read["figures"]
        if found is not None:
            found = Figures(**{**found, "whole": _part(found["whole"]), "main": _part(found["main"])})
        return cls(**{**read, "figures": found, "failures": tuple(read["failures"])})


def _part(read: dict[str, Any]) -> Part:
    """JSON's keys are strings: widths are integers again."""
    given: dict[str, Any] = {
        name: {int(bits): count for bits, count in value.items()} if isinstance(value, dict) else value
        for name, value in read.items()
    }
    return Part(**given)


def failures(config: Config, found: Figures) -> tuple[str, ...]:
    """Each says what was found and what was expected; none where the config holds."""
    expects, main = config.expects, found.main
    said = []
    if main.spills:
        said.append(
            f"{main.spills} spilling instructions in the main loop ({found.registers} registers): expected none"
        )
    if found.spills_outside > expects.max_spills_outside:
        said.append(
            f"{found.spills_outside} spilling instructions outside the main loop: expected {expects.max_spills_outside}"
        )
    if found.shared > SHARED_PER_CTA:
        said.append(f"{found.shared} bytes of shared memory: a CTA has {SHARED_PER_CTA}")
    elif found.ctas_per_sm < expects.ctas_per_sm:
        said.append(
            f"{found.ctas_per_sm} CTAs fit an SM ({found.registers} registers, {found.shared} bytes, {found.warps} "
            f"warps): expected {expects.ctas_per_sm}"
        )
    if found.registers > expects.max_registers:
        said.append(f"{found.registers} registers: expected {expects.max_registers} at most")
    if expects.tensor_core and not main.tensor_core:
        old = f" ({main.old_tensor_core} of the older kind)" if main.old_tensor_core else ""
        said.append(f"no warpgroup tensor-core instruction in the main loop{old}")
    narrow = {width: count for width, count in main.loads.items() if width < 32}
    if expects.async_copies_128 and narrow:
        said.append(
            f"narrow loads in the main loop, LDG by bits: {narrow}: expected its tiles by asynchronous copies alone"
        )
    if expects.async_copies_128 and wide_share(main) < MOSTLY:
        said.append(
            f"{wide_share(main):.0%} of what the main loop loads comes by 128-bit asynchronous copies (LDGSTS by bits: "
            f"{main.async_copies}, LDG: {main.loads}, TMA: {main.tma}): expected {MOSTLY:.0%}; is the base declared "
            "with tl.multiple_of?"
        )
    if main.async_copies.get(128, 0) < expects.least_async_copies_128:
        said.append(
            f"{main.async_copies.get(128, 0)} asynchronous copies of 128 bits in the main loop: expected "
            f"{expects.least_async_copies_128}; is the base declared with tl.multiple_of?"
        )
    moved = (("loads", expects.wide_loads, main.loads), ("stores", expects.wide_stores, main.stores))
    for what, wide, by_bits in moved:
        if wide and share_of_128(by_bits) < MOSTLY:
            said.append(
                f"{share_of_128(by_bits):.0%} of the bytes that it {what} go 128 bits at a time ({what} by bits: "
                f"{by_bits}): expected {MOSTLY:.0%}; are pointers and widths multiples of 16?"
            )
    if expects.max_loop_instructions is not None and main.instructions > expects.max_loop_instructions:
        said.append(
            f"{main.instructions} instructions in the main loop: expected {expects.max_loop_instructions} at most"
        )
    return tuple(said)


def wide_share(main: Part) -> float:
    """The share, by bytes, of 128-bit asynchronous copies in them and the loads that the loop waits for.

    Narrower asynchronous copies are left out: values that all threads share, each copied by every thread. Where
    there are no others the share is 0. TMA brings tiles by one instruction, whose bytes nobody sees here: 1.
    """
    if main.tma:
        return 1.0
    wide = main.async_copies.get(128, 0) * 128
    waited_for = sum(bits * count for bits, count in main.loads.items())
    return wide / (wide + waited_for) if wide else 0.0


def share_of_128(by_bits: Mapping[int, int]) -> float:
    """The share of bytes that go 128 bits at a time; 1 where none go."""
    whole = sum(bits * count for bits, count in by_bits.items())
    return by_bits.get(128, 0) * 128 / whole if whole else 1.0


def check(config: Config) -> Checked:
    from penstock.kernels.aot.compile import NotCompiled, compiled  # here: to read JSON, nobody needs Triton

    try:
        made = compiled(config)
    except NotCompiled as error:
        return Checked(config.name, config.operator, 0.0, None, (f"not compiled: {error}",))
    try:
        found = figures(made.cubin, made.entry, made.shared, config.num_warps)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        return Checked(config.name, config.operator, made.seconds, None, (f"machine code not understood: {error}",))
    return Checked(config.name, config.operator, made.seconds, found, failures(config, found))


def _check_named(name: str) -> Checked:
    """In a worker: a config holds functions, so its name travels, not it."""
    return check(next(config for config in configs(name.split("/", 1)[0]) if config.name == name))


def check_all(chosen: Iterable[Config], jobs: int) -> list[Checked]:
    """In the order given, `jobs` processes at once; each loads Triton anew, for its compiler is not for threads."""
    chosen = list(chosen)
    if jobs == 1 or len(chosen) < 2:
        return [check(config) for config in chosen]
    with ProcessPoolExecutor(min(jobs, len(chosen)), get_context("spawn")) as pool:
        return list(pool.map(_check_named, (config.name for config in chosen)))
