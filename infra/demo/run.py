"""The demo from end to end: input, system, replay, settling, searches, report.

1. Read the input; nothing is started for a file that cannot be used.
2. Find or start a system, and prove that a posting gets through it.
3. Publish the plan at its rate while watching rows, dead letters and answers.
4. Wait until the index is what the oracle says; judge.
5. Search, write rankings and the report; leave nothing behind.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from penstock.infra.demo import plan as planning
from penstock.infra.demo import sample
from penstock.infra.demo.rankings import RankingFailed, ask, write_rankings
from penstock.infra.demo.replay import Replay, replay
from penstock.infra.demo.report import Report, summarise
from penstock.infra.demo.session import system
from penstock.infra.demo.settle import settle
from penstock.infra.demo.view import View
from penstock.infra.demo.watch import Watch
from penstock.infra.kafka_clients import Publisher, check_broker
from penstock.infra.settings import Settings
from penstock.ranker.client import RankerClient
from penstock.retrieval.client import ModelsClient, RetrievalClient, shard_addresses
from penstock.schemas.events import Op, Posting
from penstock.schemas.grpc_avro import CallError
from penstock.schemas.topics import POSTINGS, QUERIES, RANK_RESULTS

DEFAULT_SECONDS = 45.0  # of the shipped sample; with start and stop below two minutes on two cores
DEFAULT_EVENTS = 2_250  # of the shipped sample at rate 0
PROBES = 8  # postings that must get through before the clock starts: Flink starts its Python workers at first use
PROBE_PATIENCE_S = 120.0
ANSWER_PATIENCE_S = 15.0


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


class NothingGetsThrough(Exception):
    """The system is up, and yet no posting becomes searchable."""


@dataclass(frozen=True, slots=True)
class _Input:
    lines: sample.Lines | None
    queries: tuple[sample.Query, ...]


def run(options: Options, console: Console, clock: Callable[[], int]) -> Report:
    """The whole demo; its report says whether anything was lost or wrong. `clock` is epoch milliseconds."""
    began = time.monotonic()
    given = _read(options)
    view = View(console)
    if given.lines is not None and given.lines.refused:
        for line in given.lines.refused[:5]:
            view.say(f"left out: {line}", style="yellow")
        view.say(f"{len(given.lines.refused)} lines are no record and are left out", style="yellow")
    with _terminated_like_interrupted(), system(keep=options.keep, tell=view.say) as settings:
        check_broker(settings.kafka, [POSTINGS.name, POSTINGS.dead_letters, QUERIES.name, RANK_RESULTS.name])
        with (
            closing(RetrievalClient(shard_addresses(settings.retrieval))) as retrieval,
            closing(RankerClient(settings.ranker.dial)) as ranker,
        ):
            run_id = f"demo-{clock():x}"
            report = _on(settings, options, given, view, retrieval, ranker, run_id, clock)
            report = replace(report, elapsed_s=round(time.monotonic() - began, 1))
            _write_report(options.report, report, view)
            if options.rankings is not None:
                with closing(ModelsClient(settings.models.dial)) as models:
                    shortest = write_rankings(
                        options.rankings, ranker, models, given.queries, run_id=run_id, clock=clock
                    )
                view.say(f"{options.rankings}: {len(given.queries)} queries, {shortest} postings each or more")
    return report


def _write_report(path: Path | None, report: Report, view: View) -> None:
    if path is not None:
        path.write_text(json.dumps(report.to_json(), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        view.say(f"report: {path}")


def _read(options: Options) -> _Input:
    for path in (options.rankings, options.report):
        if path is not None and not path.absolute().parent.is_dir():
            raise sample.BadInput(f"cannot write {path}: there is no directory {path.absolute().parent}")
    lines = None if options.postings is None else sample.read_postings(options.postings)
    if options.queries is not None:
        return _Input(lines, sample.read_queries(options.queries))
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
) -> Report:
    """The run on a system that is up."""
    done = Replay()
    with Watch(settings, retrieval, clock) as watch, Publisher(settings.kafka) as publisher:
        _probe(done, publisher, watch, view, run_id, clock)
        events = _events(options, given.lines, settings, clock())
        done.unmeasured, done.first_ms = done.published, None
        started = time.monotonic()
        with view:

            def tell(stage: str) -> Callable[[], None]:
                return lambda: view.progress(stage, watch.seen, done.published - done.unmeasured, len(events), started)

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
            _await_answers(done, watch)
        report = summarise(
            done,
            settled,
            watch,
            rate=options.rate,
            seed=options.seed if _chaos(options) else None,
            lines_refused=len(given.lines.refused) if given.lines else 0,
        )
    view.report(report)
    searches = _searches(_examples(given), ranker, retrieval, view, run_id, clock)
    return replace(report, searches=tuple(searches))


def _chaos(options: Options) -> bool:
    return options.postings is None if options.chaos is None else options.chaos


def _events(
    options: Options, lines: sample.Lines | None, settings: Settings, now_ms: int
) -> list[planning.PlannedEvent]:
    life = settings.postings.max_life_ms
    postings: Sequence[Posting] = (sample.shipped_postings(now_ms) if lines is None else lines).postings
    at_rate = None if options.seconds is None or not options.rate else max(1, round(options.rate * options.seconds))
    if not _chaos(options):
        return planning.as_given(postings, start_ms=now_ms, max_life_ms=life)[:at_rate]
    if at_rate is not None:
        count = at_rate
    elif lines is None:
        count = round(options.rate * DEFAULT_SECONDS) or DEFAULT_EVENTS
    else:
        count = round(len(postings) / (1 - sum(planning.SHARES.values())))
    return planning.plan(postings, seed=options.seed, start_ms=now_ms, rate=options.rate, count=count, max_life_ms=life)


def _probe(done: Replay, publisher: Publisher, watch: Watch, view: View, run_id: str, clock: Callable[[], int]) -> None:
    """Send postings through and withdraw them: the clock starts when the whole way is proven. Raises otherwise."""
    view.say("waiting for the first posting to get through")
    now, probes = clock(), []
    for number in range(PROBES):
        probes.append(Posting(posting_id=f"{run_id}-probe-{number}", version=1, title="Probe", description="A probe."))
    for step in (probes, [replace(probe, version=2, op=Op.DELETE) for probe in probes]):
        _silently(done, publisher, planning.as_given(step, start_ms=now, max_life_ms=0), watch, run_id, clock)
        deadline = time.monotonic() + PROBE_PATIENCE_S
        while watch.seen().waiting:
            if time.monotonic() > deadline:
                raise NothingGetsThrough(
                    f"{watch.seen().waiting} of {PROBES} postings did not become searchable within "
                    f"{PROBE_PATIENCE_S:.0f} s: `penstock status` and `penstock logs postings` say more"
                )
            time.sleep(0.05)


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


def _await_answers(done: Replay, watch: Watch) -> None:
    """Give the last queries their time; what is still missing then is in the report."""
    deadline = time.monotonic() + ANSWER_PATIENCE_S
    while time.monotonic() < deadline and not done.asked.keys() <= watch.results().keys():
        time.sleep(0.1)


def _examples(given: _Input) -> list[sample.Query]:
    if given.lines is None:
        return [sample.Query(f"example-{number}", text) for number, text in enumerate(sample.EXAMPLES)]
    return list(given.queries[:3])


def _searches(
    queries: Sequence[sample.Query],
    ranker: RankerClient,
    retrieval: RetrievalClient,
    view: View,
    run_id: str,
    clock: Callable[[], int],
) -> Iterator[Mapping[str, Any]]:
    """The example searches, shown as `penstock search` shows them."""
    from penstock.infra.cli import search

    for query in queries:
        try:
            result = ask(ranker, query, request_id=f"{run_id}-{query.query_id}", size=5, now_ms=clock())
        except (RankingFailed, CallError) as error:
            view.say(str(error), style="red")
            yield {"query": query.text, "error": str(error)}
            continue
        rows = search.fetch(retrieval, [item.posting_id for item in result.items])
        view.say("")
        search.show(query.text, result, rows)
        document = search.result_json(result, rows)
        yield {
            "query": query.text,
            "understood": document["understood"],
            "degraded": list(result.degraded),
            "total": result.total,
            "items": [
                {
                    "posting_id": item["posting_id"],
                    "score": item["score"],
                    "title": None if item["posting"] is None else item["posting"]["title"],
                }
                for item in document["items"]
            ],
            "timings": dict(result.timings),
        }


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
