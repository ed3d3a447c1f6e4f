"""The demo's report: one frozen record, as a table for people and as JSON for programs."""

from __future__ import annotations

import os
import platform
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil

from penstock.infra.demo.accounting import Accounting
from penstock.infra.demo.alert_accounting import AlertAccounting
from penstock.infra.demo.replay import Replay
from penstock.infra.demo.settle import Settled
from penstock.infra.demo.watch import Watch, percentile
from penstock.infra.scorers import Running
from penstock.schemas.events import IndexOp, RankResult
from penstock.schemas.rpc import Row

# Not to the alert's Kafka timestamp: Flink's sink hands on that of the record it came from.
ALERTED_OVER = "alerts, once each, from the posting event's Kafka timestamp until the alert was made"
# A version overtaken before anyone looked has no sample; what models were late for (revision -1) has one.
_NUMBER = re.compile(r"(?<![\w.:/-])\d+(?:\.\d+)?(?=[ ,;)]|$)")  # an amount; not part of an address, a version, a name
REASONS_SHOWN = 5
FRESHNESS_OVER = "accepted upsert versions of the fast lane as the watch first saw them, not only each posting's last"


@dataclass(frozen=True, slots=True)
class Report:
    """What happened to the postings given; the probes before them are in no count, only judged (lost, wrong).

    Times in milliseconds where the name says so, else seconds.
    """

    accounting: Accounting
    alerts: AlertAccounting | None  # None: nobody subscribed
    freshness_ms: Mapping[str, Mapping[str, float | str | None]]
    postings_per_second: float
    queries: Mapping[str, Any]
    without_vector: int  # live postings not yet found by meaning, since models were late
    rate: float
    seconds: float  # from the first event until the last one was searchable
    warm_up_s: float  # before it, for postings that are in no count
    seed: int | None
    lines_refused: int
    interruptions: Mapping[str, int]  # why retrieval did not answer, and how often
    machine: Mapping[str, Any]
    scorer: Running | None = None  # None: the ranker did not say
    searches: tuple[Mapping[str, Any], ...] = ()
    alert_examples: tuple[Mapping[str, Any], ...] = ()
    elapsed_s: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def unanswered(self) -> int:
        """Queries for which nothing came back at all; a late one is answered, with an error."""
        return int(self.queries["published"]) - int(self.queries.get("answered", 0))

    @property
    def clean(self) -> bool:
        """Whether everything published is accounted for: postings, queries and alerts."""
        return self.accounting.clean and self.unanswered == 0 and (self.alerts is None or self.alerts.clean)

    def to_json(self) -> dict[str, Any]:
        out = asdict(self)
        accounting = out.pop("accounting")
        extra = out.pop("extra")
        return {**accounting, **out, **extra}


def summarise(
    done: Replay,
    settled: Settled,
    watch: Watch,
    alerts: AlertAccounting | None,
    *,
    run_id: str,
    rate: float,
    seed: int | None,
    lines_refused: int,
    warm_up_s: float,
    scorer: Running | None,
) -> Report:
    """The report without its searches."""
    rows = settled.rows.values()
    fresh = watch.seen().freshness_ms
    first_ms, last_ms = done.first_ms or 0, done.last_ms or 0
    seconds = max(0.001, (max(_last_searchable(rows, first_ms), last_ms) - first_ms) / 1000)
    alerted = _alerted_ms(watch, run_id)
    return Report(
        accounting=settled.accounting,
        alerts=alerts,
        freshness_ms={
            "searchable": {
                "p50": percentile(fresh, 0.5),
                "p99": percentile(fresh, 0.99),
                "samples": len(fresh),
                "over": FRESHNESS_OVER,
            },
            "alerted": {
                "p50": percentile(alerted, 0.5),
                "p99": percentile(alerted, 0.99),
                "samples": len(alerted),
                "over": ALERTED_OVER,
            },
        },
        postings_per_second=round(done.published / seconds, 2),
        queries=_queries(done, watch),
        without_vector=sum(
            1 for row in rows if row.update and row.update.op is IndexOp.UPSERT and row.update.vector is None
        ),
        rate=rate,
        seconds=round(seconds, 3),
        seed=seed,
        lines_refused=lines_refused,
        warm_up_s=round(warm_up_s, 1),
        interruptions=dict(watch.interruptions),
        machine=machine(),
        scorer=scorer,
    )


def _alerted_ms(watch: Watch, run_id: str) -> list[float]:
    """One an alert of this run's people."""
    first: dict[str, float] = {}
    for alert in watch.alerts():
        if alert.person_id.startswith(run_id):
            first.setdefault(alert.alert_id, float(alert.alerted_at - alert.produced_at))
    return list(first.values())


def _last_searchable(rows: Any, first_ms: int) -> int:
    """When the last event of the run became visible; an expiry is not an event of the run."""
    seen = [row.searchable_at for row in rows if _is_event(row) and row.searchable_at >= first_ms]
    return max(seen, default=first_ms)


