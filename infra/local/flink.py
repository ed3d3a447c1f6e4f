"""Flink as the stack uses it: its REST interface, retained checkpoints, and `flink run` for our jobs.

Double submission is impossible by construction: a job's id is chosen and recorded here before it is submitted under
that id, so an `up` that was killed halfway finds the job, and Flink itself refuses a second job of one id. The record
(jobs.json: name -> ids, oldest first) is written under the stack's lock and this object's own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from penstock.infra.local.config import write

GONE = ("ABSENT", "FAILED", "CANCELED", "FINISHED", "SUSPENDED")  # states a job does not come back from by itself


class FlinkUnreachable(Exception):
    """The JobManager does not answer, or refuses."""


class SubmitFailed(Exception):
    """`flink run` failed; its log says why."""


@dataclass(frozen=True, slots=True)
class JobState:
    """One job as the JobManager sees it. `state` ABSENT: it does not know it."""

    job_id: str
    state: str
    waiting: int  # tasks that do not run yet
    deployed_ms: int  # epoch ms at which the oldest running task was deployed

    @property
    def healthy(self) -> bool:
        return self.state == "RUNNING" and self.waiting == 0


class Rest:
    """The JobManager's REST interface at `address` (host:port). Stateless."""

    def __init__(self, address: str, timeout: float = 3.0) -> None:
        self._base, self._timeout = f"http://{address}", timeout
        # Loopback must not go through a proxy that the environment names.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def overview(self) -> dict[str, Any]:
        """taskmanagers, slots-total, slots-available, flink-version, …"""
        found: dict[str, Any] = self.get("/overview")
        return found

    def job(self, job_id: str) -> JobState:
        """A job's state, ABSENT when there is no such job."""
        try:
            found = self.get(f"/jobs/{job_id}")
        except FlinkUnreachable as error:
            if isinstance(error.__cause__, urllib.error.HTTPError) and error.__cause__.code == 404:
                return JobState(job_id, "ABSENT", 0, 0)
            raise
        waiting = sum(1 for vertex in found["vertices"] if vertex["status"] != "RUNNING")
        deployed = min((int(vertex["start-time"]) for vertex in found["vertices"]), default=0)
        return JobState(job_id, found["state"], waiting, deployed)

    def task_manager_ports(self) -> list[int]:
        """RPC ports of the registered TaskManagers, from addresses such as pekko.tcp://flink@127.0.0.1:1234/user/…"""
        found = self.get("/taskmanagers")["taskmanagers"]
        return [port for each in found if (port := urlsplit(each["path"]).port) is not None]

    def checkpoint_age_ms(self, job_id: str, now_ms: int) -> int | None:
        """Since the newest completed checkpoint, or None before the first."""
        newest = (self.get(f"/jobs/{job_id}/checkpoints").get("latest") or {}).get("completed")
        return now_ms - int(newest["latest_ack_timestamp"]) if newest else None

    def failure(self, job_id: str) -> str:
        """The first line of the root cause of the newest failure, if any."""
        entries = self.get(f"/jobs/{job_id}/exceptions").get("exceptionHistory", {}).get("entries", [])
        return str(entries[0]["stacktrace"]).splitlines()[0] if entries else ""

    def checkpoint(self, job_id: str, timeout: float) -> bool:
        """Take a checkpoint now and wait for it; whether it completed in time."""
        trigger = self._request("POST", f"/jobs/{job_id}/checkpoints", {"checkpointType": "CONFIGURED"})["request-id"]
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            answer = self.get(f"/jobs/{job_id}/checkpoints/{trigger}")
            if answer["status"]["id"] == "COMPLETED":
                return "failureCause" not in (answer.get("operation") or {})
            time.sleep(0.05)
        return False

    def cancel(self, job_id: str) -> None:
        """Ask for the job's end; its checkpoints are retained."""
        self._request("PATCH", f"/jobs/{job_id}?mode=cancel", {})

    def get(self, path: str) -> Any:
        """What the interface answers to GET `path`. Raises FlinkUnreachable."""
        return self._request("GET", path, None)

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._base + path, data, method=method, headers={"Content-Type": "application/json"}
        )
        try:
            with self._opener.open(request, timeout=self._timeout) as reply:
                return json.load(reply)
        except (OSError, ValueError) as error:
            raise FlinkUnreachable(f"Flink's REST interface at {self._base}{path}: {error}") from error


