"""Device memory that percolations leave their results in: the list between the two kernels, and the pairs found.

The number of pairs goes on counting past the room's capacity, so that who reads it sees what room was needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch


class Room:
    """Where percolations put what they find, one at a time, on the stream of their standing queries.

    `capacity` pairs; the list between the two kernels has place for as many queries as it was asked for last, or more.
    """

    def __init__(self, device: torch.device | str, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"room for {capacity} pairs: expected 1 or more")
        self.device = torch.device(device)
        self.capacity = capacity
        self.counters = torch.zeros(2, dtype=torch.int64, device=self.device)
        self.slots = torch.empty(capacity, dtype=torch.int32, device=self.device)
        self.postings = torch.empty(capacity, dtype=torch.int32, device=self.device)
        self.scores = torch.empty(capacity, dtype=torch.float32, device=self.device)
        self._listed: tuple[torch.Tensor, ...] = ()

    @staticmethod
    def bytes_for(capacity: int, queries: int) -> int:
        """Of device memory that a room for so many pairs takes, with a list of so many queries."""
        return 16 + 12 * capacity + 20 * queries

    @property
    def nbytes(self) -> int:
        """Of device memory."""
        return sum(part.nbytes for part in (self.counters, self.slots, self.postings, self.scores, *self._listed))

    def fit(self, queries: int) -> None:
        """Makes the list one of so many queries: what is larger is let go of."""
        if self._listed and len(self._listed[0]) != queries:
            self._listed = ()
        self.listed(queries)

    def listed(self, queries: int) -> tuple[torch.Tensor, ...]:
        """Addresses, slots and masks of so many queries."""
        if not self._listed or len(self._listed[0]) < queries:
            self._listed = ()
            kinds = (torch.int64, torch.int32, torch.int64)
            self._listed = tuple(torch.empty(queries, dtype=kind, device=self.device) for kind in kinds)
        return self._listed


@dataclass(frozen=True, slots=True)
class Survivors:
    """What a percolation found, until its room is used again. Nothing here has waited for the device yet."""

    room: Room

    def count(self) -> int:
        """How many pairs there are, also those past the room's capacity. Waits for the device."""
        return int(self.room.counters[1].item())

    def read(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Slot (place * PLACE + row), posting and approximate score of each pair, by slot and then posting.

        Raises ValueError where the room was too small: run again with room for `count()`.
        """
        count = self.count()
        if count > self.room.capacity:
            raise ValueError(f"{count} pairs in a room for {self.room.capacity}: percolate again with a Room({count})")
        parts = (self.room.slots, self.room.postings, self.room.scores)
        slots, postings, scores = (part[:count].cpu().numpy() for part in parts)
        order = np.lexsort((postings, slots))
        return slots[order].astype(np.int64), postings[order].astype(np.int64), scores[order]
