"""The JVM parts: where Kafka's jars and Flink's Kafka connector are, and fetching them by Maven when they are not.

In a checkout they lie in infra/target/jars; for an installed wheel in the user's cache, by the hash of pom.xml.
`.complete` is written last and holds that hash, so a half-fetched folder is never used.
`python -m penstock.infra.local.jars` fetches them (set-up does).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

POM = Path(__file__).resolve().parent.parent / "pom.xml"
STAMP = ".complete"


class JarsError(Exception):
    """The JVM parts are not here and could not be fetched: says why and what to do."""


def jars_directory() -> Path:
    """Where the jars are or go: PENSTOCK_JARS, the checkout's target folder, or the user's cache."""
    named = os.environ.get("PENSTOCK_JARS")
    if named:
        return Path(named)
    if (POM.parent.parent / "pyproject.toml").is_file():
        return POM.parent / "target" / "jars"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "penstock" / "jars" / _pom_hash()[:16]


def present(directory: Path | None = None) -> bool:
    """Whether the jars of this pom.xml are all there. A folder named by PENSTOCK_JARS is taken at its word."""
    directory = directory or jars_directory()
    if os.environ.get("PENSTOCK_JARS"):
        return bool(kafka_jars(directory)) and bool(connector_jars(directory))
    stamp = directory / STAMP
    return stamp.is_file() and stamp.read_text().strip() == _pom_hash()


def kafka_jars(directory: Path | None = None) -> list[Path]:
    """The broker's class path."""
    return sorted((directory or jars_directory()).glob("kafka/*.jar"))


def connector_jars(directory: Path | None = None) -> list[Path]:
    """What Flink needs beside its own lib."""
    return sorted((directory or jars_directory()).glob("flink/*.jar"))


def ensure(directory: Path | None = None) -> Path:
    """The folder, complete. Raises JarsError."""
    directory = directory or jars_directory()
    if present(directory):
        return directory
    if os.environ.get("PENSTOCK_JARS"):
        raise JarsError(f"PENSTOCK_JARS is {directory}, which has no kafka/*.jar and flink/*.jar: correct or unset it")
    maven = shutil.which("mvn")
    if maven is None:
        raise JarsError("Kafka's jars are not here, and Maven, which fetches them, is not on PATH: install Maven")
    for stale in ("kafka", "flink"):  # jars of another version beside the new ones would both be on the class path
        shutil.rmtree(directory / stale, ignore_errors=True)
    directory.mkdir(parents=True, exist_ok=True)
    command = [maven, "-q", "-B", "-C", "-f", str(POM), f"-Djars.directory={directory}", "generate-resources"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not kafka_jars(directory) or not connector_jars(directory):
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[:8])
        raise JarsError(
            f"Maven could not fetch Kafka's jars (is a Maven repository in reach? a mirror belongs in"
            f" ~/.m2/settings.xml):\n{said}"
        )
    (directory / STAMP).write_text(_pom_hash() + "\n")
    return directory


def _pom_hash() -> str:
    return hashlib.sha256(POM.read_bytes()).hexdigest()


if __name__ == "__main__":
    try:
        print(ensure())
    except JarsError as error:
        sys.exit(str(error))
