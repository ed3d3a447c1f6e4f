"""Where a request's time goes, and where it may stop: one object a request, used by one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from penstock.infra import tracing
from penstock.infra.telemetry import STAGE_SECONDS
from penstock.ranker.backends.scorer import Caller
from penstock.ranker.errors import CallerLeft, DeadlinePassed, RankFailed
from penstock.schemas.errors import WireError
from penstock.schemas.events import RankRequest

LONGEST_CALL_S = 10.0  # a call to another role never holds a worker for longer, however far the deadline


class Stages:
    """Times each stage without the stages inside it, checks the deadline on entry, and names the stage that failed.

    `clock` gives monotonic seconds, `now_ms` epoch milliseconds, for traces alone. `deadline_s` is of `clock`, infinite
    for what is of use however late.
    """

    def __init__(
        self,
        deadline_s: float,
        now_ms: Callable[[], int],
        clock: Callable[[], float],
        has_left: Callable[[], bool],
        waited_ms: float,
    ) -> None:
        self._deadline_s = deadline_s
        self._now_ms = now_ms
        self.clock = clock
        self._has_left = has_left
        self._began_s = clock() - waited_ms / 1000
        self._began_ms = now_ms() - waited_ms
        self._inside: list[float] = []  # seconds that stages within each open stage took
        self.timings: dict[str, float] = {"queue": waited_ms}
        self.degraded: dict[str, None] = {}  # in order, each once
        self._spans: list[tuple[str, float, float]] = []  # stage, epoch ms of its beginning and end

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Raises DeadlinePassed or CallerLeft on entry; what goes wrong inside leaves as RankFailed(name)."""
        self._check(name)
        begin, begin_ms = self.clock(), self._now_ms()
        self._inside.append(0.0)
        try:
            yield
        except (DeadlinePassed, CallerLeft, RankFailed, WireError):
            raise
        except Exception as error:
            if self.is_late:
                raise self._too_late(f"{name} ended") from error
            raise RankFailed(name, error) from error
        finally:
            took = self.clock() - begin
            own = took - self._inside.pop()
            if self._inside:
                self._inside[-1] += took
            self.timings[name] = self.timings.get(name, 0.0) + own * 1000
            STAGE_SECONDS.labels("ranker", name).observe(own)
            if tracing.exporting():
                self._spans.append((name, begin_ms, begin_ms + took * 1000))

    def traced(self, request: RankRequest, error: Exception | None = None) -> str | None:
        """The request's span with those of its stages; the traceparent of its answer."""
        if not tracing.exporting():
            return request.trace
        trace = tracing.passed(
            "rank",
            request.trace,
            self._began_ms,
            self._now_ms(),
            request_id=request.request_id,
            tenant=request.tenant,
            rank_class=request.class_.value,
            error=None if error is None else f"{type(error).__name__}: {error}",
        )
        queued = ("queue", self._began_ms, self._began_ms + self.timings["queue"])
        for name, began_ms, ended_ms in (queued, *self._spans):
            tracing.passed(f"rank.{name}", trace, began_ms, ended_ms)
        return trace

    @property
    def remaining_s(self) -> float:
        """What a call to another role may take now, in (0, LONGEST_CALL_S]."""
        return min(LONGEST_CALL_S, max(0.001, self._deadline_s - self.clock()))

    @property
    def is_late(self) -> bool:
        return self.clock() >= self._deadline_s

    def caller(self, interactive: bool, within_s: float) -> Caller:
        """Who waits, for what takes at most `within_s` seconds from now."""
        return Caller(interactive, self.clock() + within_s, self._has_left)

    def inside(self, stage: str, timings: Mapping[str, float]) -> None:
        """Milliseconds that a part spent in stages of its own, within one of these."""
        for name, spent in timings.items():
            key = f"{stage}_{name}"
            self.timings[key] = self.timings.get(key, 0.0) + spent

    def beside(self, *stages: str) -> float:
        """Seconds in all stages but these, and what is inside them."""
        return (
            sum(
                spent
                for name, spent in self.timings.items()
                if not any(name.split("_")[0] == stage for stage in stages)
            )
            / 1000
        )

    def degrade(self, *reasons: str) -> None:
        self.degraded.update(dict.fromkeys(reasons))

    def _check(self, name: str) -> None:
        if self._has_left():
            raise CallerLeft(f"the caller left before {name}")
        if self.is_late:
            raise self._too_late(name)

    def _too_late(self, name: str) -> DeadlinePassed:
        now = self.clock()
        late_ms = round(1000 * (now - self._deadline_s))
        return DeadlinePassed(name, late_ms=late_ms, waited_ms=1000 * (now - self._began_s))
