"""A launch by the tuning that is kept, or by the default one where the device refuses that.

A file may come from elsewhere, and what fitted at one shape of a kernel's other arguments need not at another: whoever
serves goes on with what is taken unmeasured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from triton.runtime.errors import OutOfResources

from penstock.kernels.tunings.kept import Tunings

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    T = TypeVar("T", bound=DataclassInstance)


def launched(tunings: Tunings | None, key: str, kind: type[T], launch: Callable[[T | None], object]) -> None:
    """`launch` gets what is kept, a `kind`, or None for the default. What the device has too little shared memory or
    too few registers for, which Triton says before anything is launched, is passed over from then on, with a warning.

    Raises OutOfResources: the default is refused too.
    """
    tuning = None if tunings is None else tunings.get(key, kind)
    try:
        launch(tuning)
    except OutOfResources as error:
        if tunings is None or tuning is None:
            raise
        tunings.pass_over(key, f"the device refuses {tuning}: {error}")
        launch(None)
