"""The parts of a local stack and which waits for which: the one table that `up`, `down` and `status` walk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    PROCESS = "process"  # kept by supervisord
    STEP = "step"  # done once, leaves no process
    JOB = "job"  # lives in Flink


@dataclass(frozen=True, slots=True)
class Part:
    """One part. `after`: what must be healthy before it starts. Times in seconds."""

    name: str
    what: str  # for people
    kind: Kind = Kind.PROCESS
    after: tuple[str, ...] = ()
    deadline: float = 180.0  # to become healthy; a part that has died is told at once, this is for crowded machines
    stop_wait: int = 10  # between asking it to end and killing it
    outlives: bool = False  # stopped only after all the others, which write to it until the end


PARTS: tuple[Part, ...] = (
    Part("kafka", "Kafka broker", stop_wait=20, outlives=True),
    Part("jobmanager", "Flink JobManager"),
    # It asks for its JobManager until it answers, so the two start together.
    Part("taskmanager", "Flink TaskManager"),
    Part("models", "encoders and query understanding"),
    Part("redis", "Redis", outlives=True),
    Part("topics", "Kafka topics", Kind.STEP, after=("kafka",)),
    Part("enrich", "enrichment workers", after=("topics",)),
    Part("retrieval", "retrieval shard", after=("topics",)),
    Part("ranker", "ranker", after=("topics", "redis", "models", "retrieval")),
    Part("gateway", "HTTP", after=("topics", "retrieval", "ranker")),
    # The jobs call the models role but do not wait for it: its start and theirs take longest, side by side.
    Part("postings", "Flink job", Kind.JOB, after=("topics", "jobmanager", "taskmanager")),
    Part("queries", "Flink job", Kind.JOB, after=("topics", "jobmanager", "taskmanager")),
    Part("alerts", "Flink job", Kind.JOB, after=("topics", "jobmanager", "taskmanager")),
)


def in_order(parts: Sequence[Part]) -> list[list[Part]]:
    """The parts in waves: each waits only for earlier waves. Raises ValueError on a cycle or an unknown name."""
    names = {part.name for part in parts}
    for part in parts:
        if unknown := set(part.after) - names:
            raise ValueError(f"{part.name} waits for {', '.join(sorted(unknown))}, which is no part")
    waves: list[list[Part]] = []
    done: set[str] = set()
    left = list(parts)
    while left:
        wave = [part for part in left if done.issuperset(part.after)]
        if not wave:
            raise ValueError(f"these wait for each other: {', '.join(part.name for part in left)}")
        waves.append(wave)
        done.update(part.name for part in wave)
        left = [part for part in left if part not in wave]
    return waves


def stop_order(parts: Sequence[Part]) -> list[list[Part]]:
    """Processes in waves to stop: users before what they use."""
    processes = [part for part in parts if part.kind is Kind.PROCESS]
    waves = [[p for p in wave if p in processes and not p.outlives] for wave in reversed(in_order(parts))]
    return [wave for wave in (*waves, [part for part in processes if part.outlives]) if wave]


def find(parts: Sequence[Part], name: str) -> Part:
    """The part of that name; KeyError lists what there is."""
    for part in parts:
        if part.name == name:
            return part
    raise KeyError(f"no part {name!r}; there are: {', '.join(part.name for part in parts)}")
