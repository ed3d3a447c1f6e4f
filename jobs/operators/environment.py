"""The execution environment that every job of ours runs in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from pyflink.common import Configuration
from pyflink.datastream import CheckpointingMode, ExternalizedCheckpointRetention, StreamExecutionEnvironment
from pyflink.util.java_utils import get_j_env_configuration

from penstock.infra.settings import Settings, load

MODE = "python.execution-mode"
BUFFER_TIMEOUT_MS = 5  # how long a half-full network buffer waits between two tasks; Flink's default is 100


def job_environment(settings: Settings, said: Mapping[str, str] | None = None) -> StreamExecutionEnvironment:
    """Small bundles for freshness, at-least-once checkpoints that outlive the job; `said`: Flink options besides.

    Where checkpoints, state backend, jars and interpreters are is the cluster's affair: its configuration has them.
    """
    flink = settings.flink
    configuration = Configuration()
    configuration.set_string("python.fn-execution.bundle.time", str(flink.bundle_time_ms))
    configuration.set_string("python.fn-execution.bundle.size", str(flink.bundle_size))
    for option, value in (said or {}).items():
        configuration.set_string(option, value)
    env = StreamExecutionEnvironment.get_execution_environment(configuration)
    env.set_parallelism(flink.parallelism)
    env.set_buffer_timeout(BUFFER_TIMEOUT_MS)
    env.enable_checkpointing(flink.checkpoint_interval_ms, CheckpointingMode.AT_LEAST_ONCE)
    checkpoints = env.get_checkpoint_config()
    checkpoints.set_externalized_checkpoint_retention(ExternalizedCheckpointRetention.RETAIN_ON_CANCELLATION)
    return env


def submit(job: str, build: Callable[[StreamExecutionEnvironment, Settings], None]) -> None:
    """Build a job from the settings of this process and hand it to Flink, which lists it as `penstock <job>`."""
    settings = load()
    env = job_environment(settings)
    build(env, settings)
    env.execute(f"penstock {job}")


def run_python_as_set(env: StreamExecutionEnvironment, settings: Settings) -> None:
    """Operators built from now on run their Python where `flink.python` says, but for those `in_process`.

    In the TaskManager's own JVM an element costs no serialised hop and no bundle, and state costs no round trip.
    """
    _set_mode(env, settings.flink.python)


@contextmanager
def in_process(env: StreamExecutionEnvironment) -> Iterator[None]:
    """Operators built in here run in a Python process whatever is set: PyFlink refuses async ones anywhere else.

    It asks the environment each time it builds one. (At run time only those in the JVM look again, which is why this
    is the exception and the other the rule: all operators of a job share one configuration.)
    """
    before = get_j_env_configuration(env._j_stream_execution_environment).getString(MODE, "process")
    _set_mode(env, "process")
    try:
        yield
    finally:
        _set_mode(env, before)


def _set_mode(env: StreamExecutionEnvironment, mode: str) -> None:
    get_j_env_configuration(env._j_stream_execution_environment).setString(MODE, mode)
