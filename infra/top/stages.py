"""The rows of `penstock top`, along the way of the data: two readings in, numbers out. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from penstock.infra.settings import Settings
from penstock.infra.top.reading import Lag, Reading, Usage
from penstock.infra.top.samples import Samples, grown, quantile, since
from penstock.infra.top.shaping import Shaping
from penstock.schemas import topics

FRESHNESS = "penstock_freshness_seconds"
RANK_SECONDS = "penstock_rank_seconds"


@dataclass(frozen=True, slots=True)
class Row:
    """One stage. None: not known now. Errors and fallbacks are counted since the part began."""

    stage: str
    rate: float | None = None  # records a second
    lag: int | None = None  # records not yet read
    behind_s: float | None = None
    p50_s: float | None = None  # freshness here, or the answer's time at the ranker, of this window
    p99_s: float | None = None
    errors: int | None = None  # refused, dead letters
    degraded: int | None = None  # went on with less
    rss_bytes: int | None = None
    cpu: float | None = None  # cores
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """A process beside the stages."""

    name: str
    rss_bytes: int | None
    cpu: float | None
    trouble: str = ""


def rows(settings: Settings, before: Reading, now: Reading) -> list[Row]:
    """Every stage, producers first."""
    look = _Look(settings, before, now)
    return [look.producers(), look.postings(), look.enrich(), look.retrieval(), *look.questions(), *look.alerts()]


def parts(before: Reading, now: Reading) -> list[Part]:
    """What runs beside the roles: the broker, Flink, Redis, the models."""
    names = ("kafka", "jobmanager", "taskmanager", "redis", "models", "gateway")
    found = [Part(name, *_usage(name, before, now), now.troubles.get(name, "")) for name in names]
    return [part for part in found if part.rss_bytes is not None or part.trouble]


class _Look:
    def __init__(self, settings: Settings, before: Reading, now: Reading) -> None:
        self._settings, self._before, self._now = settings, before, now
        self._seconds = max(now.at - before.at, 1e-9)

    def producers(self) -> Row:
        written = (topics.POSTINGS, topics.QUERIES, topics.SUBSCRIPTIONS)
        return Row(
            "producers", rate=self._written(t.name for t in written), trouble=self._now.troubles.get("kafka", "")
        )

    def postings(self) -> Row:
        return self._job("postings", topics.POSTINGS.name, "enriched", ("postings_without_vector_total",))

    def enrich(self) -> Row:
        own = self._settings.enrich
        lags = [self._lag(group, topics.ENRICH.name) for group in (own.group, f"{own.group}-heal")]
        known = [lag for lag in lags if lag is not None]
        row = self._role("enrich", "penstock_enrich_answers_total")
        if not known:
            return row
        seconds = [lag.seconds for lag in known if lag.records and lag.seconds is not None]
        return replace(row, lag=sum(lag.records for lag in known), behind_s=max(seconds, default=None))

    def retrieval(self) -> Row:
        samples = self._samples("retrieval")
        lag = _whole(samples.total("penstock_index_lag_offsets"))
        p50_s, p99_s = self._quantiles("retrieval", FRESHNESS, until="searchable")
        return replace(
            self._role("retrieval", "penstock_index_updates_total"),
            lag=lag,
            behind_s=samples.total("penstock_index_lag_seconds") if lag else None,
            p50_s=p50_s,
            p99_s=p99_s,
        )

    def questions(self) -> list[Row]:
        """The queries job and the ranker."""
        lag = self._lag(self._settings.ranker.group, topics.RANK_REQUESTS.name)
        row = self._role("ranker", "penstock_rank_requests_total")
        failed = (
            self._samples("ranker").total("penstock_rank_requests_total", outcome=outcome)
            for outcome in ("failed", "expired", "refused")
        )
        p50_s, p99_s = self._quantiles("ranker", RANK_SECONDS)
        ranker = replace(
            row,
            lag=lag.records if lag else None,
            behind_s=lag.seconds if lag and lag.records else None,
            p50_s=p50_s,
            p99_s=p99_s,
            errors=_added(row.errors, *failed),
        )
        return [self._job("queries", topics.QUERIES.name, "", ("queries_sent_without_analysis_total",)), ranker]

    def alerts(self) -> list[Row]:
        """The alerts job, and the topics that people's readers follow."""
        made = self._job("alerts", topics.INDEX.name, "alerted", ("alerts_unscored_total",))
        feeds = Row(
            "feeds",
            rate=self._written((topics.ALERTS.name, topics.RECOMMENDATIONS.name)),
            trouble=self._now.troubles.get("kafka", ""),
        )
        return [made, feeds]

    # --- how -----------------------------------------------------------------------------------------------------

    def _role(self, role: str, counter: str) -> Row:
        """What every role tells alike."""
        samples = self._samples(role)
        there = 0.0 if role in self._now.metrics else None  # a counter that nobody touched yet has no sample
        rss, cpu = _usage(role, self._before, self._now)
        return Row(
            role,
            rate=self._rate(role, counter),
            errors=_added(there, samples.total("penstock_dead_letters_total")),
            degraded=_added(there, samples.total("penstock_degraded_total")),
            rss_bytes=rss,
            cpu=cpu,
            trouble=self._now.troubles.get(role, ""),
        )

    def _job(self, job: str, topic: str, until: str, without: Sequence[str]) -> Row:
        """A Flink job: what its source has read, its own lag while it tells, otherwise that of its checkpoints."""
        samples = self._samples(job)
        source = f"Source__read_{topic.replace('.', '_')}"
        pending = samples.total("pendingRecords", operator_name=source)
        emitted = samples.total("currentEmitEventTimeLag", operator_name=source)
        committed = self._lag(job, topic)
        lag = int(pending) if pending is not None else committed.records if committed is not None else None
        behind = emitted / 1000 if emitted is not None else committed.seconds if committed is not None else None
        subjects = ("intake", job, "subscriptions")  # the last in the alerts job alone
        refused = (samples.total(f"penstock_{subject}_refused_total") for subject in subjects)
        p50_s, p99_s = self._quantiles(job, FRESHNESS, until=until) if until else (None, None)
        return Row(
            job,
            rate=self._rate(job, "numRecordsIn", operator_name=source),
            lag=lag,
            behind_s=behind if lag else None,
            errors=_added(*refused),
            degraded=_added(*(samples.total(f"penstock_{name}") for name in without)),
            p50_s=p50_s,
            p99_s=p99_s,
            trouble=self._now.troubles.get(job, self._now.troubles.get("jobmanager", "")),
        )

    def _samples(self, name: str) -> Samples:
        return self._now.metrics.get(name, Samples())

    def _rate(self, name: str, metric: str, **labels: str) -> float | None:
        if name not in self._before.metrics or name not in self._now.metrics:
            return None
        now = self._samples(name).total(metric, **labels)
        more = grown(self._before.metrics[name].total(metric, **labels) or 0.0, now or 0.0)
        return None if more is None else more / self._seconds

    def _written(self, names: Iterable[str]) -> float | None:
        more = [grown(self._before.ends.get(name), self._now.ends.get(name)) for name in names]
        known = [each for each in more if each is not None]
        return sum(known) / self._seconds if known else None

    def _lag(self, group: str, topic: str) -> Lag | None:
        return self._now.lags.get((f"{self._settings.kafka.group_prefix}-{group}", topic))

    def _quantiles(self, name: str, histogram: str, **labels: str) -> tuple[float | None, float | None]:
        """p50 and p99 of what came in between, in the histogram's unit."""
        held = self._before.metrics.get(name, Samples()).buckets(histogram, **labels)
        window = since(held, self._samples(name).buckets(histogram, **labels))
        return quantile(0.5, window), quantile(0.99, window)


