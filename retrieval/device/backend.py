"""Where searches run: on the host alone, on a CUDA device, or on the same kernels in Triton's interpreter.

    choose     a name from settings -> a Backend; None: the host's scan answers
    Budget     what the stores of this process may take of the device, and what they do

Nothing here imports Triton: a process that stays on the host never pays for it. `Backend.ready` imports kernels.
"""

from __future__ import annotations

import os
import threading
import weakref
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from penstock.kernels.runtime import INTERPRETING, DeviceUnavailable, ready
from penstock.retrieval.store.errors import OutOfRoom

if TYPE_CHECKING:
    from penstock.kernels.filtered_topk.autotune import Tunings

DEVICE = "retrieval.device"
SETTING = "retrieval.device_bytes"
SHARE = 0.9  # of what a device has free at the start; the rest is for what is on its way, and for reruns
BF16, INT8 = "bf16", "int8"  # planes that scans read


class Budget:
    """Bytes of a device. One a process; stores take and give back from their writers' threads."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._lock = threading.RLock()  # the collector may give back for somebody while this thread takes
        self._held = 0

    @property
    def held(self) -> int:
        return self._held

    def admit(self, what: str, more: int) -> None:
        """Raises OutOfRoom, with the numbers, where so much more cannot be taken."""
        if self.limit is not None and self._held + more > self.limit:
            raise OutOfRoom(what, more, self._held, self.limit, SETTING)

    def take(self, what: str, more: int) -> None:
        """Raises OutOfRoom before anything is taken."""
        with self._lock:
            self.admit(what, more)
            self._held += more

    def give_back(self, count: int) -> None:
        with self._lock:
            self._held -= count


class Claim:
    """What one owner, who alone calls this, holds of a budget; it is the budget's again when nobody holds the claim."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._held = [0]
        weakref.finalize(self, lambda held: budget.give_back(held[0]), self._held).atexit = False

    def resize(self, what: str, needed: int) -> None:
        """Holds so many bytes from here on. Raises OutOfRoom, and then holds what it held."""
        more = needed - self._held[0]
        if more > 0:
            self._budget.take(what, more)
        else:
            self._budget.give_back(-more)
        self._held[0] = needed


@dataclass(frozen=True)
class Backend:
    """A device and what may be taken of it. `name`: cuda or interpreter. `scatters`: kernels write rows, else torch.
    `planes`: what scans read, BF16 or INT8."""

    name: str
    device: torch.device
    budget: Budget = field(default_factory=lambda: Budget(None))
    scatters: bool = True
    planes: str = BF16

    @cached_property
    def tunings(self) -> Tunings:
        """What was measured on this device (`penstock warmup --tune`), beside what Triton compiled for it."""
        from penstock.kernels.filtered_topk.autotune import Tunings

        folder = os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache"
        return Tunings(Path(folder) / "penstock-tunings.json")

    @property
    def is_cuda(self) -> bool:
        return self.name == "cuda"

    def launching(self) -> AbstractContextManager[object]:
        """To be held while kernels are launched."""
        return nullcontext() if self.is_cuda else INTERPRETING

    def ready(self) -> None:
        """Imports the kernels. Raises DeviceUnavailable where they were imported for the other way of running."""
        ready(DEVICE, self.name, "penstock.kernels.slabs.program:rows_pass")


def choose(name: str, device_bytes: int | None = None, planes: str = BF16) -> Backend | None:
    """The backend that settings name; None: the host alone. Raises DeviceUnavailable, a ValueError of an unknown name.

    `device_bytes`: what the stores of this process may take of it; None: SHARE of what a CUDA device has free now, and
    whatever there is in the interpreter. `planes`: what scans read there, BF16 or INT8.
    """
    if name not in ("auto", "cpu", "cuda", "interpreter"):
        raise ValueError(f"retrieval.device: got {name!r}, expected auto, cpu, cuda or interpreter")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return None
    if name == "interpreter":
        made = Backend(name, torch.device("cpu"), Budget(device_bytes), scatters=False, planes=planes)
    elif not torch.cuda.is_available():
        raise DeviceUnavailable(
            "retrieval.device is cuda and torch finds no CUDA device: set it to auto or cpu, or give the process a "
            "device, its driver and a torch that was built for it"
        )
    else:
        free, _ = torch.cuda.mem_get_info()
        budget = Budget(device_bytes or int(SHARE * free))
        made = Backend(name, torch.device("cuda", torch.cuda.current_device()), budget, planes=planes)
    made.ready()
    return made
