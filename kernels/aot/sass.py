"""What a cubin's machine code says of a kernel: Figures, read by the cuobjdump and nvdisasm that come with Triton.

Registers, stack and static shared memory are the assembler's own account (`cuobjdump -res-usage`); the rest is counted
in the SASS, each instruction once however often it runs. "Of the main loop" is per iteration and thread.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from penstock.kernels.aot.flow import Block, Instruction, Loop, blocks, loops, reachable, shortest_round

# Compute capability 9.0: CUDA C++ Programming Guide, table of technical specifications; granularities as in NVIDIA's
# occupancy calculator.
REGISTERS_PER_SM = 65_536
REGISTER_UNIT = 256  # a warp's are given out in
SHARED_PER_SM = 228 * 1024
SHARED_PER_CTA = 227 * 1024
SHARED_RESERVED = 1024  # of every CTA, for the system
SHARED_UNIT = 128
WARPS_PER_SM = 64
CTAS_PER_SM = 32
PARTITIONS = 4  # of an SM; a CTA's warps are spread over them

TENSOR_CORE = ("HGMMA", "IGMMA", "QGMMA")  # warpgroup instructions: of 16-bit floats, int8, fp8
OLD_TENSOR_CORE = ("HMMA", "IMMA", "DMMA")  # warp instructions, half the throughput here; DMMA: float64
TMA = ("UTMALDG", "UBLKCP")
SPILL = ("LDL", "STL")
ATOMICS = ("ATOMG", "ATOM", "RED", "ATOMS")
_BITS = re.compile(r"\.(?:[US])?(8|16|64|128)(?=\.|$)")
_USAGE = re.compile(r"Function ([\w$.]+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)")


@dataclass(frozen=True, slots=True)
class Part:
    """Counts over a set of blocks."""

    instructions: int
    tensor_core: int
    old_tensor_core: int
    async_copies: dict[int, int]  # LDGSTS by bits
    loads: dict[int, int]  # LDG by bits
    stores: dict[int, int]  # STG by bits
    tma: int
    spills: int
    barriers: int  # of the CTA: BAR
    atomics: int


@dataclass(frozen=True, slots=True)
class Figures:
    registers: int
    stack: int  # bytes
    shared: int  # bytes a CTA: dynamic and static
    warps: int
    ctas_per_sm: int
    whole: Part
    main: Part  # of the main loop; the whole kernel where there is none
    looped: bool
    hot: int  # instructions of an iteration of the main loop in which nothing rare happens
    beside: int  # of the greatest loop that takes turns with the main one, as deep as two loops in each other

    @property
    def spills_outside(self) -> int:
        return self.whole.spills - self.main.spills

    @property
    def async_bytes(self) -> int:
        """Bytes that the CTA copies asynchronously in an iteration of the main loop, by LDGSTS; unknown of TMA."""
        return sum(bits // 8 * count for bits, count in self.main.async_copies.items()) * self.warps * 32


def figures(cubin: bytes, entry: str, dynamic_shared: int, warps: int) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _tool("cuobjdump", "-res-usage", str(path))
        text = _tool("nvdisasm", "-c", str(path))
    registers, stack, static = _usage(usage, entry)
    # Triton's own allocation is dynamic; what the assembler counts as static is the system's reserve of 1 KiB.
    shared = dynamic_shared + max(0, static - SHARED_RESERVED)
    return read(text, entry, registers, stack, shared, warps)


def read(text: str, entry: str, registers: int, stack: int, shared: int, warps: int) -> Figures:
    """Figures of a disassembly."""
    graph = blocks(text, entry)
    main = main_loop(graph)
    everything = part(graph, reachable(graph))
    within = everything if main is None else part(graph, main.blocks)
    hot = everything.instructions
    if main is not None:
        through = {index for index in main.blocks if _has(graph[index], TENSOR_CORE)}
        hot = shortest_round(graph, main, through)
    ctas = occupancy(registers, shared, warps)
    other = 0 if main is None else beside(graph, main)
    return Figures(registers, stack, shared, warps, ctas, everything, within, main is not None, hot, other)


def main_loop(graph: list[Block]) -> Loop | None:
    """The innermost loop with warpgroup instructions, else that which loads most bytes; None where there is no loop."""
    found = loops(graph)  # the smallest first
    for names in (TENSOR_CORE, OLD_TENSOR_CORE):
        for loop in found:
            if any(_has(graph[index], names) for index in loop.blocks):
                return loop
    innermost = [one for one in found if not any(other.blocks < one.blocks for other in found)]
    return max(innermost, key=lambda loop: _loaded(graph, loop), default=None)


def beside(graph: list[Block], main: Loop) -> int:
    """Instructions of the greatest loop that lies in the same outer loop as the main one and apart from it.

    Of loops in it the first level counts once, deeper ones not at all: a scan's gate goes over filters, and within them
    over clauses, of which there may be none.
    """
    found = loops(graph)
    outer = next((loop for loop in found if main.blocks < loop.blocks), None)
    if outer is None:
        return 0
    apart = [loop for loop in found if loop.blocks < outer.blocks and not loop.blocks & main.blocks]
    if not apart:
        return 0
    greatest = max(apart, key=lambda loop: len(loop.blocks))
    within = [loop for loop in found if loop.blocks < greatest.blocks]
    deeper = [loop for loop in within if any(loop.blocks < other.blocks for other in within)]
    left = greatest.blocks.difference(*(loop.blocks for loop in deeper))
    return sum(len(graph[index].instructions) for index in left)


def part(graph: list[Block], indices: Iterable[int]) -> Part:
    code = [instruction for index in indices for instruction in graph[index].instructions]
    names = Counter(instruction.mnemonic for instruction in code)
    return Part(
        instructions=len(code),
        tensor_core=sum(names[name] for name in TENSOR_CORE),
        old_tensor_core=sum(names[name] for name in OLD_TENSOR_CORE),
        async_copies=_by_bits(code, "LDGSTS"),
        loads=_by_bits(code, "LDG"),
        stores=_by_bits(code, "STG"),
        tma=sum(names[name] for name in TMA),
        spills=sum(names[name] for name in SPILL),
        barriers=names["BAR"],
        atomics=sum(names[name] for name in ATOMICS),
    )


def occupancy(registers: int, shared: int, warps: int) -> int:
    """CTAs that an SM holds at once; 0 where not even one fits."""
    if shared > SHARED_PER_CTA:
        return 0
    a_warp = -(-max(1, registers) * 32 // REGISTER_UNIT) * REGISTER_UNIT
    by_registers = REGISTERS_PER_SM // PARTITIONS // a_warp * PARTITIONS // warps
    a_cta = -(-shared // SHARED_UNIT) * SHARED_UNIT + SHARED_RESERVED
    return min(CTAS_PER_SM, WARPS_PER_SM // warps, by_registers, SHARED_PER_SM // a_cta)


def bits(instruction: Instruction) -> int:
    """The width of a load or store a thread: "LDG.E.128.CONSTANT" is 128, one that says nothing 32."""
    found = _BITS.search(instruction.opcode.replace(".LTC128B", "").replace(".LTC64B", ""))
    return int(found.group(1)) if found else 32


def _by_bits(code: list[Instruction], mnemonic: str) -> dict[int, int]:
    return dict(sorted(Counter(bits(one) for one in code if one.mnemonic == mnemonic).items()))


def _has(block: Block, mnemonics: tuple[str, ...]) -> bool:
    return any(instruction.mnemonic in mnemonics for instruction in block.instructions)


def _loaded(graph: list[Block], loop: Loop) -> int:
    code = [instruction for index in loop.blocks for instruction in graph[index].instructions]
    return sum(bits(one) for one in code if one.mnemonic in ("LDG", "LDGSTS"))


def _usage(text: str, entry: str) -> tuple[int, int, int]:
    for name, registers, stack, static in _USAGE.findall(text):
        if name == entry:
            return int(registers), int(stack), int(static)
    raise ValueError(f"cuobjdump lists no function {entry!r}: {text.strip()!r}")


def _tool(name: str, *arguments: str) -> str:
    from triton import knobs  # here: to read figures from JSON, nobody needs Triton

    path = getattr(knobs.nvidia, name).path
    return subprocess.run([path, *arguments], check=True, capture_output=True, text=True).stdout
