"""Disassembly to blocks, loops and counts, on code written by hand."""

import pytest

from penstock.kernels.aot.flow import blocks, loops, reachable, shortest_round
from penstock.kernels.aot.sass import bits, main_loop, occupancy, read


def code(body):
    """Lines as nvdisasm prints them: "LABEL:" or an instruction."""
    lines, address = ['\t.section\t.text.kernel,"ax",@progbits', "kernel:", ".text.kernel:"], 0
    for line in filter(None, map(str.strip, body.splitlines())):
        if line.endswith(":"):
            lines.append(line)
        else:
            lines.append(f"        /*{address:04x}*/                   {line} ;")
            address += 16
    return "\n".join([*lines, '\t.section\t.text.other,"ax",@progbits', "        /*0000*/  STL [R1], R2 ;"])


# A loop of two tiles' worth, cold code behind its end that branches back, and an inner loop in the cold code.
TILES = code(
    """
    LDG.E.128 R4, desc[UR6][R2.64]
    STL [R1], R4
    .L_x_1:
    LDGSTS.E.BYPASS.LTC128B.128 [R30], desc[UR6][R2.64]
    LDGSTS.E.64 [R30], desc[UR6][R2.64]
    HGMMA.64x64x16.F32.BF16 R24, gdesc[UR56], R24
    @P0 BRA `(.L_x_2)
    .L_x_3:
    BAR.SYNC.DEFER_BLOCKING 0x0
    LDG.E.U16 R9, desc[UR6][R2.64]
    @P1 BRA `(.L_x_1)
    LDL R4, [R1]
    STG.E.64 desc[UR6][R2.64], R4
    EXIT
    .L_x_2:
    ATOMG.E.ADD.STRONG.GPU PT, R95, desc[UR6][R22.64], R95
    .L_x_4:
    FADD R1, R1, R1
    @P2 BRA `(.L_x_4)
    BRA `(.L_x_3)
    .L_x_5:
    BRA `(.L_x_5)
    """
)


def figures(text=TILES, **given):
    return read(text, "kernel", **{"registers": 64, "stack": 0, "shared": 0, "warps": 4, **given})


def test_loops_are_natural_ones_and_code_that_nothing_reaches_is_left_out():
    graph = blocks(TILES, "kernel")
    assert len(reachable(graph)) == 7
    inner, outer = loops(graph)
    assert len(inner.blocks) == 1
    assert inner.blocks < outer.blocks
    assert sum(len(graph[index].instructions) for index in outer.blocks) == 7 + 1 + 2 + 1
    assert main_loop(graph) == outer


def test_counts_are_of_the_main_loop_and_of_the_whole_kernel():
    found = figures()
    assert found.main.tensor_core == 1
    assert found.main.async_copies == {64: 1, 128: 1}
    assert found.main.loads == {16: 1}
    assert (found.main.stores, found.whole.stores) == ({}, {64: 1})
    assert (found.main.spills, found.spills_outside) == (0, 2)
    assert (found.main.atomics, found.main.barriers) == (1, 1)
    assert found.async_bytes == (16 + 8) * 128


def test_an_iteration_in_which_nothing_rare_happens_leaves_the_cold_code_out():
    assert figures().hot == 7
    graph = blocks(TILES, "kernel")
    cold = {index for index, block in enumerate(graph) if any(one.mnemonic == "ATOMG" for one in block.instructions)}
    assert shortest_round(graph, loops(graph)[-1], cold) == 7 + 1 + 2 + 1  # once around the inner loop


def test_of_ways_that_exclude_each_other_one_is_taken():
    text = code(
        """
        .L_x_1:
        @P0 BRA `(.L_x_2)
        HGMMA.64x64x16.F32.BF16 R24, gdesc[UR56], R24
        FADD R1, R1, R1
        BRA `(.L_x_3)
        .L_x_2:
        HGMMA.64x32x16.F32.BF16 R24, gdesc[UR56], R24
        .L_x_3:
        @P1 BRA `(.L_x_1)
        EXIT
        """
    )
    assert figures(text).main.tensor_core == 2
    assert figures(text).hot in (3, 5)


def test_a_spill_in_the_loop_counts_as_in_the_loop():
    assert figures(TILES.replace("BAR.SYNC.DEFER_BLOCKING 0x0", "LDL.64 R4, [R1]")).main.spills == 1


def test_the_loop_that_takes_turns_with_the_main_one():
    """An outer loop of a gate (two loops deep, and one deeper that is left out) and of tiles."""
    text = code(
        """
        .L_x_1:
        IADD3 R1, R1, R1, RZ
        .L_x_2:
        LDG.E R9, desc[UR6][R2.64]
        .L_x_3:
        FADD R1, R1, R1
        .L_x_4:
        FMUL R1, R1, R1
        @P0 BRA `(.L_x_4)
        @P1 BRA `(.L_x_3)
        STG.E desc[UR6][R2.64], R1
        @P2 BRA `(.L_x_2)
        .L_x_5:
        HGMMA.64x64x16.F32.BF16 R24, gdesc[UR56], R24
        @P3 BRA `(.L_x_5)
        @P4 BRA `(.L_x_1)
        EXIT
        """
    )
    assert figures(text).main.instructions == 2
    assert figures(text).beside == 3 + 2
    assert figures().beside == 0


def test_without_tensor_cores_the_loop_that_loads_most_is_the_main_one():
    text = code(
        """
        .L_x_1:
        LDG.E R9, desc[UR6][R2.64]
        @P1 BRA `(.L_x_1)
        .L_x_2:
        LDG.E.128 R8, desc[UR6][R2.64]
        IADD3 R2, R2, 0x10, RZ
        BRA P0, `(.L_x_2)
        EXIT
        """
    )
    assert figures(text).main.loads == {128: 1}
    assert figures(text).hot == 3
    straight = figures(code("LDG.E R9, desc[UR6][R2.64]\n EXIT"))
    assert not straight.looped
    assert straight.main == straight.whole
    assert straight.hot == 2


def test_another_function_or_none_is_an_error():
    with pytest.raises(ValueError, match="no function 'strange'"):
        blocks(TILES, "strange")
    with pytest.raises(ValueError, match="a branch to nowhere"):
        blocks(code("BRA `(.L_x_9)"), "kernel")


@pytest.mark.parametrize(
    ("opcode", "width"),
    [
        ("LDG.E", 32),
        ("LDG.E.128", 128),
        ("LDG.E.64.CONSTANT", 64),
        ("LDG.E.U8", 8),
        ("LDG.E.S16", 16),
        ("LDGSTS.E.BYPASS.LTC128B.128", 128),
        ("LDGSTS.E.LTC128B", 32),
        ("STG.E.EF.128", 128),
    ],
)
def test_widths(opcode, width):
    (block, *_) = blocks(code(f"{opcode} R1, R2"), "kernel")
    assert bits(block.instructions[0]) == width


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "ctas"),
    [
        (32, 0, 4, 16),  # warps: 64 an SM
        (255, 0, 4, 2),  # registers: 8,192 a warp, 8 warps
        (128, 0, 8, 2),
        (168, 0, 12, 1),
        (129, 0, 8, 1),  # given out in units of 8 a thread
        (64, 227 * 1024, 4, 1),
        (64, 113 * 1024, 4, 2),  # each takes 1 KiB more than it asks for
        (64, 114 * 1024, 4, 1),
        (64, 227 * 1024 + 1, 4, 0),
        (16, 0, 1, 32),
    ],
)
def test_occupancy_of_an_sm(registers, shared, warps, ctas):
    assert occupancy(registers, shared, warps) == ctas
