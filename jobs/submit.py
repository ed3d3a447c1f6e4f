"""Hands jobs of ours to a cluster from one client: the start of a client is most of what a submission costs.

    flink run -d -pym penstock.jobs.submit postings queries alerts

An argument is NAME, or NAME=JOB_ID, or NAME=JOB_ID@CHECKPOINT for a job that goes on from a retained checkpoint (a
URI), which stays as it is. Jobs are submitted in this order; the first that fails ends it.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Sequence

from penstock.infra.settings import load
from penstock.jobs.operators.environment import job_environment

JOBS = ("postings", "queries", "alerts")
_WANTED = re.compile(rf"(?P<job>{'|'.join(JOBS)})(=(?P<id>[0-9a-f]{{32}})(@(?P<checkpoint>\S+))?)?")


def configuration(argument: str) -> tuple[str, dict[str, str]]:
    """A job's name and what its submission says to Flink. Raises ValueError."""
    found = _WANTED.fullmatch(argument)
    if found is None:
        raise ValueError(f"{argument!r}: expected NAME, NAME=JOB_ID or NAME=JOB_ID@CHECKPOINT, NAME of {JOBS}")
    said = {}
    if found["id"]:
        said["$internal.pipeline.job-id"] = found["id"]
    if found["checkpoint"]:
        said["execution.state-recovery.path"] = found["checkpoint"]
        said["execution.state-recovery.claim-mode"] = "NO_CLAIM"
    return found["job"], said


def main(arguments: Sequence[str]) -> None:
    if not arguments:
        raise ValueError(f"which jobs? Some of {', '.join(JOBS)}")
    settings = load()
    for job, said in [configuration(argument) for argument in arguments]:
        env = job_environment(settings, said)
        importlib.import_module(f"penstock.jobs.{job}").build(env, settings)
        env.execute(f"penstock {job}")


if __name__ == "__main__":
    main(sys.argv[1:])
