"""The stream from the producer to the row and to the alert: how fresh, how fast, at what cost, with nothing lost.

    python benchmarks/stream.py --json build/stream.json [--stack DIR] [--phases searchable,decode] [--seconds 20]

Starts an embedded stack of its own, or uses the one in --stack, and runs, in this order:

    idle         resident memory of the whole stack before any posting
    searchable   RATE postings a second: from each record's Kafka timestamp to `searchable_at` of its row
    decode       decode, validate and key in a process of Flink's, records by CPU second of that process
    alerts       the same load under SUBSCRIPTIONS standing queries: from the posting's Kafka timestamp to its alert's
    sustained    the highest offered rate at which what is published and not yet searchable stays flat

Every posting of every phase is accounted for by the demo's oracle: lost and wrong must be 0, or the exit status is 1.
The producer is a process of its own and open loop. CPU seconds of every part stand beside each phase, since they say
what bounds it, and on a busy machine are what can still be compared.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.report import Report, machine, table  # noqa: E402  # found by the line above, wherever this is called from
from benchmarks.streaming import decode, usage  # noqa: E402
from benchmarks.streaming.judge import Judge, rows  # noqa: E402
from benchmarks.streaming.phases import (  # noqa: E402
    SAMPLED,
    Alerts,
    Profile,
    Searchable,
    producing,
    row_count,
    wait_for_rows,
)
from benchmarks.streaming.plan import Mix, Phase  # noqa: E402
from benchmarks.streaming.source import DATA, Source, load  # noqa: E402
from benchmarks.streaming.subscriptions import subscriptions  # noqa: E402
from penstock.infra.demo.plan import Kind  # noqa: E402
from penstock.infra.demo.watch import percentile  # noqa: E402
from penstock.infra.kafka_clients import Publisher  # noqa: E402
from penstock.infra.local.stack import Stack  # noqa: E402
from penstock.infra.settings import Settings  # noqa: E402
from penstock.retrieval.client import RetrievalClient, shard_addresses  # noqa: E402
from penstock.schemas.rpc import PercolateRequest, StandingRequest  # noqa: E402
from penstock.schemas.topics import SUBSCRIPTIONS  # noqa: E402

PHASES = ("idle", "searchable", "decode", "alerts", "sustained")
RATE = 200.0  # postings a second of the latency phases
SECONDS = 60.0
SUSTAINED_SECONDS = 300.0
STANDING = 10_000
WARM_UP = 600  # postings before anything is measured: first use of every worker, compilers
BURST = 4_000  # postings published at once, to find the rate that `sustained` begins with
FIRST_SHARE, NEXT_SHARE, TRIES = 0.85, 0.88, 4  # of the burst's rate, of the rate before it
PATIENCE_S = 60.0
STANDING_PATIENCE_S = 600.0
PERCOLATED = 300  # postings of which the matches are counted


@dataclass(slots=True)
class Run:
    """What the phases share, and what they have found so far."""

    stack: Path
    settings: Settings
    retrieval: RetrievalClient
    source: Source
    data: Path
    judge: Judge
    seconds: float | None
    rate: float
    report: Report = field(default_factory=lambda: Report("stream"))
    profiles: list[dict[str, Any]] = field(default_factory=list)
    phases: int = 0
    doubled: int = 0  # alerts that told a person twice of the same

    def phase(self, mix: Mix, rate: float, count: int) -> Phase:
        self.phases += 1
        return Phase(
            mark=f"bench-{int(time.time()):x}-{self.phases}",
            mix=mix,
            rate=rate,
            count=count,
            start_ms=int(time.time() * 1000) + 4_000,
            max_life_ms=self.settings.postings.max_life_ms,
        )

    def length(self, default: float) -> float:
        return default if self.seconds is None else self.seconds


def warm_up(run: Run) -> None:
    _burst(run, "warm-up", WARM_UP)


def idle(run: Run) -> None:
    before = usage.look(run.stack)
    time.sleep(10.0)
    after = usage.look(run.stack)
    run.report.notes["idle_cpu_share"] = {
        part: round(each / 10.0, 4) for part, each in usage.spent(before, after).items()
    }
    run.report.notes["idle_rss_mb"] = {part: round(each / 1e6) for part, each in sorted(after.rss_bytes.items())}
    run.report.add("idle_rss_gb", after.rss_total / 1e9, "GB", 6.0)


def searchable(run: Run) -> None:
    samples = _at_rate(run, "searchable")
    run.report.add("searchable_p50_ms", percentile(samples, 0.50) or 0.0, "ms", 300.0)
    run.report.add("searchable_p99_ms", percentile(samples, 0.99) or 0.0, "ms", 1000.0)


def decoding(run: Run) -> None:
    found = decode.measure(run.stack, run.settings)
    run.report.notes["decode"] = asdict(found)
    run.report.add("decode_per_s_core", found.per_s_core, "postings/s of CPU", 15_000.0, "higher")


def alerts(run: Run) -> None:
    mark = f"bench-{int(time.time()):x}"
    wanted = subscriptions(run.source.postings, STANDING, mark)
    with Publisher(run.settings.kafka) as publisher:
        for subscription in wanted:
            publisher.publish(SUBSCRIPTIONS, subscription)
    in_force = _await_standing(run, [each.subscription_id for each in wanted])
    if in_force < len(wanted):
        raise SystemExit(f"{in_force} of {len(wanted)} subscriptions are in force: see `penstock logs alerts`")
    feed = Alerts(run.settings)
    feed.start()
    _at_rate(run, "alerts")
    _until_quiet(feed)
    feed.stop()
    run.report.notes["alerts"] = {
        "subscriptions_in_force": in_force,
        "matches_a_posting": _matches_a_posting(run),
        "alerts": len(feed.ids),
        "deferred": feed.deferred,
        "repeated": feed.repeated,
        "doubled": feed.doubled,
    }
    print(f"  {run.report.notes['alerts']}", flush=True)
    run.doubled = feed.doubled
    if not feed.samples:
        raise SystemExit("no alert came: see `penstock logs alerts` of the stack")
    run.report.add("alerted_p99_ms", percentile(feed.samples, 0.99) or 0.0, "ms", 2000.0)


def sustained(run: Run) -> None:
    rate = FIRST_SHARE * _burst(run, "burst", BURST)
    held = 0.0
    for attempt in range(TRIES):
        rate = max(10.0, round(rate / 10) * 10)
        flat, reached = _hold(run, rate, attempt)
        if flat:
            held = reached
            break
        rate *= NEXT_SHARE
    run.report.add("sustained_per_s", held, "postings/s", 400.0, "higher")


# --- how ---------------------------------------------------------------------------------------------------------


def _at_rate(run: Run, name: str) -> list[float]:
    """`run.rate` a second, in the demo's mix, followed to the row: ms until searchable, one a sampled posting."""
    phase = run.phase(Mix.MIXED, run.rate, round(run.rate * run.length(SECONDS)))
    events = list(phase.events(run.source))
    new = [(at, event.posting_id) for at, event in enumerate(events) if event.kind is Kind.NEW]
    print(f"{name}: {len(events)} records at {run.rate:g}/s", flush=True)
    with producing(phase, run.data, run.stack) as producer:
        before, started = usage.look(run.stack), time.monotonic()
        follow = Searchable(run.retrieval, new[::SAMPLED], producer)
        follow.start()
        producer.wait(phase.count / run.rate + PATIENCE_S)
        # Until all are there, or none more has come for a while: a phase must not leave its backlog to the next.
        left, deadline = follow.waiting, time.monotonic() + PATIENCE_S
        while follow.waiting and time.monotonic() < deadline:
            time.sleep(0.1)
            if follow.waiting < left:
                left, deadline = follow.waiting, time.monotonic() + PATIENCE_S
        seconds, after = time.monotonic() - started, usage.look(run.stack)
        follow.stop()
    run.judge.published(events, by_key=False)
    _profiled(run, name, phase.count, seconds, usage.spent(before, after), producer.said)
    run.report.notes[name] = {
        "samples": len(follow.samples),
        "refined_before_looked_at": follow.missed,
        "without_vector": follow.without_vector,
        "never_searchable": follow.waiting,
        "trouble": follow.trouble,
        "producer_late_s": producer.said.get("behind_s"),
        "percentiles_ms": {str(share): percentile(follow.samples, share / 100) for share in (50, 90, 95, 99, 100)},
    }
    print(f"  {run.report.notes[name]}", flush=True)
    return follow.samples


