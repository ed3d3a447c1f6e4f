"""Publishes one phase at its rate, in a process of its own, so that the producer's work is not counted as the system's.

Open loop: an event leaves at its time whether or not the system keeps up, and carries the moment of producing as its
Kafka timestamp. Says on stdout, a JSON object a line, how many have left: at the start, every half second, at the end.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from benchmarks.streaming.plan import Phase
from benchmarks.streaming.source import load
from penstock.infra.kafka_clients import Publisher
from penstock.infra.settings import load_at
from penstock.schemas.topics import POSTINGS

TELL_EVERY_S = 0.5


def produce(phase: Phase, data: Path, stack: Path) -> None:
    """Raises PublishFailed."""
    source = load(data)
    events = phase.events(source)
    with Publisher(load_at(stack).kafka) as publisher:
        _tell(0)
        told = started = time.monotonic()
        latest = 0.0
        for position, event in enumerate(events):
            due = started + position / phase.rate if phase.rate else 0.0
            while phase.rate and (wait := due - time.monotonic()) > 0:
                publisher.poll(min(wait, 0.05))
            now = time.monotonic()
            latest = max(latest, now - due) if phase.rate else 0.0
            publisher.publish_raw(
                POSTINGS.name, event.posting_id.encode(), event.value, timestamp_ms=int(time.time() * 1000)
            )
            if now - told > TELL_EVERY_S:
                told = now
                _tell(position + 1)
        publisher.flush()
        _tell(publisher.delivered, done=True, behind_s=round(latest, 3), cpu_s=round(time.process_time(), 3))


def _tell(sent: int, **more: object) -> None:
    print(json.dumps({"sent": sent, "at": time.time(), **more}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("phase", type=Phase.loads)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--stack", type=Path, required=True)
    given = parser.parse_args()
    produce(given.phase, given.data, given.stack)


if __name__ == "__main__":
    main()
