"""A packed forward's tokens, positions and segments from its pieces: what stands at a place comes from what was sent
with the forward, or from an arena on the device.

**Layout.** pieces int32 [>= n, 5]: first place, length (at most TOKENS), that place's position, the first place of its
segment, source; count int32 [1]: n, on the device, so that one launch serves forwards of any number. sent int32 [S] and
arena int32 [A]. A source in [0, S) is an index of `sent`, one from S on of `arena`, one below 0 a code that is not
looked up: ~row of a vector, for gather_embeddings, and the next places have the next rows. codes, positions, starts:
int32 [T], and what no piece covers stays as it was. All contiguous. Indices out of range are the caller's to refuse.

**Invariant.** Integers are copied: a place depends on its piece alone. Places of two pieces do not overlap.

**Grid.** (ceil(T / (PIECES * TOKENS)),), and programs stride over the pieces: as many as there are where pieces are
full, in turns where they are short. A warp has a piece: a line of 128 bytes a table.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
# What Triton compiles has the types of its arguments, which are no Python types.
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from penstock.kernels.gather_tokens.tuning import NUMBERS, PIECES, TOKENS, WARPS
from penstock.kernels.rowwise.rows import INTERPRETED, check_contiguous

_PIECES = 64 if INTERPRETED else PIECES  # the interpreter takes programs one by one


@triton.jit
def gather(
    pieces,
    count,
    sent,
    arena,
    codes,
    positions,
    starts,
    sent_count,  # S
    NUMBERS: tl.constexpr,
    TOKENS: tl.constexpr,
    PIECES: tl.constexpr,
):
    at = tl.arange(0, TOKENS)[None, :]
    end = tl.load(count)
    for first in range(tl.program_id(0) * PIECES, end, tl.num_programs(0) * PIECES):
        piece = first + tl.arange(0, PIECES)[:, None]
        m_piece = piece < end
        p_piece = pieces + piece.to(tl.int64) * NUMBERS
        place = tl.load(p_piece, mask=m_piece, other=0) + at
        length = tl.load(p_piece + 1, mask=m_piece, other=0)
        position = tl.load(p_piece + 2, mask=m_piece, other=0) + at
        start = tl.load(p_piece + 3, mask=m_piece, other=0)
        source = tl.load(p_piece + 4, mask=m_piece, other=0)
        m_at = at < length
        m_arena = m_at & (source >= sent_count)
        m_sent = m_at & (source >= 0) & (source < sent_count)
        kept = tl.load(arena + (source - sent_count).to(tl.int64) + at, mask=m_arena, other=0)
        new = tl.load(sent + source.to(tl.int64) + at, mask=m_sent, other=0)
        code = tl.where(source < 0, source - at, tl.where(m_arena, kept, new))
        tl.store(codes + place, code, mask=m_at)
        tl.store(positions + place, position, mask=m_at)
        tl.store(starts + place, start + tl.zeros_like(at), mask=m_at)


def gather_tokens(
    pieces: Tensor, count: Tensor, sent: Tensor, arena: Tensor, codes: Tensor, positions: Tensor, starts: Tensor
) -> None:
    """Fills `codes`, `positions` and `starts`. Launches one kernel on the current stream and waits for nothing. Raises
    ValueError: other shapes or strides."""
    if pieces.dim() != 2 or pieces.shape[1] != NUMBERS or count.shape != (1,):
        raise ValueError(
            f"pieces {list(pieces.shape)}, count {list(count.shape)}: expected [n, {NUMBERS}] and their number in [1]"
        )
    if not codes.shape == positions.shape == starts.shape:
        raise ValueError(
            f"codes {list(codes.shape)}, positions {list(positions.shape)}, starts {list(starts.shape)}: "
            "expected one a token each"
        )
    check_contiguous(pieces=pieces, sent=sent, arena=arena, codes=codes, positions=positions, starts=starts)
    if len(codes):
        gather[(triton.cdiv(len(codes), _PIECES * TOKENS),)](
            pieces,
            count,
            sent,
            arena,
            codes,
            positions,
            starts,
            sent.numel(),
            NUMBERS=NUMBERS,
            TOKENS=TOKENS,
            PIECES=_PIECES,
            num_warps=WARPS,
        )
