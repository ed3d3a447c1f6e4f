"""Is a part at work? Each answer comes from work done: metadata read, PING answered, a role's Status, tasks running.

A JobManager believes in a dead TaskManager, and in its tasks, until heartbeats fail. So a TaskManager counts only if
its address answers, and tasks only if they were deployed in the life of the present TaskManager.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from penstock.infra.local.flink import FlinkUnreachable, JobRecord, Rest
from penstock.infra.local.parts import Kind, Part
from penstock.infra.scorers import Running
from penstock.infra.settings import Settings
from penstock.schemas.grpc_avro import CallError, Client
from penstock.schemas.rpc import EnrichWorkers, Method, Models, Ranker, Retrieval, StatusRequest

STATUS: dict[str, Method] = {
    "models": Models.STATUS,
    "enrich": EnrichWorkers.STATUS,
    "retrieval": Retrieval.STATUS,
    "ranker": Ranker.STATUS,
}
# Of a role's numbers, those that a person looks at first; its own Status has all of them.
NOTABLE: dict[str, tuple[str, ...]] = {
    "models": ("postings_done", "queries_done"),
    "enrich": ("refined", "healed", "lag"),
    "retrieval": ("rows", "lag_seconds"),
    "ranker": ("served_total", "queue_depth"),
}


@dataclass(frozen=True, slots=True)
class Health:
    """`detail`: what is wrong, or, when healthy, numbers worth knowing."""

    ok: bool
    detail: str = ""


class Probe:
    """Checks the parts of one stack. Stateless beside its addresses; share it between threads."""

    def __init__(
        self, settings: Settings, ports: Mapping[str, int], record: JobRecord, started: Callable[[str], float | None]
    ) -> None:
        """`started`: when a part's present process began, epoch seconds; None while there is none."""
        self._settings, self._ports, self._record, self._started = settings, ports, record, started
        self.rest = Rest(f"127.0.0.1:{ports['flink_rest']}")

    def check(self, part: Part, timeout: float = 3.0) -> Health:
        """Never raises for what the part does wrong. `timeout` in seconds."""
        try:
            if part.kind is Kind.PROCESS and self._started(part.name) is None:
                return Health(False, "no process")
            if part.kind is Kind.JOB:
                return self._job(part.name)
            if part.name in STATUS:
                return self._role(part.name, timeout)
            check = getattr(self, f"_{part.name}")
            answer: Health = check(timeout)
            return answer
        except FlinkUnreachable as error:
            return Health(False, str(error))
        except OSError as error:
            return Health(False, f"does not answer: {error.strerror or error}")

    def _kafka(self, timeout: float) -> Health:
        self._listens("kafka")
        from penstock.infra.topics_admin import TopicsError, missing_topics

        try:
            missing = missing_topics(self._settings.kafka, timeout)
        except TopicsError as error:
            return Health(False, str(error))
        return Health(True, f"{len(missing)} topics missing" if missing else "")

    def _topics(self, timeout: float) -> Health:
        self._listens("kafka")
        from penstock.infra.topics_admin import TopicsError, all_topics, missing_topics

        try:
            missing = missing_topics(self._settings.kafka, timeout)
        except TopicsError as error:
            return Health(False, str(error))
        return (
            Health(False, f"missing: {', '.join(missing)}") if missing else Health(True, f"{len(all_topics())} topics")
        )

    def _redis(self, timeout: float) -> Health:
        password = self._settings.redis.password
        commands = [b"PING\r\n"]
        if password is not None:
            secret = password.get_secret_value().encode()
            commands.insert(0, b"*2\r\n$4\r\nAUTH\r\n$%d\r\n%s\r\n" % (len(secret), secret))
        with socket.create_connection(("127.0.0.1", self._ports["redis"]), timeout) as connection:
            answers = connection.makefile("rb")
            for command in commands:
                connection.sendall(command)
                answer = answers.readline().decode(errors="replace").strip()
                if answer not in ("+OK", "+PONG"):  # such as: -LOADING the data set is being read
                    return Health(False, f"answered {answer!r}")
        return Health(True)

    def _jobmanager(self, timeout: float) -> Health:
        overview = self.rest.overview()
        return Health(True, f"Flink {overview.get('flink-version', '?')}")

    def _taskmanager(self, timeout: float) -> Health:
        overview = self.rest.overview()
        if int(overview["slots-total"]) < 1:
            return Health(False, "not registered with the JobManager")
        for port in self.rest.task_manager_ports():
            socket.create_connection(("127.0.0.1", port), timeout).close()
        return Health(True, f"{overview['slots-available']} of {overview['slots-total']} slots free")

    def _gateway(self, timeout: float) -> Health:
        self._listens("gateway")
        connection = http.client.HTTPConnection("127.0.0.1", self._ports["gateway"], timeout=timeout)
        try:
            connection.request("GET", "/readyz")
            answer = connection.getresponse()
            told = json.loads(answer.read())
        except (http.client.HTTPException, ValueError) as error:
            return Health(False, f"answered what is no HTTP or no JSON: {error}")
        finally:
            connection.close()
        reasons = [reason for reason in told.get("checks", {}).values() if reason]
        return Health(answer.status == 200, "; ".join(reasons))

    def _role(self, name: str, timeout: float) -> Health:
        self._listens(name)
        client = Client(f"127.0.0.1:{self._ports[name]}")
        try:
            status = client.call(STATUS[name], StatusRequest(), timeout)
        except CallError as error:
            return Health(False, str(error))
        finally:
            client.close()
        shown = [key for key in NOTABLE[name] if key in status.numbers]
        told = [f"{key} {status.numbers[key]:g}" for key in shown]
        if name == "ranker":
            told.insert(0, str(Running.of(status)))
        return Health(True, ", ".join(told)) if status.ready else Health(False, status.reason or "not ready")

    def _job(self, name: str) -> Health:
        ids = self._record.ids(name)
        if not ids:
            return Health(False, "not submitted")
        job = self.rest.job(ids[-1])
        if not job.healthy:
            cause = "" if job.state == "ABSENT" else self.rest.failure(job.job_id)
            tasks = f", {job.waiting} tasks not running" if job.state == "RUNNING" else ""
            return Health(False, f"{job.state}{tasks}{f': {cause}' if cause else ''}")
        life = self._started("taskmanager")
        if life is None or job.deployed_ms < life * 1000:
            return Health(False, "its TaskManager died: being restarted")
        age = self.rest.checkpoint_age_ms(job.job_id, time.time_ns() // 1_000_000)
        return Health(
            True, "RUNNING, no checkpoint yet" if age is None else f"RUNNING, checkpoint {age / 1000:.0f} s ago"
        )

    def _listens(self, listener: str) -> None:
        """A connection first: clients of a closed port would wait for their back-off. Raises OSError."""
        socket.create_connection(("127.0.0.1", self._ports[listener]), 1.0).close()
