"""The demo from end to end: input, system, replay, settling, searches, report.

1. Read the input; nothing is started for a file that cannot be used.
2. Find or start a system, prove that postings get through it, and warm it up.
3. Subscribe, and wait until every subscription is in force.
4. Publish the plan at its rate while watching rows, dead letters, answers and alerts.
5. Wait until the index and the alerts are what the oracles say; judge.
6. Search, write rankings and the report; unsubscribe: nothing is left behind.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from rich.console import Console

from penstock.infra.demo import alert_accounting, sample, standing
from penstock.infra.demo import plan as planning
from penstock.infra.demo.alert_accounting import AlertAccounting
from penstock.infra.demo.rankings import too_short, write_rankings
from penstock.infra.demo.replay import Replay, replay
from penstock.infra.demo.report import Report, summarise
from penstock.infra.demo.searches import examples, shown_searches
from penstock.infra.demo.session import system
from penstock.infra.demo.settle import settle
from penstock.infra.demo.subscribed import NothingGetsThrough, subscribed
from penstock.infra.demo.view import View
from penstock.infra.demo.watch import Watch
from penstock.infra.kafka_clients import Publisher, check_broker
from penstock.infra.scorers import Choice, running_at
from penstock.infra.settings import Settings
from penstock.ranker.client import RankerClient
from penstock.retrieval.client import ModelsClient, RetrievalClient, shard_addresses
from penstock.schemas.events import Op, Posting, Subscription
from penstock.schemas.rpc import RowState
from penstock.schemas.topics import ALERTS, POSTINGS, QUERIES, RANK_RESULTS, STANDING_QUERIES, SUBSCRIPTIONS

DEFAULT_SECONDS = 45.0  # of the shipped sample; with start and stop below two minutes on two cores
DEFAULT_EVENTS = 2_250  # of the shipped sample at rate 0
PROBES = 40  # postings of a round that must get through before the clock starts
WARM_S = 0.6  # a round that takes no longer finds a warm system
WARM_ROUNDS = 12
PROBE_PATIENCE_S = 120.0
JUDGE_EVERY_S = 0.5
QUIET_S = 2.0


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for. `postings` None: the shipped sample."""

    postings: Path | None = None
    queries: Path | None = None
    rate: float = 50.0
    seconds: float | None = None
    rankings: Path | None = None
    report: Path | None = None
    keep: bool = False
    seed: int = 1
    chaos: bool | None = None  # None: only with the shipped sample
    patience_s: float = 60.0
    tenant: str | None = None  # whose the queries are; None: that of the postings
    subscriptions: int = standing.COUNT  # 0: nobody wants alerts
    on_configured: bool = False  # publish to a system that settings name
    cold: bool = False  # no rounds of warming up
    scorer: Choice | None = None  # of the stack that is started; None: whatever settings say


@dataclass(frozen=True, slots=True)
class _Input:
    lines: sample.Lines | None
    queries: tuple[sample.Query, ...]


def run(options: Options, console: Console, clock: Callable[[], int]) -> Report:
    """The whole demo; its report says whether anything was lost, wrong or unanswered. `clock` is epoch milliseconds."""
    began = time.monotonic()
    given = _read(options)
    view = View(console)
    if given.lines is not None and given.lines.refused:
        for line in given.lines.refused[:5]:
            view.say(f"left out: {line}", style="yellow")
        view.say(f"{len(given.lines.refused)} lines are no record and are left out", style="yellow")
    with (
        _terminated_like_interrupted(),
        system(
            keep=options.keep, on_configured=options.on_configured, tell=view.say, scorer=options.scorer
        ) as settings,
    ):
        needed = (POSTINGS, QUERIES, RANK_RESULTS, SUBSCRIPTIONS, STANDING_QUERIES, ALERTS)
        check_broker(settings.kafka, [POSTINGS.dead_letters, *(topic.name for topic in needed)])
        with (
            closing(RetrievalClient(shard_addresses(settings.retrieval))) as retrieval,
            closing(RankerClient(settings.ranker.dial)) as ranker,
        ):
            run_id = f"demo-{clock():x}"
            report, live = _on(settings, options, given, view, retrieval, ranker, run_id, clock)
            report = replace(report, elapsed_s=round(time.monotonic() - began, 1))
            _write_report(options.report, report, view)
            if options.rankings is not None:
                with closing(ModelsClient(settings.models.dial)) as models:
                    lengths = write_rankings(
                        options.rankings, ranker, models, given.queries, run_id=run_id, clock=clock
                    )
                _tell_rankings(options.rankings, given.queries, lengths, live, view)
    return report