def _burst(run: Run, name: str, count: int) -> float:
    """`count` at once: searchable postings a second, from the first record sent to the last row."""
    phase = run.phase(Mix.NEW, 0.0, count)
    base = row_count(run.retrieval)
    print(f"{name}: {count} records at once", flush=True)
    with producing(phase, run.data, run.stack) as producer:
        before, started = usage.look(run.stack), time.monotonic()
        arrived = wait_for_rows(run.retrieval, base + count, PATIENCE_S)
        seconds, after = time.monotonic() - started, usage.look(run.stack)
        producer.wait(PATIENCE_S)
    run.judge.published(phase.events(run.source), by_key=True)
    _profiled(run, name, count, seconds, usage.spent(before, after), producer.said)
    print(f"  {count / seconds:.0f}/s{'' if arrived else ', not all of them'}", flush=True)
    return count / seconds


def _hold(run: Run, rate: float, attempt: int) -> tuple[bool, float]:
    """Offer `rate` a second: whether the backlog stayed flat, and how many a second became searchable."""
    seconds = run.length(SUSTAINED_SECONDS)
    phase = run.phase(Mix.NEW, rate, round(rate * seconds))
    base = row_count(run.retrieval)
    backlog: list[int] = []
    print(f"sustained: {rate:g}/s for {seconds:g} s", flush=True)
    with producing(phase, run.data, run.stack) as producer:
        before, started = usage.look(run.stack), time.monotonic()
        there = base
        while not producer.done.wait(1.0):
            there = row_count(run.retrieval)
            backlog.append(max(0, producer.sent - (there - base)))
            if backlog[-1] > 20 * rate:  # it cannot be held, and what waits must still be worked off
                producer.process.terminate()
        seconds, after = time.monotonic() - started, usage.look(run.stack)
    sent = producer.sent if producer.process.returncode == 0 else None
    wait_for_rows(run.retrieval, base + (sent or phase.count), PATIENCE_S)
    events = phase.events(run.source)
    if sent is None:  # ended early: which were the last to reach the broker, only the rows know
        reached = row_count(run.retrieval) - base
        events = (event for _, event in zip(range(reached), events, strict=False))
    count = run.judge.published(events, by_key=True)
    _profiled(run, f"sustained {rate:g}/s", count, seconds, usage.spent(before, after), producer.said)
    flat = sent is not None and _is_flat(backlog, rate)
    run.report.notes.setdefault("sustained", []).append(
        {"offered_per_s": rate, "seconds": round(seconds, 1), "flat": flat, "backlog": _thinned(backlog)}
    )
    print(f"  backlog {_thinned(backlog)}: {'flat' if flat else 'grows'}", flush=True)
    return flat, min(rate, (there - base) / seconds)


