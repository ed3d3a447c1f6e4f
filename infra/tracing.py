"""Traces from a producer's record to what became of it, one tree.

A record carries a W3C traceparent. A stage that has done its part of the work says so after the fact:

    trace = tracing.passed("alerts.percolate", update.trace, began_ms, ended_ms, posting_id=update.posting_id)

and gives the record it emits the `trace` that comes back: the context of the stage's own span, so that whoever comes
next is its child. Where nothing is exported (`tracing.endpoint` is empty, the default) that is a None test, and the
traceparent goes on untouched. Never an error and never a wait: a traceparent that is none is counted and a new trace
begins; spans that a slow collector leaves behind are dropped and counted (spans.py).
"""

from __future__ import annotations

import threading
from typing import Protocol

from penstock.infra.settings import SettingsError, TracingSettings


class Recorder(Protocol):
    """`spans.Spans`: what exports."""

    def record(
        self, name: str, trace: str | None, began_ms: float, ended_ms: float, attributes: dict[str, str | float]
    ) -> str: ...

    def close(self, timeout_s: float) -> None: ...


_recorder: Recorder | None = None
_lock = threading.Lock()


def configure(settings: TracingSettings, service: str) -> None:
    """Export this process's spans as `service`, if settings name a collector. A second call changes nothing.

    Raises SettingsError when OpenTelemetry is asked for and not installed.
    """
    global _recorder
    if not settings.endpoint:
        return
    with _lock:
        if _recorder is not None:
            return
        try:
            from penstock.infra.spans import Spans
        except ImportError as error:
            raise SettingsError(
                f"tracing.endpoint is {settings.endpoint!r}, but {error.name} is not installed here: "
                "pip install 'penstock[tracing]', or leave tracing.endpoint empty"
            ) from error
        _recorder = Spans(settings, service)


def exporting() -> bool:
    """Whether spans are recorded here."""
    return _recorder is not None


def passed(
    name: str, trace: str | None, began_ms: float, ended_ms: float, **attributes: str | float | None
) -> str | None:
    """A stage is done: its span, child of `trace`, and the traceparent for what it emits. Times in epoch ms.

    `error` among the attributes marks the span as failed; attributes that are None are left out.
    """
    recorder = _recorder
    if recorder is None:
        return trace
    given = {key: value for key, value in attributes.items() if value is not None}
    return recorder.record(name, trace, began_ms, ended_ms, given)


def close(timeout_s: float = 2.0) -> None:
    """Send what is left, for at most `timeout_s`, and export nothing more."""
    global _recorder
    with _lock:
        recorder, _recorder = _recorder, None
    if recorder is not None:
        recorder.close(timeout_s)
