"""One record of keyed state, packed by its codec: read once and written once an event.

The operator that makes it is its only writer, and keeps the state's descriptor: checkpoints have its name and type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from penstock.jobs.operators.metrics import Count
from penstock.schemas.wire import Codec

S = TypeVar("S")
S_co = TypeVar("S_co", covariant=True)


class Outcome(Protocol[S_co]):
    """What a decision makes of a key's state, as in `posting_state.Transition`."""

    @property
    def state(self) -> S_co | None:
        """None: the key is forgotten."""
        ...

    @property
    def wake_at(self) -> int | None:
        """Processing-time timer to arm, epoch ms."""
        ...

    @property
    def counted(self) -> Sequence[str]: ...


class Packed(Generic[S]):
    """Around Flink's ValueState, of whichever key is being processed."""

    def __init__(self, value: Any, codec: Codec[S], counters: Mapping[str, Count]) -> None:
        self._value = value
        self._codec = codec
        self._counters = counters

    def read(self) -> S | None:
        packed = self._value.value()
        return None if packed is None else self._codec.decode_unbounded(bytes(packed))

    def become(self, held: S | None, outcome: Outcome[S], ctx: Any) -> None:
        """Count, write what is not `held` already, arm the timer."""
        for name in outcome.counted:
            self._counters[name].inc()
        if outcome.state is None:
            self._value.clear()
        elif outcome.state is not held:
            self._value.update(self._codec.encode_unbounded(outcome.state))
        if outcome.wake_at is not None:
            ctx.timer_service().register_processing_time_timer(outcome.wake_at)
