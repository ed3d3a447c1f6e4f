"""The configuration files of the parts, as text: pure functions of paths, ports and settings.

Everything listens on loopback. Sizes are chosen so that an idle stack stays below 4.5 GB resident.
"""

from __future__ import annotations

import configparser
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from penstock.infra.local.layout import Layout
from penstock.infra.local.parts import Part
from penstock.infra.settings import Settings

# Small models on few cores: one thread, no spinning (0.24 ms against 5.9 ms a small torch op on busy cores).
ROLE_ENVIRONMENT: dict[str, str] = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",
}
TASK_SLOTS = 4


def kafka_properties(layout: Layout, ports: Mapping[str, int]) -> str:
    """server.properties: broker and controller in one JVM."""
    broker, controller = ports["kafka"], ports["kafka_controller"]
    return _properties(
        {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "listeners": f"PLAINTEXT://127.0.0.1:{broker},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{broker}",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": str(layout.kafka / "data"),
            # Topics come from schemas/topics.py alone: a misspelt name is an error and not a new topic.
            "auto.create.topics.enable": "false",
            "num.partitions": "4",
            "default.replication.factor": "1",
            "min.insync.replicas": "1",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.num.partitions": "4",
            "transaction.state.log.min.isr": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.num.partitions": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "transaction.max.timeout.ms": "7200000",
            "group.initial.rebalance.delay.ms": "0",
            # A killed broker may register again only when its predecessor's lease has run out (9 s by default).
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
            "num.recovery.threads.per.data.dir": "2",
            # One machine, small topics: few threads, small buffers.
            "num.network.threads": "2",
            "num.io.threads": "4",
            "log.cleaner.threads": "1",
            "log.cleaner.dedupe.buffer.size": str(16 << 20),
            "log.cleaner.io.buffer.size": str(128 << 10),
            "log.segment.bytes": str(128 << 20),
            "log.index.size.max.bytes": str(1 << 20),
            "message.max.bytes": str(2 << 20),
        }
    )


def kafka_log4j() -> str:
    """Kafka's log, on stdout, which supervisord keeps and rotates."""
    return _log4j(
        {"org.apache.kafka": "WARN", "kafka": "WARN", "kafka.server.KafkaRaftServer": "INFO", "state": "WARN"}
    )


def redis_conf(layout: Layout, ports: Mapping[str, int], password: str | None) -> str:
    """redis.conf: features carry no time to live and are never evicted; cached scores do and go first.

    Append-only, written before each reply: a killed Redis loses nothing that a consumer has committed offsets for.
    """
    lines = {
        "bind": "127.0.0.1",
        "port": str(ports["redis"]),
        "dir": json.dumps(str(layout.redis)),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "auto-aof-rewrite-min-size": "64mb",
        "save": '""',
        "maxmemory": "512mb",
        "maxmemory-policy": "volatile-ttl",
        "daemonize": "no",
    }
    if password is not None:
        lines["requirepass"] = json.dumps(password)
    return "".join(f"{key} {value}\n" for key, value in lines.items())


def flink_config(
    layout: Layout, ports: Mapping[str, int], settings: Settings, python: str, java_options: Sequence[str]
) -> str:
    """config.yaml of the standalone cluster and of `flink run`, which takes its JVM's `java_options` from it.

    Memory is given piece by piece, as `bash-java-utils` would compute it: the processes then start without two more
    JVMs that only do sums.
    """
    flink = settings.flink
    values: dict[str, Any] = {
        "jobmanager.rpc.address": "127.0.0.1",
        "jobmanager.rpc.port": ports["flink_rpc"],
        "jobmanager.bind-host": "127.0.0.1",
        "rest.address": "127.0.0.1",
        "rest.bind-address": "127.0.0.1",
        "rest.port": ports["flink_rest"],
        "rest.bind-port": str(ports["flink_rest"]),
        "web.submit.enable": False,
        "taskmanager.host": "127.0.0.1",
        "taskmanager.bind-host": "127.0.0.1",
        # With a fixed id the successor of a killed TaskManager replaces it at once, heartbeat or not.
        "taskmanager.resource-id": "taskmanager-1",
        "taskmanager.numberOfTaskSlots": TASK_SLOTS,
        "taskmanager.cpu.cores": float(TASK_SLOTS),
        "taskmanager.memory.framework.heap.size": "96m",
        "taskmanager.memory.task.heap.size": "160m",
        "taskmanager.memory.framework.off-heap.size": "96m",
        "taskmanager.memory.task.off-heap.size": "0m",
        "taskmanager.memory.network.min": "64m",
        "taskmanager.memory.network.max": "64m",
        "taskmanager.memory.managed.size": "384m",
        "taskmanager.memory.jvm-metaspace.size": "224m",
        "taskmanager.memory.jvm-overhead.min": "192m",
        "taskmanager.memory.jvm-overhead.max": "192m",
        "parallelism.default": flink.parallelism,
        "io.tmp.dirs": str(layout.flink / "tmp"),
        # A dead TaskManager is noticed in seconds, and jobs wait for the next one for ever.
        "heartbeat.interval": "2 s",
        "heartbeat.timeout": "20 s",
        "cluster.registration.initial-timeout": "100 ms",
        "cluster.registration.max-timeout": "2 s",
        "cluster.registration.error-delay": "500 ms",
        "cluster.registration.refused-registration-delay": "1 s",
        "restart-strategy.type": "exponential-delay",
        "restart-strategy.exponential-delay.initial-backoff": "500 ms",
        "restart-strategy.exponential-delay.max-backoff": "5 s",
        "restart-strategy.exponential-delay.reset-backoff-threshold": "1 min",
        "state.backend.type": "rocksdb",
        "execution.checkpointing.interval": f"{flink.checkpoint_interval_ms} ms",
        "execution.checkpointing.min-pause": f"{flink.checkpoint_interval_ms // 2} ms",
        "execution.checkpointing.timeout": "60 s",
        "execution.checkpointing.tolerable-failed-checkpoints": 1000,
        "execution.checkpointing.mode": "AT_LEAST_ONCE",
        "execution.checkpointing.incremental": True,
        "execution.checkpointing.dir": layout.checkpoints.as_uri(),
        "execution.checkpointing.num-retained": 2,
        "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
        "classloader.resolve-order": "parent-first",  # programs.link_flink_lib
        "env.java.opts.all": " ".join(java_options),
        "python.executable": python,
        "python.client.executable": python,
        "python.execution-mode": "process",
        "python.fn-execution.bundle.time": flink.bundle_time_ms,
        "python.fn-execution.bundle.size": flink.bundle_size,
        "metrics.fetcher.update-interval": "2 s",  # of the REST interface, from which `penstock top` reads
    }
    if settings.metrics.flink:
        first = settings.metrics.flink
        values |= {
            "metrics.reporter.prometheus.factory.class": (
                "org.apache.flink.metrics.prometheus.PrometheusReporterFactory"  # a plugin that the wheel has
            ),
            "metrics.reporter.prometheus.port": f"{first}-{first + 1}",
        }
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items())


