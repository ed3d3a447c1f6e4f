"""An operator's metric group in memory, with Flink's way of naming: what Prometheus would show after relabelling."""

from __future__ import annotations

from collections.abc import Callable


class Metrics:
    """Also the runtime context that gives it. `values`: name{labels} -> number."""

    def __init__(self, path: tuple[str, ...] = (), labels: str = "", read: dict[str, Callable[[], int]] | None = None):
        self._path, self._labels = path, labels
        self._read = {} if read is None else read

    @property
    def values(self) -> dict[str, int]:
        return {name: read() for name, read in self._read.items()}

    def get_metrics_group(self) -> Metrics:
        return self

    def add_group(self, name: str, value: str | None = None) -> Metrics:
        if value is None:
            return Metrics((*self._path, name), self._labels, self._read)
        assert "." not in value
        return Metrics(self._path, f'{self._labels}{"," if self._labels else ""}{name}="{value}"', self._read)

    def gauge(self, name: str, read: Callable[[], int]) -> None:
        full = "_".join((*self._path, name)) + (f"{{{self._labels}}}" if self._labels else "")
        assert full not in self._read, f"{full} is registered twice"
        self._read[full] = read
