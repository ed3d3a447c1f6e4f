"""SASS as nvdisasm prints it (`nvdisasm -c`) to basic blocks and natural loops. Pure: text in, values out.

A loop is what a compiler's textbook calls one: a back edge leads to a block that dominates its source, and the loop is
every block from which the source is reached without passing the head. ptxas moves cold code behind the end of a
function and lets it branch back, so ranges of addresses would take half a kernel for a loop. BSSY and BSYNC only say
where threads meet again, a call comes back: neither ends a block's flow here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]+)\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_LABEL = re.compile(r"^(\.L\w+):")
_SECTION = re.compile(r"^\s*\.section\s+\.text\.([\w$.]+),")
_TARGET = re.compile(r"`\((\.L\w+)\)")


@dataclass(frozen=True, slots=True)
class Instruction:
    address: int
    guard: str  # "@!P0", "" where it always runs
    opcode: str  # with its modifiers: "LDGSTS.E.BYPASS.128"
    operands: str

    @property
    def mnemonic(self) -> str:
        return self.opcode.split(".", 1)[0]

    @property
    def target(self) -> str | None:
        found = _TARGET.search(self.operands)
        return found.group(1) if found else None


@dataclass(slots=True)
class Block:
    instructions: list[Instruction] = field(default_factory=list)
    after: list[int] = field(default_factory=list)  # indices of the blocks that may come next


@dataclass(frozen=True, slots=True)
class Loop:
    head: int
    blocks: frozenset[int]


def blocks(text: str, entry: str) -> list[Block]:
    """The basic blocks of one function, the first of them its entry; ValueError where the text has no such function."""
    lines = list(_of_function(text, entry))
    if not any(isinstance(line, Instruction) for line in lines):
        raise ValueError(f"no function {entry!r} in this disassembly: expected a section .text.{entry}")
    found: list[Block] = [Block()]
    labels: dict[str, int] = {}
    for line in lines:
        if isinstance(line, str):
            if found[-1].instructions:
                found.append(Block())
            labels[line] = len(found) - 1
            continue
        found[-1].instructions.append(line)
        if line.mnemonic in ("BRA", "EXIT", "RET", "KILL"):
            found.append(Block())
    for index, block in enumerate(found):
        block.after = [at for at in _after(index, block, labels) if at < len(found)]
    return found


def _of_function(text: str, entry: str) -> Iterator[Instruction | str]:
    inside = False
    for line in text.splitlines():
        if section := _SECTION.match(line):
            inside = section.group(1) == entry
        elif inside and (label := _LABEL.match(line)):
            yield label.group(1)
        elif inside and (found := _INSTRUCTION.match(line)):
            address, guard, opcode, operands = found.groups()
            yield Instruction(int(address, 16), guard or "", opcode, operands)


def _after(index: int, block: Block, labels: dict[str, int]) -> Iterator[int]:
    last = block.instructions[-1] if block.instructions else None
    if last is None or last.mnemonic not in ("BRA", "EXIT", "RET", "KILL"):
        yield index + 1
        return
    # "BRA.U UP0, `(.L)" and "BRA P0, `(.L)" carry their condition as an operand.
    conditional = bool(last.guard) or re.match(r"!?U?P[0-9]", last.operands) is not None or ".DIV" in last.opcode
    if last.mnemonic == "BRA":
        if last.target is None or last.target not in labels:
            raise ValueError(f"a branch to nowhere at {last.address:#x}: {last.opcode} {last.operands}")
        yield labels[last.target]
    if conditional:
        yield index + 1


def reachable(graph: list[Block]) -> list[int]:
    """In reverse postorder: a block comes before what it dominates."""
    order: list[int] = []
    seen = {0}
    stack = [(0, iter(graph[0].after))]
    while stack:
        index, rest = stack[-1]
        for one in rest:
            if one not in seen:
                seen.add(one)
                stack.append((one, iter(graph[one].after)))
                break
        else:
            order.append(index)
            stack.pop()
    return order[::-1]


def loops(graph: list[Block]) -> list[Loop]:
    """Natural loops, those of one head as one; the smallest first, so that an inner loop comes before its outer."""
    order = reachable(graph)
    before = _before(graph, order)
    dominators = _dominators(order, before)
    bodies: dict[int, set[int]] = {}
    for source in order:
        for head in graph[source].after:
            if head not in dominators[source]:
                continue
            body = bodies.setdefault(head, {head})
            waiting = [source]
            while waiting:
                one = waiting.pop()
                if one not in body:
                    body.add(one)
                    waiting.extend(before[one])
    return sorted((Loop(head, frozenset(body)) for head, body in bodies.items()), key=lambda loop: len(loop.blocks))


def _before(graph: list[Block], order: list[int]) -> dict[int, list[int]]:
    before: dict[int, list[int]] = {index: [] for index in order}
    for index in order:
        for one in graph[index].after:
            before[one].append(index)
    return before


def _dominators(order: list[int], before: dict[int, list[int]]) -> dict[int, set[int]]:
    """The iterative algorithm of Allen and Cocke; a kernel has some hundreds of blocks."""
    everything = set(order)
    found = {index: ({index} if index == order[0] else set(everything)) for index in order}
    changed = True
    while changed:
        changed = False
        for index in order[1:]:
            new = {index} | set.intersection(*(found[one] for one in before[index]))
            if new != found[index]:
                found[index], changed = new, True
    return found


def shortest_round(graph: list[Block], loop: Loop, through: set[int]) -> int:
    """Instructions of the cheapest way once around a loop that passes every block of `through`.

    That is an iteration in which nothing rare happens: guarded cold code is a branch not taken. Blocks of `through` are
    passed in reverse postorder; of two that exclude each other, the first.
    """
    place = {index: at for at, index in enumerate(reachable(graph))}
    stops = [*sorted((through & loop.blocks) - {loop.head}, key=place.__getitem__), loop.head]
    total, here = 0, loop.head
    for stop in stops:
        spent = _shortest(graph, loop, here, stop)
        if spent is not None:
            total, here = total + spent, stop
    return total


def _shortest(graph: list[Block], loop: Loop, start: int, end: int) -> int | None:
    """Instructions from the beginning of `start` to that of `end` within the loop, None: no way (Bellman and Ford)."""
    cost = {start: 0}
    best: int | None = None
    changed = True
    while changed:
        changed = False
        for index, spent in list(cost.items()):
            there = spent + len(graph[index].instructions)
            for one in graph[index].after:
                if one == end and (best is None or there < best):
                    best = there
                if one in loop.blocks and one not in (end, loop.head) and there < cost.get(one, 1 << 60):
                    cost[one], changed = there, True
    return best