def _is_event(row: Row) -> bool:
    return row.searchable_at is not None and row.update is not None and row.update.op is not IndexOp.EXPIRE


def _queries(done: Replay, watch: Watch) -> dict[str, Any]:
    seen = watch.results()
    answered = {request_id: seen[request_id] for request_id in done.asked if request_id in seen}
    good = {
        request_id: at - done.asked[request_id] for request_id, (at, result) in answered.items() if not result.error
    }
    results = [result for _, result in answered.values()]
    read = [result.lm_scored for result in results if not result.error]
    return {
        "published": len(done.asked),
        "answered": len(answered),
        "with_error": len(answered) - len(good),
        "degraded": sum(1 for result in results if result.degraded),
        "degraded_reasons": degraded_reasons(results),
        "latency_ms": {"p50": percentile(good.values(), 0.5), "p99": percentile(good.values(), 0.99)},
        "lm_scored": {"median": percentile(read, 0.5), "max": max(read, default=None)},
        "model_ids": dict(Counter(result.model_id for result in results if not result.error)),
    }


def degraded_reasons(results: Iterable[RankResult]) -> dict[str, int]:
    """How many results name each reason, the most frequent first; reasons that differ in a number alone are one."""
    reasons = Counter(
        reason for result in results for reason in {_NUMBER.sub("…", reason) for reason in result.degraded}
    )
    return dict(reasons.most_common())


def machine() -> dict[str, Any]:
    """Where this was measured."""
    memory = psutil.virtual_memory().total / 2**30
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


# --- the table ---------------------------------------------------------------------------------------------------


def rows_of(report: Report) -> list[tuple[str, str]]:
    """The report's lines for people."""
    a, fresh = report.accounting, report.freshness_ms["searchable"]
    out = [
        ("published", f"{a.published} records in {report.seconds:.1f} s, {report.postings_per_second:.1f}/s"),
        ("live · deleted · expired · rejected", f"{a.live} · {a.deleted} · {a.expired} · {a.rejected}"),
        ("dead letters", f"{a.dead_lettered}, bytes untouched"),
        ("lost · wrong", f"{a.lost} · {a.wrong}"),
        ("produced to searchable", f"p50 {_ms(fresh['p50'])}, p99 {_ms(fresh['p99'])} ({fresh['samples']} versions)"),
    ]
    out += _rows_of_queries(report)
    if report.alerts is not None:
        alerted, sent = report.freshness_ms["alerted"], report.alerts
        out += [
            (
                "alerts",
                f"{sent.sent} to {sent.subscriptions} subscriptions, {sent.expected} of them due, "
                f"{sent.with_score} with the ranker's score, {sent.degraded} degraded",
            ),
            ("alerts lost · wrong", f"{sent.lost} · {sent.wrong}"),
            (
                "produced to alerted",
                f"p50 {_ms(alerted['p50'])}, p99 {_ms(alerted['p99'])} ({alerted['samples']} alerts)",
            ),
        ]
    if report.without_vector:
        out.append(
            (
                "without a vector",
                f"{report.without_vector} (models were late; found by words and filters, not yet by meaning)",
            )
        )
    if report.lines_refused:
        out.append(("lines that are no record", str(report.lines_refused)))
    if report.interruptions:
        out.append(("retrieval did not answer", f"{sum(report.interruptions.values())} times"))
    out.append(("warm-up before", f"{report.warm_up_s:.0f} s"))
    machine_ = report.machine
    out.append(("machine", f"{machine_['cores']} cores, {machine_['memory_gib']} GiB, {machine_['system']}"))
    return out


def _rows_of_queries(report: Report) -> Iterator[tuple[str, str]]:
    queries, scorer = report.queries, report.scorer
    if scorer is not None:
        yield "scorer", f"{scorer} ({scorer.model_id})"
    if not queries["published"]:
        return
    latency = queries["latency_ms"]
    yield (
        "queries answered",
        f"{queries['answered']} of {queries['published']}, "
        + (f"{report.unanswered} NEVER ANSWERED, " if report.unanswered else "")
        + f"{queries['with_error']} with an error, "
        f"{queries['degraded']} degraded, p50 {_ms(latency['p50'])}, p99 {_ms(latency['p99'])}",
    )
    read = queries["lm_scored"]
    if read["max"] or (scorer is not None and scorer.model):
        yield (
            "read by the language model",
            f"median {read['median'] or 0:.0f}, most {read['max'] or 0} postings a query",
        )
    reasons = list(queries["degraded_reasons"].items())
    for reason, count in reasons[:REASONS_SHOWN]:
        yield "degraded", f"{count} × {reason}"
    if len(reasons) > REASONS_SHOWN:
        yield "degraded", f"{len(reasons) - REASONS_SHOWN} more reasons, all in the file of --report"


def _ms(value: Any) -> str:
    return "–" if value is None else f"{value:.0f} ms"
