"""Texts of like length together: padding is work that nobody wants."""

from __future__ import annotations

from collections.abc import Sequence

BATCH_TOKENS = 16_384  # padded tokens in one forward


def by_length(lengths: Sequence[int], most_tokens: int = BATCH_TOKENS) -> list[list[int]]:
    """Indices, longest first, in groups of at most `most_tokens` padded tokens (or of one)."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if batches and (len(batches[-1]) + 1) * max(1, lengths[batches[-1][0]]) <= most_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
