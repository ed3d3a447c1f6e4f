"""Memory that a host fills and a device copies: records and their slots, or a publication, in one piece each.

On CUDA it is pinned, so the copy is asynchronous, and a piece must not be filled again before its copy is done:
`ready` waits for that, and two pieces used in turns do not wait at all. On a CPU the device's piece is the host's.
One thread's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from penstock.kernels.scatter_rows.segments import Segments
from penstock.kernels.scatter_rows.triton import HEADER, publish_rows, scatter_rows

_SLOT = 8  # bytes


class Staging:
    """Room for `rows` records of one kind."""

    def __init__(self, segments: Segments, rows: int, device: torch.device | str) -> None:
        self.segments = segments
        self.rows = rows
        self._piece = _Piece(_slots_of(rows) + rows * segments.record, device)
        self._table = segments.table().to(device)
        self.slots = self._slots(self._piece.host)  # int64 [rows], to be filled
        self._records = self._piece.host[_slots_of(rows) :].view(rows, segments.record)

    def field(self, name: str) -> torch.Tensor:
        """One field of every record, to be filled: [rows, values], a view."""
        begin, size = self.segments.place(name)
        return self._records[:, begin : begin + size].view(self.segments.dtypes[name])

    def ready(self) -> None:
        """Waits until what was sent last has been copied."""
        self._piece.ready()

    def send(self, pages: torch.Tensor, count: int, stream: torch.cuda.Stream | None = None) -> None:
        """Copies the first `count` records and writes them to their slots, on the stream; returns at once."""
        if not 0 <= count <= self.rows:
            raise ValueError(f"{count} records of a staging for {self.rows}")
        with _on(stream):
            there = self._piece.sent(_slots_of(self.rows) + count * self.segments.record)
            records = there[_slots_of(self.rows) :][: count * self.segments.record].view(count, self.segments.record)
            scatter_rows(pages, self._table, self._slots(there)[:count], records, per_page=self.segments.per_page)

    def _slots(self, piece: torch.Tensor) -> torch.Tensor:
        return piece[: self.rows * _SLOT].view(torch.int64)


class Publication:
    """Room for the slots of one epoch: at most `slots` that die, are born or are given back."""

    def __init__(self, slots: int, device: torch.device | str) -> None:
        self.slots = slots
        self._piece = _Piece((HEADER + slots) * _SLOT, device)

    def ready(self) -> None:
        """Waits until what was sent last has been copied."""
        self._piece.ready()

    def send(
        self,
        pages: torch.Tensor,
        word: torch.Tensor,
        *,
        epoch: int,
        dead: Sequence[int] = (),
        born: Sequence[int] = (),
        freed: Sequence[int] = (),
        per_page: int,
        birth: int,
        death: int,
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        """Publishes an epoch behind everything that was sent on the stream; returns at once.

        birth, death: byte offsets of the two arrays in a page; word int64 [1]: the newest epoch, on the device.
        Slots that are given back are of no epoch: 0.
        """
        values = [epoch, len(dead), len(born), len(freed), *dead, *born, *freed]
        if len(values) > HEADER + self.slots:
            raise ValueError(f"{len(values) - HEADER} slots in a publication for {self.slots}")
        self._piece.ready()
        self._piece.host.view(torch.int64)[: len(values)] = torch.tensor(values, dtype=torch.int64)
        with _on(stream):
            there = self._piece.sent(len(values) * _SLOT).view(torch.int64)
            publish_rows(pages, there, word, per_page=per_page, birth=birth, death=death)


class _Piece:
    """`nbytes` on the host and as many on the device."""

    def __init__(self, nbytes: int, device: torch.device | str) -> None:
        cuda = torch.device(device).type == "cuda"
        self.host = torch.zeros(nbytes, dtype=torch.uint8, pin_memory=cuda)
        self._there = torch.zeros(nbytes, dtype=torch.uint8, device=device) if cuda else self.host
        self._copied = torch.cuda.Event() if cuda else None  # type: ignore[no-untyped-call] # torch has it so

    def ready(self) -> None:
        if self._copied is not None:
            self._copied.synchronize()

    def sent(self, nbytes: int) -> torch.Tensor:
        """The device's side, once its first bytes are copied on the current stream."""
        if self._copied is not None:
            self._there[:nbytes].copy_(self.host[:nbytes], non_blocking=True)
            self._copied.record()
        return self._there


def _on(stream: torch.cuda.Stream | None) -> AbstractContextManager[object]:
    return nullcontext() if stream is None else torch.cuda.stream(stream)


def _slots_of(rows: int) -> int:
    """Bytes that the slots take, so that the records behind them begin at a multiple of 16."""
    return -(-rows * _SLOT // 16) * 16