def _tell_rankings(
    path: Path, queries: Sequence[sample.Query], lengths: Mapping[str, int], live: Mapping[str, int], view: View
) -> None:
    from penstock.infra.cli.output import say

    view.say(f"{path}: {len(queries)} queries, {min(lengths.values(), default=0)} postings each or more")
    for line in too_short(queries, lengths, live):
        say(line, style="yellow")


def _write_report(path: Path | None, report: Report, view: View) -> None:
    if path is not None:
        path.write_text(json.dumps(report.to_json(), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        view.say(f"report: {path}")


def _read(options: Options) -> _Input:
    for path in (options.rankings, options.report):
        if path is not None and not path.absolute().parent.is_dir():
            raise sample.BadInput(f"cannot write {path}: there is no directory {path.absolute().parent}")
    if options.postings is None and options.tenant not in (None, sample.DEFAULT_TENANT):
        raise sample.BadInput(f"the sample is of tenant {sample.DEFAULT_TENANT!r}: --tenant goes with --postings")
    lines = None if options.postings is None else sample.read_postings(options.postings)
    if options.queries is not None:
        tenant = sample.tenant_of(lines.postings if lines else (), options.tenant)
        return _Input(lines, sample.read_queries(options.queries, tenant))
    # The shipped queries go with the shipped postings.
    return _Input(lines, sample.shipped_queries() if lines is None else ())


def _on(
    settings: Settings,
    options: Options,
    given: _Input,
    view: View,
    retrieval: RetrievalClient,
    ranker: RankerClient,
    run_id: str,
    clock: Callable[[], int],
) -> tuple[Report, Mapping[str, int]]:
    """The run on a system that is up: its report, and how many postings are live by tenant."""
    done, scorer = Replay(), running_at(settings.ranker.dial)
    with Watch(settings, retrieval, clock) as watch, Publisher(settings.kafka) as publisher:
        warm_up_s = _warm_up(done, publisher, watch, view, run_id, 1 if options.cold else WARM_ROUNDS, clock)
        people = _subscriptions(options, given, run_id, clock())
        with subscribed(people, publisher, retrieval, view.say):
            events = _events(options, given.lines, settings, clock())
            watch.start_counting()
            started = time.monotonic()
            with view:

                def tell(stage: str) -> Callable[[], None]:
                    return lambda: view.progress(stage, watch.seen, done.published, len(events), started)

                replay(
                    done,
                    publisher,
                    events,
                    given.queries,
                    run_id=run_id,
                    rate=options.rate,
                    seconds=options.seconds,
                    track=watch.track,
                    tell=tell("publishing"),
                    clock=clock,
                )
                settled = settle(done, watch, patience_s=options.patience_s, tell=tell("settling"), clock=clock)
                _await_answers(done, watch, options.patience_s)
                alerts = _judge_alerts(people, watch, settings, options.patience_s, tell("alerts"))
        report = summarise(
            done,
            settled,
            watch,
            alerts,
            run_id=run_id,
            rate=options.rate,
            seed=options.seed if _chaos(options) else None,
            lines_refused=len(given.lines.refused) if given.lines else 0,
            warm_up_s=warm_up_s,
            scorer=scorer,
        )
        shown = alert_accounting.examples([alert for alert in watch.alerts() if alert.person_id.startswith(run_id)])
    view.report(report)
    view.alerts(shown)
    searches = shown_searches(
        examples(given.queries, own=given.lines is not None), ranker, retrieval, view, run_id, clock
    )
    live = Counter(
        row.update.tenant for row in settled.rows.values() if row.state is RowState.LIVE and row.update is not None
    )
    return replace(report, searches=tuple(searches), alert_examples=tuple(shown)), live


def _chaos(options: Options) -> bool:
    return options.postings is None if options.chaos is None else options.chaos


def _events(
    options: Options, lines: sample.Lines | None, settings: Settings, now_ms: int
) -> list[planning.PlannedEvent]:
    life = settings.postings.max_life_ms
    postings: Sequence[Posting] = (sample.shipped_postings(now_ms) if lines is None else lines).postings
    at_rate = None if options.seconds is None or not options.rate else max(1, round(options.rate * options.seconds))
    if not _chaos(options):
        return planning.as_given(postings, start_ms=now_ms, max_life_ms=life, checked=lines is not None)[:at_rate]
    if at_rate is not None:
        count = at_rate
    elif lines is None:
        count = round(options.rate * DEFAULT_SECONDS) or DEFAULT_EVENTS
    else:
        count = round(len(postings) / (1 - sum(planning.SHARES.values())))
    return planning.plan(
        postings,
        seed=options.seed,
        start_ms=now_ms,
        rate=options.rate,
        count=count,
        max_life_ms=life,
        checked=lines is not None,
    )


def _warm_up(
    done: Replay, publisher: Publisher, watch: Watch, view: View, run_id: str, rounds: int, clock: Callable[[], int]
) -> float:
    """Send postings through, round after round until one is fast, and withdraw them all; how long it took.

    One round proves that the way is whole. Those after it are for compilers and caches: the first hundreds of records
    of a new system cost several times what later ones do. Raises NothingGetsThrough.
    """
    view.say("waiting for the first postings to get through")
    began, probes = time.monotonic(), 0
    for round_ in range(rounds):
        started = time.monotonic()
        fresh = [
            Posting(posting_id=f"{run_id}-probe-{n}", version=1, title=f"Probe {n}", description=f"Probe number {n}.")
            for n in range(probes, probes + PROBES)
        ]
        probes += PROBES
        _through(done, publisher, watch, fresh, run_id, clock)
        took = time.monotonic() - started
        if took <= WARM_S:
            break
        if round_ == 0 and rounds > 1:
            view.say(f"warming up: {PROBES} postings took {took:.1f} s")
    gone = [
        Posting(posting_id=f"{run_id}-probe-{number}", version=2, op=Op.DELETE, tenant="default")
        for number in range(probes)
    ]
    _through(done, publisher, watch, gone, run_id, clock)
    return time.monotonic() - began


def _through(
    done: Replay, publisher: Publisher, watch: Watch, probes: list[Posting], run_id: str, clock: Callable[[], int]
) -> None:
    """Publish them, and wait until each is in the index as it should be."""
    done.probes.update(probe.posting_id for probe in probes)
    events = planning.as_given(probes, start_ms=clock(), max_life_ms=0, checked=False)
    _silently(done, publisher, events, watch, run_id, clock)
    deadline = time.monotonic() + PROBE_PATIENCE_S
    while watch.seen().waiting:
        if time.monotonic() > deadline:
            raise NothingGetsThrough(
                f"{watch.seen().waiting} of {len(probes)} postings did not become searchable within "
                f"{PROBE_PATIENCE_S:.0f} s: `penstock status` and `penstock logs postings` say more"
            )
        time.sleep(0.05)


def _subscriptions(options: Options, given: _Input, run_id: str, now_ms: int) -> tuple[Subscription, ...]:
    postings = sample.shipped_postings(now_ms).postings if given.lines is None else given.lines.postings
    tenant = sample.tenant_of(postings, options.tenant)
    return standing.subscriptions(given.queries, postings, run_id=run_id, tenant=tenant, count=options.subscriptions)


def _judge_alerts(
    people: Sequence[Subscription], watch: Watch, settings: Settings, patience_s: float, tell: Callable[[], None]
) -> AlertAccounting | None:
    """The verdict, once every alert is there or `patience_s` seconds bring no new one."""
    if not people:
        return None
    wanted, seen_updates = alert_accounting.Expected({}, {}), -1
    best = -1
    patient_until = quiet_at = time.monotonic() + patience_s
    while True:
        updates = watch.percolated()
        if len(updates) != seen_updates:
            wanted, seen_updates = alert_accounting.expected(watch.standing(), updates, people), len(updates)
        verdict = alert_accounting.account(wanted, watch.alerts(), people, max_per_day=settings.alerts.max_per_day)
        if verdict.sent > best:
            best, patient_until = verdict.sent, time.monotonic() + patience_s
            quiet_at = time.monotonic() + QUIET_S  # one that nobody may get could still come
        if (verdict.lost == 0 and time.monotonic() > quiet_at) or time.monotonic() > patient_until:
            return verdict
        tell()
        time.sleep(JUDGE_EVERY_S)


def _silently(
    done: Replay,
    publisher: Publisher,
    events: Sequence[planning.PlannedEvent],
    watch: Watch,
    run_id: str,
    clock: Callable[[], int],
) -> None:
    replay(
        done, publisher, events, (), run_id=run_id, rate=0.0, seconds=None, track=watch.track, tell=_quiet, clock=clock
    )


def _quiet() -> None:
    """Nothing to show yet."""


def _await_answers(done: Replay, watch: Watch, patience_s: float) -> None:
    """Give the last queries their time, as long as answers come; what is still missing then is in the report."""
    answered, patient_until = -1, 0.0
    while not done.asked.keys() <= (results := watch.results()).keys():
        if len(results) > answered:
            answered, patient_until = len(results), time.monotonic() + patience_s
        if time.monotonic() > patient_until:
            return
        time.sleep(0.1)


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does: what it started is stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread has signal handlers; a caller elsewhere has its own
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