def _is_flat(backlog: Sequence[int], rate: float) -> bool:
    """Whether the last fifth waits no more than a second's worth longer than the second fifth."""
    if len(backlog) < 5:
        return False
    fifth = len(backlog) // 5
    early, late = backlog[fifth : 2 * fifth], backlog[-fifth:]
    return sum(late) / len(late) <= sum(early) / len(early) + rate


def _thinned(values: Sequence[int], most: int = 20) -> list[int]:
    return list(values[:: max(1, len(values) // most)])


def _profiled(run: Run, name: str, items: int, seconds: float, cpu_s: dict[str, float], said: dict[str, float]) -> None:
    profile = Profile(name, items, seconds, cpu_s, said.get("cpu_s", 0.0)).to_json()
    run.profiles.append(profile)
    print(f"  CPU ms a posting: {profile['cpu_ms_per_item_total']} = {profile['cpu_ms_per_item']}", flush=True)


def _await_standing(run: Run, ids: Sequence[str]) -> int:
    """How many subscriptions are percolated, once all are or STANDING_PATIENCE_S seconds have passed."""
    deadline = time.monotonic() + STANDING_PATIENCE_S
    while True:
        held = 0
        for start in range(0, len(ids), 1_000):
            request = StandingRequest(subscription_ids=tuple(ids[start : start + 1_000]))
            held += sum(run.retrieval.standing(request, 30.0).in_force)
        if held == len(ids) or time.monotonic() > deadline:
            return held
        time.sleep(1.0)


def _matches_a_posting(run: Run) -> dict[str, float]:
    """Of fresh postings as the index holds them: mean, median and greatest number of subscriptions that match."""
    phase = run.phase(Mix.NEW, 0.0, PERCOLATED)
    _publish_and_wait(run, phase)
    held = rows(run.retrieval, [event.posting_id for event in phase.events(run.source)])
    updates = [row.update for row in held if row.update is not None]
    counts: list[float] = []
    for start in range(0, len(updates), 50):
        request = PercolateRequest(updates=tuple(updates[start : start + 50]))
        counts += [float(len(found.matches)) for found in run.retrieval.percolate(request, 60.0).found]
    mean = sum(counts) / max(len(counts), 1)
    shares = {f"p{share}": percentile(counts, share / 100) or 0.0 for share in (50, 90, 99, 100)}
    return {"mean": round(mean, 2), **shares}


def _publish_and_wait(run: Run, phase: Phase) -> None:
    base = row_count(run.retrieval)
    with producing(phase, run.data, run.stack) as producer:
        producer.wait(PATIENCE_S)
    run.judge.published(phase.events(run.source), by_key=True)
    wait_for_rows(run.retrieval, base + phase.count, PATIENCE_S)


def _until_quiet(feed: Alerts) -> None:
    """Until no alert has come for three seconds, at most PATIENCE_S."""
    deadline, seen, since = time.monotonic() + PATIENCE_S, -1, time.monotonic()
    while time.monotonic() < min(deadline, since + 3.0):
        if len(feed.ids) != seen:
            seen, since = len(feed.ids), time.monotonic()
        time.sleep(0.1)


def _about(source: Source, rate: float) -> dict[str, Any]:
    return machine(
        flink=importlib.metadata.version("apache-flink"),
        postings=source.name,
        rate_of_latency_phases=rate,
        distinct_postings=len(source.postings),
        mean_characters=round(source.mean_characters),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write machine, results and profile here")
    parser.add_argument("--stack", type=Path, help="use the running stack of this data directory, and leave it up")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder that holds usajobs_postings")
    parser.add_argument("--phases", default=",".join(PHASES), help=f"some of {','.join(PHASES)}")
    parser.add_argument("--seconds", type=float, help="of each timed phase, for a trial")
    parser.add_argument("--rate", type=float, default=RATE, help="postings a second of the latency phases")
    given = parser.parse_args()
    chosen = given.phases.split(",")
    if unknown := set(chosen) - set(PHASES):
        parser.error(f"no phase {', '.join(sorted(unknown))}: there are {', '.join(PHASES)}")
    source = load(given.data)
    about = _about(source, given.rate)
    with ExitStack() as closes:
        if given.stack is None:
            folder = closes.enter_context(tempfile.TemporaryDirectory(prefix="penstock-stream-"))
            stack = Stack(Path(folder))
            closes.callback(stack.down, print)
            stack.up(print)
        else:
            stack = Stack(given.stack)
        settings = stack.settings()
        retrieval = closes.enter_context(closing(RetrievalClient(shard_addresses(settings.retrieval))))
        judge = closes.enter_context(closing(Judge(settings, retrieval)))
        run = Run(stack.layout.root, settings, retrieval, source, given.data, judge, given.seconds, given.rate)
        work = {"idle": idle, "searchable": searchable, "decode": decoding, "alerts": alerts, "sustained": sustained}
        for number, name in enumerate(phase for phase in PHASES if phase in chosen):
            if name != "idle" and not run.phases:
                warm_up(run)
            print(f"[{number + 1}/{len(chosen)}] {name}, load average {os.getloadavg()[0]:.1f}", flush=True)
            work[name](run)
        verdict = judge.verdict(PATIENCE_S)
        run.report.add("lost", verdict.lost, "postings", 0)
        run.report.add("wrong", verdict.wrong + run.doubled, "postings and alerts", 0)
        run.report.notes["accounting"] = asdict(verdict)
    print("\n" + table(run.report.results))
    for line in verdict.details:
        print(line)
    if given.json is not None:
        run.report.write(given.json, about, profile=run.profiles)
    return 0 if verdict.clean and not run.doubled else 1


if __name__ == "__main__":
    raise SystemExit(main())
