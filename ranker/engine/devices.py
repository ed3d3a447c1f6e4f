"""Which backend computes forwards: torch on the processor, or kernels on a CUDA device or in Triton's interpreter.

Chosen by `ranker.device`: cpu, cuda, cuda:1, ..., or interpreter, which runs the device's kernels as they are written,
to look into them. Nothing here imports Triton: a ranker that stays on the processor never pays for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import structlog
import torch

from penstock.kernels.runtime import DeviceUnavailable, ready
from penstock.kernels.tunings.kept import Tunings
from penstock.ranker.engine.backend import Backend
from penstock.ranker.engine.choosing import Decision
from penstock.ranker.engine.device_arena import NO_ROOM, Room
from penstock.ranker.engine.forward import TorchBackend
from penstock.ranker.engine.plan import Request
from penstock.ranker.engine.weights import Weights
from penstock.ranker.errors import UnfitScorer

log = structlog.get_logger(role="ranker")

SETTING = "ranker.device"
AUTO = "auto"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def dtype_for(device: str, asked: str) -> str:
    """`auto` is bf16 on a CUDA device, which multiplies it several times faster, and fp32 elsewhere.

    Raises UnfitScorer: no such dtype.
    """
    if asked == AUTO:
        return "bf16" if device.startswith("cuda") else "fp32"
    if asked not in DTYPES:
        raise UnfitScorer(f"dtype {asked!r}: expected one of {', '.join([AUTO, *DTYPES])}")
    return asked


def checked(device: str) -> torch.device | None:
    """Where its kernels run, None where it has none: on the processor. Raises UnfitScorer: it cannot be used here."""
    if device == "cpu":
        return None
    kind, _, number = device.partition(":")
    if kind not in ("cuda", "interpreter") or (number and not (kind == "cuda" and number.isdecimal())):
        raise UnfitScorer(f"{SETTING} is {device!r}: expected cpu, cuda, cuda:1, ... or interpreter")
    if kind == "cuda" and int(number or 0) >= (count := torch.cuda.device_count()):
        raise UnfitScorer(
            f"{SETTING} is {device} and torch finds {count} CUDA devices: set it to cpu, or give the process a device, "
            "its driver and a torch that was built for it"
        )
    try:
        ready(SETTING, kind, "penstock.kernels.add_rmsnorm.triton:add_rmsnorm_rows")
    except DeviceUnavailable as error:
        raise UnfitScorer(str(error)) from error
    return torch.device("cpu") if kind == "interpreter" else torch.device("cuda", int(number or 0))


def made(
    weights: Weights,
    device: str,
    *,
    threads: int,
    most_tokens: int,
    longest: int,
    room: Room = NO_ROOM,
    tunings: Tunings | None = None,
) -> Backend:
    """A backend on `device` for forwards of `most_tokens` and prompts of `longest`, warm, with an arena of that room
    where it has a device, its kernels as `tunings` have them. Raises UnfitScorer."""
    place = checked(device)
    if place is None:
        return TorchBackend(weights, threads)
    from penstock.ranker.engine.device import DeviceBackend

    began = time.monotonic()
    try:
        backend = DeviceBackend(weights, place, most_tokens, longest=longest, room=room, tunings=tunings)
        captured = backend.warm()
    except torch.OutOfMemoryError as error:  # what was free when it was admitted another process took
        raise UnfitScorer(
            f"{device}: {error}: lower ranker.forward_tokens or ranker.device_arena_bytes, or free the device"
        ) from error
    if captured:
        log.info("graphs captured", device=device, graphs=captured, seconds=round(time.monotonic() - began, 1))
    return backend


def decided(
    load: Callable[[], Weights],
    known: Sequence[Request],
    place: torch.device,
    most_tokens: int,
    longest: int,
    tunings: Tunings,
) -> Decision:
    """Which form of the weights is the quickest there and scores alike. Raises UnfitScorer."""
    from penstock.ranker.engine.measuring import Device
    from penstock.ranker.engine.measuring import decided as measured

    try:
        return measured(load(), known, Device(place), most_tokens, longest, tunings)
    except torch.OutOfMemoryError as error:
        raise UnfitScorer(
            f"{place}: {error}: measuring takes more than a forward; set ranker.weights to plain, or free the device"
        ) from error
    except RuntimeError as error:
        raise UnfitScorer(f"{place}: {error}: nothing could be measured; set ranker.weights to plain") from error
