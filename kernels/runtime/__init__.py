"""How kernels run in this process: compiled for a CUDA device, or as they are written, in Triton's interpreter.

Triton decides for good, kernel by kernel, when a module with one is imported: by TRITON_INTERPRET. `ready` sets it
before anything is imported, and says what is wrong where something was. Importing this imports neither Triton nor a
kernel.
"""

from __future__ import annotations

import importlib
import os
import threading

# Triton's interpreter keeps one grid for the whole process, so one kernel runs at a time.
INTERPRETING = threading.RLock()


class DeviceUnavailable(Exception):
    """The device that settings name cannot be used in this process: says why and what to do."""


def ready(setting: str, name: str, kernel: str) -> None:
    """Imports the module of `kernel` (module:function), so that it runs as `name` says: cuda or interpreter.

    Raises DeviceUnavailable where there is no Triton, or where it was imported for the other way of running.
    """
    interprets = name == "interpreter"
    if interprets:
        os.environ["TRITON_INTERPRET"] = "1"
    try:
        from triton.runtime.interpreter import InterpretedFunction
    except ImportError as error:
        raise DeviceUnavailable(
            f"{setting} is {name} and this installation has no Triton ({error}): an image for CPUs has none; build one "
            f"with ACCELERATOR=cuda, or set {setting} to cpu"
        ) from error
    import triton.language as tl

    module, function = kernel.split(":")
    interpreted = isinstance(getattr(importlib.import_module(module), function), InterpretedFunction)
    library = isinstance(tl.standard.sum, InterpretedFunction)  # its own functions are kernels as well
    if interpreted is library is interprets:
        return
    if not interprets:
        raise DeviceUnavailable(
            "kernels of this process run in Triton's interpreter, not on the device: start without TRITON_INTERPRET=1, "
            f"or set {setting} to interpreter"
        )
    raise DeviceUnavailable(
        "Triton was imported before its interpreter was chosen: start with TRITON_INTERPRET=1 in the environment, or "
        "choose the device before anything that imports triton"
    )