def python_start(folders: Sequence[str]) -> str:
    """sitecustomize.py of the Python inside the TaskManager's JVM, which knows nothing of a virtual environment."""
    return f"import site\n\nfor folder in {list(folders)!r}:\n    site.addsitedir(folder)\n"


def flink_log4j() -> str:
    """Flink's log, on stdout, which supervisord keeps and rotates."""
    quiet = (
        "org.apache.kafka",
        "org.apache.pekko",
        "org.apache.flink.kafka.shaded",
        "org.apache.flink.api.java.typeutils.TypeExtractor",  # tells of every Row that it is no POJO
    )
    return _log4j(dict.fromkeys(quiet, "WARN"))


def supervisord_conf(layout: Layout, processes: Sequence[Part], commands: Mapping[str, Sequence[str]]) -> str:
    """supervisord.conf: nothing starts by itself; `up` starts parts in order and checks their health.

    Paths are relative to the data directory, supervisord's working directory: it expands % in some values twice.
    A part that dies is started again after 1, 2, 3 seconds. One that does not live for five seconds four times in a
    row is given up, which `status` shows and `up` heals.
    """
    parser = configparser.RawConfigParser()
    parser["supervisord"] = {
        "nodaemon": "true",
        "logfile": _inside(layout, layout.log("supervisord")),
        "logfile_maxbytes": "5MB",
        "logfile_backups": "1",
        "pidfile": _inside(layout, layout.run / "supervisord.pid"),
        "childlogdir": _inside(layout, layout.logs),
        "umask": "077",
    }
    parser["unix_http_server"] = {"file": _inside(layout, layout.supervisor_socket()), "chmod": "0600"}
    parser["rpcinterface:supervisor"] = {
        "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
    }
    for part in processes:
        parser[f"program:{part.name}"] = {
            "command": shlex.join(commands[part.name]).replace("%", "%%"),
            "autostart": "false",
            "autorestart": "unexpected",
            "startsecs": "5",
            "startretries": "3",
            "stopwaitsecs": str(part.stop_wait),
            "stopasgroup": "false",  # each part ends its own children in its own order
            "killasgroup": "true",
            "redirect_stderr": "true",
            "stdout_logfile": _inside(layout, layout.log(part.name)),
            "stdout_logfile_maxbytes": "20MB",
            "stdout_logfile_backups": "1",
        }
    out = io.StringIO()
    parser.write(out)
    return out.getvalue()


def toml(tree: Mapping[str, Any]) -> str:
    """A settings tree as TOML: plain values first, then a table a section."""
    lines = [f"{key} = {_toml_value(value)}" for key, value in tree.items() if not isinstance(value, Mapping)]
    for section, values in tree.items():
        if isinstance(values, Mapping):
            lines += ["", f"[{section}]"]
            lines += [f"{_toml_key(key)} = {_toml_value(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_toml_key(k)} = {_toml_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    return _toml_string(str(value))


def _toml_key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else _toml_string(key)


def _toml_string(text: str) -> str:
    """A TOML basic string, which escapes as JSON does, but wants no surrogates and DEL escaped as well."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _inside(layout: Layout, path: Path) -> str:
    return str(path.relative_to(layout.root)) if path.is_relative_to(layout.root) else str(path)


def _properties(values: Mapping[str, str]) -> str:
    escaped = {key: value.replace("\\", "\\\\") for key, value in values.items()}
    return "".join(f"{key}={value}\n" for key, value in escaped.items())


def _log4j(levels: Mapping[str, str]) -> str:
    lines = {
        "rootLogger.level": "INFO",
        "rootLogger.appenderRef.out.ref": "Out",
        "appender.out.name": "Out",
        "appender.out.type": "CONSOLE",
        "appender.out.layout.type": "PatternLayout",
        "appender.out.layout.pattern": "%d{yyyy-MM-dd'T'HH:mm:ss.SSSXXX} %-5p %c{1.} %m%n",
    }
    for number, (name, level) in enumerate(levels.items()):
        lines[f"logger.l{number}.name"] = name
        lines[f"logger.l{number}.level"] = level
    return _properties(lines)


def write(path: Path, text: str) -> None:
    """Replace a file, readable by this user alone (settings may hold passwords)."""
    fresh = path.with_name(path.name + ".new")
    fresh.touch(mode=0o600)
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)
