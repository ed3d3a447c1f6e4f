"""What was measured, kept in a file by keys that name all it depends on.

A key names the device, the releases of torch and triton, a digest of the kernels' source, and the shape: where any of
them is another, it is measured anew. The file belongs to whoever gives its path; processes that share it see each
other's entries, and the last writer of a key stands. A file that is damaged, or that something else wrote, is ignored
with a warning, and replaced by the next entry. Whoever serves never measures: it takes what is kept, or else what its
tuning.py has first. `penstock warmup --tune` measures.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    T = TypeVar("T", bound=DataclassInstance)

KERNELS = Path(__file__).resolve().parents[1]
FILE = "penstock-tunings.json"

log = logging.getLogger(__name__)


class Tunings:
    """Entries by key. The file is read once; what this process keeps it knows at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: dict[str, Any] | None = None

    @classmethod
    def of_this_user(cls) -> Tunings:
        """Beside what Triton compiled for this user, or where TRITON_CACHE_DIR says."""
        folder = os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache"
        return cls(Path(folder) / FILE)

    def get(self, key: str, kind: type[T]) -> T | None:
        """What is kept, a dataclass of integers; None of an unknown key, and of an entry that is no such one."""
        entry = self.entry(key)
        names = {field.name for field in fields(kind)}
        if entry is None or set(entry) != names or not all(isinstance(one, int) for one in entry.values()):
            return None
        return kind(**entry)

    def keep(self, key: str, tuning: DataclassInstance) -> None:
        self.keep_entry(key, asdict(tuning))

    def pass_over(self, key: str, why: str) -> None:
        """This process takes the default of `key` from here on; the file keeps its entry."""
        log.warning("the tuning kept for %s is passed over, the default is taken: %s", key, why)
        if self._entries is not None:
            self._entries.pop(key, None)

    def entry(self, key: str) -> dict[str, Any] | None:
        """As JSON has it; None where there is none."""
        if self._entries is None:
            self._entries = self._read()
        found = self._entries.get(key)
        return found if isinstance(found, dict) else None

    def keep_entry(self, key: str, entry: Mapping[str, Any]) -> None:
        """Whole or not at all, beside what others write. Raises OSError: this process alone knows it then."""
        self._change(lambda entries: entries | {key: dict(entry)})

    def drop(self, which: Callable[[str], bool]) -> None:
        """All entries by those keys. Raises OSError."""
        self._change(lambda entries: {key: entry for key, entry in entries.items() if not which(key)})

    def _change(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self._entries = change(self._read() if self._entries is None else self._entries)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_name(f".{self.path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # gone with the file's closing
            entries = self._entries = change(self._read())
            handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
            try:
                with os.fdopen(handle, "w") as file:
                    json.dump(entries, file, indent=1, sort_keys=True)
                Path(name).replace(self.path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            log.warning("%s cannot be read (%s): what it kept is measured anew", self.path, error)
            return {}
        if not isinstance(found, dict) or not all(isinstance(entry, dict) for entry in found.values()):
            log.warning("%s holds no tunings: it is ignored, and replaced by the next that is kept", self.path)
            return {}
        return found


def key_of(operator: str, shape: str, device: torch.device, *, sources: tuple[str | Path, ...]) -> str:
    """What a shape is kept by. `sources`: folders of kernels/ and files that its code is in."""
    import triton  # here: to read what is kept for a processor nobody needs it

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    releases = f"torch {torch.__version__}, triton {triton.__version__}"
    return f"{name}, {releases}, source {digest_of(*sources)}: {operator} {shape}"


@functools.cache
def digest_of(*sources: str | Path) -> str:
    """8 hex digits of the Python files of these folders of kernels/, and of these files."""
    digest = hashlib.blake2b(digest_size=4)
    for source in sources:
        paths = [source] if isinstance(source, Path) else sorted((KERNELS / source).glob("*.py"))
        for path in paths:
            digest.update(f"{path.parent.name}/{path.name}".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
