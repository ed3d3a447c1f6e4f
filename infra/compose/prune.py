"""Deletes what torch needs on a GPU alone from this interpreter's packages: 2 of the 6 GB of a roles image.

torch's wheel has one build, and loads most CUDA libraries at import. What it maps then stays; what it would open later
(cuDNN's engines, Triton's compiler) goes. The packages' metadata stays, so that pip still finds the lock satisfied.
Runs while an image is built, before Penstock is installed: standard library and torch alone. `prune.py [FOLDER]`.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

PACKAGES = ("nvidia", "triton")


def mapped() -> set[Path]:
    """Files that this process has mapped now."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {Path(fields[5]).resolve() for line in lines if len(fields := line.split(None, 5)) == 6}


def prune(site: Path, kept: set[Path]) -> int:
    """Delete; bytes freed."""
    freed = 0
    for package in PACKAGES:
        for path in (site / package).rglob("*"):
            if path.is_file() and not path.is_symlink() and path.suffix != ".py" and path.resolve() not in kept:
                freed += path.stat().st_size
                path.unlink()
    return freed


def main(arguments: list[str]) -> None:
    site = Path(arguments[0] if arguments else sysconfig.get_path("purelib")).resolve()
    sys.path.insert(0, str(site))
    import torch  # noqa: F401  for what it maps

    print(f"freed {prune(site, mapped()) / 1e9:.1f} GB")


if __name__ == "__main__":
    main(sys.argv[1:])
