"""How gathering is launched on a Hopper GPU. Queries of one filter are few, so their tile is the smallest there is."""

from __future__ import annotations

from penstock.kernels.filtered_topk.tuning import WIDEST, Tuning, divisions

QUERIES = 16  # of a tile, all of one filter
MOST_TERMS = 64  # of a tile that are multiplied; lighter ones are left to the bound


def gather_tuning(width: int, terms: int) -> Tuning:
    """For rows of `width` values (padded) and `terms` terms (padded). ValueError for rows that no scan takes."""
    if width > WIDEST:
        raise ValueError(f"rows of {width} values: expected at most {WIDEST:,}")
    parts = 1 if width <= 384 else next(parts for parts in divisions(width) if width // parts <= 256)
    part = width // parts
    stages = 4 if part * 64 * 2 * 3 + terms * 256 <= 160 * 1024 else 3
    resident = 2 if part <= 256 and terms == 0 else 1
    return Tuning(tile=64, queries=QUERIES, warps=4, stages=stages, resident=resident, parts=parts)