def _usage(part: str, before: Reading, now: Reading) -> tuple[int | None, float | None]:
    """(resident bytes, cores) of a part: of its processes here, else as its endpoint tells."""
    held, has = _used(part, before), _used(part, now)
    if has is None:
        return None, None
    more = grown(held.cpu_seconds, has.cpu_seconds) if held is not None else None
    return has.rss_bytes, None if more is None else more / max(now.at - before.at, 1e-9)


def _used(part: str, reading: Reading) -> Usage | None:
    if part in reading.usage:
        return reading.usage[part]
    samples = reading.metrics.get(part, Samples())
    rss, cpu = samples.total("process_resident_memory_bytes"), samples.total("process_cpu_seconds_total")
    return None if rss is None or cpu is None else Usage(int(rss), cpu)


def _added(*values: float | None) -> int | None:
    known = [value for value in values if value is not None]
    return int(sum(known)) if known else None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def as_document(
    found: Sequence[Row], beside: Sequence[Part], shaping: Shaping | None, window_s: float
) -> Mapping[str, object]:
    """For programs: the same numbers under the same names."""
    return {
        "window_s": window_s,
        "stages": [asdict(row) for row in found],
        "shaping": None if shaping is None else asdict(shaping),
        "parts": [asdict(part) for part in beside],
    }