class JobRecord:
    """Which Flink job ids a named job has had in this stack, in a JSON file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def ids(self, name: str) -> list[str]:
        """Oldest first."""
        return list(self._read().get(name, ()))

    def add(self, name: str) -> str:
        """A fresh id, recorded."""
        job_id = uuid.uuid4().hex
        self._change(name, lambda ids: [*ids, job_id])
        return job_id

    def keep(self, name: str, ids: Sequence[str]) -> None:
        """Forget all other ids of that name."""
        self._change(name, lambda _: list(ids))

    def _read(self) -> dict[str, list[str]]:
        try:
            read: dict[str, list[str]] = json.loads(self._path.read_text())
        except FileNotFoundError:
            return {}
        return read

    def _change(self, name: str, change: Callable[[list[str]], list[str]]) -> None:
        with self._lock:
            record = self._read()
            record[name] = change(record.get(name, []))
            write(self._path, json.dumps(record, indent=2))


def newest_checkpoint(root: Path, job_ids: Sequence[str]) -> Path | None:
    """The newest complete retained checkpoint of any of these jobs: the folder that holds its _metadata.

    Newest by when it was completed, then by its number, which goes on across restores.
    """
    found: list[tuple[int, int, Path]] = []
    for job_id in job_ids:
        for metadata in (root / job_id).glob("chk-*/_metadata"):
            try:
                status = metadata.stat()
                number = int(metadata.parent.name.removeprefix("chk-"))
            except (FileNotFoundError, ValueError):
                continue  # subsumed while we looked, or no checkpoint of Flink's
            if status.st_size > 0:
                found.append((status.st_mtime_ns, number, metadata.parent))
    return max(found)[2] if found else None


def prune(root: Path, record: JobRecord, name: str) -> None:
    """Drop checkpoints of a job's earlier lives once its present one has its own.

    Restores take no claim on the files they start from, so a completed checkpoint needs none of them.
    """
    ids = record.ids(name)
    if len(ids) > 1 and newest_checkpoint(root, ids[-1:]):
        for old in ids[:-1]:
            shutil.rmtree(root / old, ignore_errors=True)
        record.keep(name, ids[-1:])


@dataclass(frozen=True, slots=True)
class Submission:
    """A job, under an id that was recorded, from a retained checkpoint if there is one."""

    job: str
    job_id: str
    checkpoint: Path | None

    def __str__(self) -> str:
        """As penstock.jobs.submit reads it."""
        return f"{self.job}={self.job_id}" + (f"@{self.checkpoint.as_uri()}" if self.checkpoint else "")


def submissions(root: Path, record: JobRecord, jobs: Sequence[str]) -> list[Submission]:
    """Each job under a fresh id, which is recorded here, from the newest checkpoint of its earlier lives."""
    found = [(job, newest_checkpoint(root, record.ids(job))) for job in jobs]
    return [Submission(job, record.add(job), checkpoint) for job, checkpoint in found]


def run_arguments(script: Path, parallelism: int, *arguments: str) -> list[str]:
    """What follows `flink` to have a script submit what its arguments name."""
    return ["run", "-d", "-p", str(parallelism), "-py", str(script), *arguments]


class Together:
    """Submits jobs that ask at about the same time in one go. `run` takes their names; called from any thread."""

    def __init__(self, run: Callable[[list[str], threading.Event], None], gather_s: float = 0.3) -> None:
        self._run, self._gather_s = run, gather_s
        self._lock = threading.Lock()
        self._asked: list[tuple[str, Future[None]]] = []

    def submit(self, job: str, cancelled: threading.Event) -> None:
        """Returns when the job was submitted. Raises what `run` raised, for every job of that go."""
        mine: Future[None] = Future()
        with self._lock:
            self._asked.append((job, mine))
            first = len(self._asked) == 1
        if first:  # gathers, and works for those who came meanwhile
            cancelled.wait(self._gather_s)
            with self._lock:
                taken, self._asked = self._asked, []
            try:
                self._run([name for name, _ in taken], cancelled)
            except BaseException as error:
                for _, each in taken:
                    each.set_exception(error)
            else:
                for _, each in taken:
                    each.set_result(None)
        mine.result()


def submit(
    command: Sequence[str],
    environment: Mapping[str, str],
    logs: Sequence[Path],
    cancelled: threading.Event,
    timeout: float,
) -> None:
    """Run `flink run …` to its end, output to all `logs`. Raises SubmitFailed; ends it when cancelled."""
    log, *others = logs
    with log.open("ab") as out:
        began = out.tell()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=dict(environment),
            cwd=log.parent,
            start_new_session=True,
        )
    deadline = time.monotonic() + timeout
    try:
        while True:
            try:
                status = process.wait(timeout=0.1)
                break
            except subprocess.TimeoutExpired:
                if cancelled.is_set():
                    raise SubmitFailed("interrupted") from None
                if time.monotonic() > deadline:
                    raise SubmitFailed(f"`flink run` took longer than {timeout:.0f} s") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        with log.open("rb") as said:
            said.seek(began)
            text = said.read()
        for other in others:
            with other.open("ab") as out:
                out.write(text)
    if status != 0:
        raise SubmitFailed(f"`flink run` ended with {status}")
