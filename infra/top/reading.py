"""What `penstock top` knows at one moment: plain values, gathered by `sources`, read by `stages`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from penstock.infra.top.samples import Samples


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a consumer is behind its topic."""

    records: int
    seconds: float | None = None  # since the oldest record it has not read was written; None: not known


@dataclass(frozen=True, slots=True)
class Usage:
    """A part's processes together."""

    rss_bytes: int
    cpu_seconds: float  # since they began


@dataclass(frozen=True, slots=True)
class Reading:
    """One look. A source that did not answer is in `troubles` with the reason, and absent elsewhere."""

    at: float  # seconds, monotonic
    metrics: Mapping[str, Samples] = field(default_factory=dict)  # by role, or by job
    ends: Mapping[str, int] = field(default_factory=dict)  # topic -> records written to it since it exists
    lags: Mapping[tuple[str, str], Lag] = field(default_factory=dict)  # (group, topic)
    usage: Mapping[str, Usage] = field(default_factory=dict)  # by part
    troubles: Mapping[str, str] = field(default_factory=dict)  # role, job or "kafka" -> why it says nothing
