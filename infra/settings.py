"""Settings of every process: one frozen tree, from a TOML file and the environment.

Order, the later winning: defaults, `<data dir>/penstock.toml` (`penstock up` writes the ports it chose there), the
file named by PENSTOCK_CONFIG, then variables such as PENSTOCK_KAFKA__BOOTSTRAP_SERVERS.
Client properties of Kafka and Redis (TLS, SASL, ACL) pass through untouched. Every listener binds loopback unless
told otherwise.
"""

from __future__ import annotations

import os
import tomllib
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

DEFAULT_DATA_DIR = ".penstock"


class SettingsError(Exception):
    """A setting is wrong: says which, what was given and what is expected."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class KafkaSettings(_Section):
    bootstrap_servers: str = "127.0.0.1:9092"
    client: dict[str, str] = Field(default_factory=dict, description="passed through to every Kafka client")
    secrets: dict[str, SecretStr] = Field(default_factory=dict, description="likewise, kept out of logs")
    schema_registry: dict[str, str] = Field(default_factory=dict, description="url and credentials; empty: none")
    replication_factor: int = 1
    group_prefix: str = "penstock"

    def properties(self) -> dict[str, str]:
        """What librdkafka clients are made with, secrets included."""
        opened = {name: value.get_secret_value() for name, value in self.secrets.items()}
        return {"bootstrap.servers": self.bootstrap_servers, **self.client, **opened}


class RedisSettings(_Section):
    url: str = "redis://127.0.0.1:6379/0"
    password: SecretStr | None = None
    client: dict[str, Any] = Field(default_factory=dict, description="passed through to redis.from_url")
    prefix: str = "penstock"


class FlinkSettings(_Section):
    rest: str = "127.0.0.1:8081"
    parallelism: int = 1
    checkpoint_interval_ms: int = 5_000
    bundle_time_ms: int = 20
    bundle_size: int = 256


class PostingsSettings(_Section):
    """The postings job."""

    max_life_ms: int = 365 * 86_400_000
    tombstone_window_ms: int = Field(
        8 * 86_400_000, description="how long a deleted or expired id keeps its version; older events are refused"
    )
    enrich_timeout_ms: int = Field(800, description="after this the posting is published without a vector")
    enrich_batch: int = 32
    enrich_concurrency: int = 2


class QueriesSettings(_Section):
    """The queries job."""

    analyze_timeout_ms: int = 400


class ModelsSettings(_Section):
    listen: str = "127.0.0.1:7101"
    encoder: str = Field("embedded", description="'embedded', or a Hugging Face encoder directory")
    device: str = "cpu"
    threads: int = 1
    max_batch: int = 128
    max_queue: int = Field(4_096, description="items that may wait for a lane; past it calls are refused")
    summary_tokens: int = 96


class RetrievalSettings(_Section):
    listen: str = "127.0.0.1:7201"
    shards: tuple[str, ...] = Field((), description="addresses clients call; empty: `listen` alone")
    shard: str = "shard-0"
    partitions: tuple[int, ...] = Field((), description="of index.update.v1; empty: all of them")
    threads: int = 1
    publish_interval_ms: int = Field(20, description="how long updates gather before an epoch is published")
    snapshot_interval_s: float = 30.0
    initial_rows: int = 16_384


class RankerSettings(_Section):
    listen: str = "127.0.0.1:7301"
    group: str = "ranker"
    threads: int = 1
    workers: int = 2
    depth: int = 250
    max_depth: int = 2_000
    max_queue: int = 1_024
    score_cache_ttl_s: int = 900
    scorer: str = Field("fused", description="'fused', or a Qwen3-style model directory for yes/no scoring")
    lm_items: int = Field(32, description="how many of the best the language model scores")
    device: str = Field("cpu", description="where the language model runs: cpu, cuda, cuda:1, ...")


class MetricsSettings(_Section):
    """Prometheus endpoints; 0 turns one off."""

    host: str = "127.0.0.1"
    models: int = 0
    retrieval: int = 0
    ranker: int = 0


class Settings(BaseSettings):
    """The whole tree."""

    model_config = SettingsConfigDict(env_prefix="PENSTOCK_", env_nested_delimiter="__", frozen=True, extra="forbid")

    data_dir: Path = Path(DEFAULT_DATA_DIR)
    kafka: KafkaSettings = KafkaSettings()
    redis: RedisSettings = RedisSettings()
    flink: FlinkSettings = FlinkSettings()
    postings: PostingsSettings = PostingsSettings()
    queries: QueriesSettings = QueriesSettings()
    models: ModelsSettings = ModelsSettings()
    retrieval: RetrievalSettings = RetrievalSettings()
    ranker: RankerSettings = RankerSettings()
    metrics: MetricsSettings = MetricsSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        files = (TomlConfigSettingsSource(settings_cls, path) for path in config_paths())
        return (init_settings, env_settings, *files)


_AT: ContextVar[Path | None] = ContextVar("_AT", default=None)  # the stack whose settings are being loaded


def data_dir() -> Path:
    """Where the local stack keeps everything: PENSTOCK_DATA_DIR, or `.penstock` in the current directory."""
    at = _AT.get()
    if at is not None:
        return at
    return Path(os.environ.get("PENSTOCK_DATA_DIR", DEFAULT_DATA_DIR)).resolve()


def config_paths() -> list[Path]:
    """The settings files in force, the stronger first."""
    paths = []
    named = os.environ.get("PENSTOCK_CONFIG")
    if named:
        path = Path(named)
        if not path.is_file():
            raise SettingsError(f"PENSTOCK_CONFIG names {path}, which is not a file: correct it or unset it")
        paths.append(path)
    path = data_dir() / "penstock.toml"
    if path.is_file():
        paths.append(path)
    return paths


def load(**overrides: Any) -> Settings:
    """The settings in force. Raises SettingsError naming every setting at fault."""
    try:
        return Settings(**{"data_dir": data_dir(), **overrides})
    except ValidationError as error:
        lines = [f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}, got {e['input']!r}" for e in error.errors()]
        raise SettingsError("; ".join(lines)) from error
    except tomllib.TOMLDecodeError as error:
        files = " or ".join(str(path) for path in config_paths())
        raise SettingsError(f"{files} is not valid TOML: {error}") from error


def load_at(directory: Path) -> Settings:
    """The settings in force for the stack in `directory`, whatever PENSTOCK_DATA_DIR says. Raises SettingsError."""
    token = _AT.set(directory.resolve())
    try:
        return load()
    finally:
        _AT.reset(token)
