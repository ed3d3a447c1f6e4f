"""Zone maps against the rows they stand for, through any sequence of filling, freeing and sweeping."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_pages import SmallPages
from store_inputs import attributes, upsert

from penstock.retrieval.store.page import BLOCK, INLINE, KEYWORD_FIELDS, MANY_FIELDS, NEVER, make_page
from penstock.retrieval.store.zones import EVERY_CODE, LACKING, Zones, signature, signature_bits

ROWS = 2 * BLOCK


def exact(page, rows):
    """What the zone of a block with these rows says, one row after the other."""
    out = {"rows": len(rows), "expires_max": max((int(page.expires[r]) for r in rows), default=None), "tenants": 0}
    for row in rows:
        out["tenants"] |= bit(page.tenant[row])
    numbers = {field: array[None] for field, array in page.numbers.items()} | page.places
    for field, axes in numbers.items():
        held = [row for row in rows if not math.isnan(axes[0, row])]
        out["lacks", field] = len(held) < len(rows)
        for number, axis in enumerate(axes):
            values = [float(axis[row]) for row in held]
            out["low", field, number] = min(values, default=math.inf)
            out["high", field, number] = max(values, default=-math.inf)
    for field, symbols in page.symbols.items():
        out["bits", field] = sum({1 << int(symbols[row]) for row in rows})
    for field, codes in page.codes.items():
        out["signature", field] = 0
        for row in rows:
            out["signature", field] |= bit(codes[row])
    for field, many in page.many.items():
        found = 0
        for row in rows:
            count = int(page.counts[field][row])
            found |= int(EVERY_CODE) if count > INLINE else bit(-1) if count == 0 else 0
            for code in many[row, : min(count, INLINE)]:
                found |= bit(code)
        out["signature", field] = found
    return out


def bit(code):
    """The contract's signature bit, in plain numbers: multiplicative hashing, 63 bits, the last for what lacks."""
    return 1 << 63 if code == -1 else 1 << ((int(code) * 0x9E3779B97F4A7C15 % 2**64 >> 32) % 63)


def said(zones, block):
    out = {
        "rows": int(zones.rows[block]),
        "expires_max": int(zones.expires_max[block]) if zones.rows[block] else None,
        "tenants": int(zones.tenants[block]),
    }
    for field, low in zones.low.items():
        out["lacks", field] = bool(zones.lacks[field][block])
        for number, (a, b) in enumerate(zip(np.atleast_2d(low), np.atleast_2d(zones.high[field]), strict=True)):
            out["low", field, number], out["high", field, number] = float(a[block]), float(b[block])
    out |= {("bits", field): int(bits[block]) for field, bits in zones.bits.items()}
    return out | {("signature", field): int(bits[block]) for field, bits in zones.signature.items()}


def covers(wide, narrow):
    for key, value in narrow.items():
        name = key if isinstance(key, str) else key[0]
        if value is None:
            continue
        if name == "low":
            assert wide[key] <= value, key
        elif name in ("high", "expires_max"):
            assert wide[key] >= value, key
        elif name == "rows":
            assert wide[key] == value
        else:
            assert wide[key] | value == wide[key], key


steps = st.lists(
    st.tuples(
        st.sampled_from(["fill", "fill", "free", "sweep"]), st.lists(st.integers(0, ROWS - 1), max_size=8, unique=True)
    ),
    max_size=8,
)


@given(drawn=st.lists(attributes, min_size=1, max_size=10), steps=steps)
def test_zones_cover_taken_rows_always_and_exactly_after_a_sweep(drawn, steps):
    source = SmallPages([upsert(f"p{i}", expires_at=i * 7, **row) for i, row in enumerate(drawn)], pages=1).pages[0]
    page = make_page(0, ROWS)
    zones, taken, swept = Zones(page), set(), {0, 1}
    for number, (step, rows) in enumerate(steps):
        if step == "fill":
            rows = [row for row in rows if row not in taken]
            for row in rows:
                copy_row(source, (row + number) % len(drawn), page, row)
            swept |= {row // BLOCK for row in rows if all(r // BLOCK != row // BLOCK for r in taken)}
            zones.widen(np.asarray(rows, np.int64))
            taken |= set(rows)
        elif step == "free":
            rows = [row for row in rows if row in taken]
            zones.free(np.asarray(rows, np.int64))
            taken -= set(rows)
            swept -= {row // BLOCK for row in rows}
        else:
            blocks = {row // BLOCK for row in rows}
            zones.sweep(np.asarray(sorted(blocks), np.int64))
            swept |= blocks
        for block in (0, 1):
            mine = sorted(row for row in taken if row // BLOCK == block)
            covers(said(zones, block), exact(page, mine))
            if block in swept:  # and nothing freed since: filling keeps an exact zone exact, and makes an empty one so
                assert said(zones, block) == exact(page, mine)


def copy_row(source, row, page, place):
    for name, array in page.arrays().items():
        if name.startswith("places"):
            array[:, place] = source.arrays()[name][:, row]
        else:
            array[place] = source.arrays()[name][row]


def test_an_empty_block_forgets_what_it_held():
    page = make_page(0, ROWS)
    zones = Zones(page)
    rows = np.arange(BLOCK)
    page.numbers["posted_at"][rows], page.expires[rows], page.codes["company"][rows] = rows, NEVER, 7
    zones.widen(rows)
    zones.free(rows)
    assert zones.rows.tolist() == [0, 0]
    page.numbers["posted_at"][5], page.expires[5], page.codes["company"][5] = 1_000, 30, 9
    zones.widen(np.asarray([5]))
    assert (zones.low["posted_at"][0], zones.high["posted_at"][0], zones.expires_max[0]) == (1_000, 1_000, 30)
    assert zones.signature["company"][0] == signature(np.asarray([9], np.int32))


def test_a_row_filled_again_counts_once():
    zones = Zones(make_page(0, ROWS))
    zones.widen(np.asarray([3, 200, 4]))
    zones.widen(np.asarray([3]))
    assert zones.rows.tolist() == [2, 1]


def test_nothing_to_do_is_done():
    zones, none = Zones(make_page(0, ROWS)), np.zeros(0, np.int64)
    for step in (zones.widen, zones.free, zones.sweep):
        step(none)
    assert zones.rows.tolist() == [0, 0]


def test_signatures_use_the_contracts_bits():
    codes = np.asarray([0, 1, 62, 63, 2**31 - 1, -1], np.int32)
    assert [int(one) for one in signature_bits(codes)] == [bit(code) for code in codes]
    assert int(signature(codes[:0])) == 0
    many = signature_bits(np.arange(5_000, dtype=np.int32))
    shares = np.unique(many, return_counts=True)[1] / len(many)
    assert len(shares) == 63 and shares.max() < 2 / 63  # spread evenly
    assert not (many & LACKING).any()


@pytest.mark.parametrize("rows", [ROWS, 8 * BLOCK])
def test_memory_is_counted(rows):
    zones = Zones(make_page(0, rows))
    a_block = 2 + 8 + 8 + 4 * (8 + 8 + 1) + 2 * 16 + 1 + 3 * 4 + 8 * (len(KEYWORD_FIELDS) + len(MANY_FIELDS))
    assert zones.nbytes == rows + rows // BLOCK * a_block
