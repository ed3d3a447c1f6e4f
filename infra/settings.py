"""Settings of every process: one frozen tree, from a TOML file and the environment.

Order, the later winning: defaults, `<data dir>/penstock.toml` (`penstock up` writes the ports it chose there), the
file named by PENSTOCK_CONFIG, then variables such as PENSTOCK_KAFKA__BOOTSTRAP_SERVERS.
Client properties of Kafka and Redis (TLS, SASL, ACL) pass through untouched. Every listener binds loopback unless
told otherwise; `address` is what clients dial where that differs. A value out of bounds is refused here, by name.
"""

from __future__ import annotations

import os
import tomllib
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from penstock.schemas.topics import LONGEST_POSTING_LIFE, POSTINGS

DEFAULT_DATA_DIR = ".penstock"


class SettingsError(Exception):
    """A setting is wrong: says which, what was given and what is expected."""


def _host_port(value: str) -> str:
    host, _, port = value.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not host or "/" in host or (":" in host and not bracketed) or any(c.isspace() for c in value):
        raise ValueError("expected host:port, such as 127.0.0.1:7101 or [::1]:7101")
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65_536):
        raise ValueError("expected host:port with a port from 1 to 65535")
    return value


def _host_port_or_empty(value: str) -> str:
    return _host_port(value) if value else value


def _host_ports(value: str) -> str:
    for part in value.split(","):
        _host_port(part.strip())
    return value


def _replicas(value: str) -> str:
    parts = [_host_port(part.strip()) for part in value.split("|")]
    if len(set(parts)) < len(parts):
        raise ValueError("expected each replica once")
    return "|".join(parts)


def _url_or_empty(value: str) -> str:
    if value and not value.startswith(("http://", "https://")):
        raise ValueError("expected a URL such as http://127.0.0.1:4318, or nothing")
    return value


def _none_or_a_mebibyte(value: int) -> int:
    if value != 0 and value < 1 << 20:
        raise ValueError(f"expected 0, or at least a mebibyte ({1 << 20})")
    return value


HostPort = Annotated[str, AfterValidator(_host_port)]
HostPortOrEmpty = Annotated[str, AfterValidator(_host_port_or_empty)]
Replicas = Annotated[str, AfterValidator(_replicas)]  # of one shard, separated by |
HostPorts = Annotated[str, AfterValidator(_host_ports)]  # separated by commas
UrlOrEmpty = Annotated[str, AfterValidator(_url_or_empty)]
DeviceBytes = Annotated[int, AfterValidator(_none_or_a_mebibyte)]
Port = Annotated[int, Field(ge=0, le=65_535)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Role(_Section):
    """A role's listener, and what its clients dial."""

    listen: HostPort
    address: HostPortOrEmpty = Field("", description="what clients dial; empty: `listen`")

    @property
    def dial(self) -> str:
        """The address clients use."""
        return self.address or self.listen


class KafkaSettings(_Section):
    bootstrap_servers: HostPorts = "127.0.0.1:9092"
    client: dict[str, str] = Field(default_factory=dict, description="passed through to every Kafka client")
    secrets: dict[str, SecretStr] = Field(default_factory=dict, description="likewise, kept out of logs")
    java: dict[str, SecretStr] = Field(
        default_factory=dict, description="for the jobs alone, which use Kafka's Java client: over all of the above"
    )
    schema_registry: dict[str, str] = Field(default_factory=dict, description="url and credentials; empty: none")
    replication_factor: int = Field(1, ge=1, le=32_767)
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

    def options(self, timeout_s: float) -> dict[str, Any]:
        """What goes beside the URL to redis.from_url, the password included; answers are bytes.

        `timeout_s`: to connect and to answer, where `client` does not say otherwise.
        """
        password = {} if self.password is None else {"password": self.password.get_secret_value()}
        timeouts = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s}
        return {**timeouts, **self.client, **password, "decode_responses": False}


class FlinkSettings(_Section):
    rest: HostPort = "127.0.0.1:8081"
    parallelism: PositiveInt = 1
    checkpoint_interval_ms: int = Field(5_000, ge=10)  # Flink takes no less
    bundle_time_ms: PositiveInt = 20
    bundle_size: PositiveInt = 256
    python: Literal["process", "thread"] = Field(
        "process",
        description="where a job's Python runs that can do either: a process beside the TaskManager, or its JVM, which "
        "wants PYTHONPATH set for the TaskManager, and a new TaskManager for every submission",
    )


class PostingsSettings(_Section):
    """The postings job."""

    max_life_ms: int = Field(
        LONGEST_POSTING_LIFE, gt=0, le=LONGEST_POSTING_LIFE, description="at most what index.update.v1 outlives"
    )
    tombstone_window_ms: int = Field(
        8 * 86_400_000, description="how long a deleted or expired id keeps its version; older events are refused"
    )
    enrich_timeout_ms: PositiveInt = Field(800, description="after this the posting is published without a vector")
    enrich_batch: PositiveInt = 32
    enrich_concurrency: PositiveInt = 2

    @field_validator("tombstone_window_ms")
    @classmethod
    def _outlives_the_topic(cls, value: int) -> int:
        kept = POSTINGS.retention_ms
        if value <= kept:
            raise ValueError(
                f"expected more than {kept}, for which {POSTINGS.name} keeps its records: "
                "else an old event, read again, could bring a deleted posting back"
            )
        return value


class QueriesSettings(_Section):
    """The queries job."""

    analyze_timeout_ms: PositiveInt = 400


class AlertsSettings(_Section):
    """The alerts job."""

    analyze_timeout_ms: PositiveInt = 800
    threshold: float = Field(
        0.60, ge=0, allow_inf_nan=False, description="hybrid score from which a posting matches a subscription's words"
    )
    percolate_batch: PositiveInt = 64
    percolate_timeout_ms: PositiveInt = Field(2_000, description="of one call; it is asked again until answered")
    rank_deadline_ms: PositiveInt = Field(30_000, description="how long a match may wait for the ranker's score")
    digest_deadline_ms: PositiveInt = Field(
        3_600_000, description="likewise, where a digest or quiet hours leave as long until its person is told"
    )
    max_per_day: PositiveInt = Field(100, description="alerts a person gets in a day of their time zone")
    dedupe_ms: PositiveInt = Field(90 * 86_400_000, description="how long an alert without expiry is remembered")


class EnrichSettings(_Role):
    """The slow lane's workers."""

    listen: HostPort = "127.0.0.1:7401"
    group: str = "enrich"
    batch: PositiveInt = 8
    threads: PositiveInt = 1
    device: str = "cpu"
    max_per_s: float = Field(0.0, ge=0, allow_inf_nan=False, description="postings refined a second; 0: no bound")
    idle: bool = Field(True, description="run only when nobody else wants the processor")


class GatewaySettings(_Role):
    """HTTP for people and programs."""

    listen: HostPort = "127.0.0.1:8080"
    api_keys: dict[str, SecretStr] = Field(default_factory=dict, description="tenant -> key; empty: no key is asked")
    max_body_bytes: PositiveInt = 1 << 20
    max_streams: PositiveInt = Field(64, description="alert streams open at once")
    timeout_ms: PositiveInt = Field(5_000, description="how long a search may take")


class TracingSettings(_Section):
    """OpenTelemetry."""

    endpoint: UrlOrEmpty = Field("", description="of an OTLP/HTTP collector; empty: no export")
    sample: float = Field(1.0, ge=0, le=1, description="share of the traces that are exported")


class ModelsSettings(_Role):
    listen: HostPort = "127.0.0.1:7101"
    encoder: str = Field("embedded", description="'embedded', or a Hugging Face encoder directory")
    device: str = "cpu"
    threads: PositiveInt = 1
    max_batch: PositiveInt = 128
    max_queue: PositiveInt = Field(4_096, description="items that may wait for a lane; past it calls are refused")
    summary_tokens: PositiveInt = 96


class RetrievalSettings(_Section):
    listen: HostPort = "127.0.0.1:7201"
    shards: tuple[Replicas, ...] = Field(
        (), description="addresses clients call, one a shard, its replicas separated by |; empty: `listen` alone"
    )
    shard: str = "shard-0"
    partitions: tuple[NonNegativeInt, ...] = Field((), description="of index.update.v1; empty: all of them")
    threads: PositiveInt = 1
    publish_interval_ms: NonNegativeInt = Field(20, description="how long updates gather before an epoch is published")
    snapshot_interval_s: float = Field(30.0, ge=0, allow_inf_nan=False, description="0: at every chance")
    snapshot_bytes_per_s: int = Field(
        64 << 20, gt=0, description="how fast a snapshot is written while the shard serves; the last one does not rest"
    )
    initial_rows: PositiveInt = 16_384
    memory_bytes: PositiveInt | None = Field(
        None, description="what a shard's postings may take; past it updates wait for room; unset: no bound"
    )
    device: Literal["auto", "cpu", "cuda", "interpreter"] = Field(
        "auto",
        description="what answers searches by vector: the processor, a CUDA device, or its kernels in Triton's "
        "interpreter, to look into them; auto: cuda where there is one, else cpu",
    )
    device_bytes: PositiveInt | None = Field(
        None,
        description="what a shard's postings and searches may take of the device; unset: 90 % of what is free at the "
        "start",
    )
    device_planes: Literal["bf16", "int8"] = Field(
        "bf16",
        description="what scans read there of the postings' vectors; int8: about half the bytes, the same answers, and "
        "one plane more: vectors take half as much memory again there",
    )
    hold_epochs_ms: NonNegativeInt = Field(60_000, description="how long a page can be followed at its epoch")
    max_batch: PositiveInt = Field(32, description="searches that one scan answers")
    max_queue: PositiveInt = Field(128, description="searches that may wait for a scan; past it they are refused")
    max_queue_bytes: PositiveInt = Field(64 << 20, description="what they may hold, their answers included; likewise")


class TemplateSettings(_Section):
    """What stands around query and posting in a language model's prompt."""

    before: str
    between: str
    after: str


class RemoteScorerSettings(_Section):
    """A language model behind HTTP: docs/ranker.md has the forms. Checked whole when the ranker starts."""

    url: UrlOrEmpty = Field("", description="what stands before the form's path, such as http://10.0.0.5:8000")
    form: str = Field(
        "rerank", description="sglang-score, sglang-rerank, vllm-score, vllm-rerank, tei, infinity, rerank"
    )
    model: str = Field("", description="sent as the model's name; empty: none is sent")
    scores: Literal["probabilities", "logits"] = Field("probabilities", description="what the server gives")
    labels: tuple[NonNegativeInt, NonNegativeInt] | None = Field(
        None, description="token ids of yes and no, for sglang-score (Qwen3: 9693 and 2152)"
    )
    template: TemplateSettings | None = Field(None, description="unset: the server's own, or ours for sglang-score")
    extra: dict[str, Any] = Field(default_factory=dict, description="sent along with every request")
    api_key: SecretStr | None = Field(None, description="sent as a bearer token")
    max_batch: PositiveInt = Field(32, description="postings in a request")
    connections: PositiveInt = Field(8, description="requests at once")
    timeout_s: float = Field(2.0, gt=0, allow_inf_nan=False, description="for all requests of one ranking")
    connect_s: float = Field(0.5, gt=0, allow_inf_nan=False)
    fair_s: float = Field(
        0.25, ge=0, allow_inf_nan=False, description="a call that had less says nothing of the server"
    )
    start_s: float = Field(30.0, ge=0, allow_inf_nan=False, description="how long it is waited for at the start")
    max_query_chars: PositiveInt = 1_024
    max_item_chars: PositiveInt = 4_096
    retry_share: float = Field(0.1, ge=0, le=1, description="requests made a second time, as a share of all")

    @field_validator("api_key", mode="before")
    @classmethod
    def _none_when_empty(cls, value: Any) -> Any:
        return value or None  # an empty variable is no key


class ShapingSettings(_Section):
    """Who is let into the ranker, in which order, how deep: docs/shaping.md has the contract."""

    depths: tuple[PositiveInt, PositiveInt, PositiveInt] | None = Field(
        None,
        description="candidates that the model scores: the least that still is an answer, the start, the most; unset: "
        "131, 250, 1,000 on a GPU, 16, 32, 64 on a processor",
    )
    weights: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default_factory=dict, description="tenant -> its weight where others wait; 1 where not named"
    )
    burst_ms: PositiveInt = Field(
        500, description="of its fair share, that a tenant may be ahead while a queue is crowded"
    )
    alert_share: float = Field(
        0.08, ge=0.05, le=0.10, description="of the engine, for alerts at least, while any wait and people ask for all"
    )
    late_share: float = Field(
        0.02, gt=0, lt=0.05, description="of the engine, for what could not be promised its own deadline"
    )
    delay_ms: PositiveInt = Field(100, description="predicted for a search that comes, to which the depth is steered")
    batch_ms: PositiveInt = Field(150, description="how long a batch may take that people wait behind")
    standing_ms: PositiveInt = Field(
        250, description="a queue of people that stands for longer is shortened: more than delay_ms"
    )
    interactive_queue_s: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="what may wait, in seconds of the engine at the least depth"
    )
    recommendation_queue_s: float = Field(10.0, gt=0, allow_inf_nan=False, description="likewise")
    alert_queue_s: float = Field(600.0, gt=0, allow_inf_nan=False, description="likewise")
    late_queue_s: float = Field(
        30.0,
        gt=0,
        allow_inf_nan=False,
        description="likewise; past it refused: it waits in Kafka's lines and in streams",
    )

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.depths is not None and list(self.depths) != sorted(self.depths):
            raise ValueError(f"depths are {list(self.depths)}: expected the least, the start and the most, ascending")
        if not self.delay_ms < self.standing_ms < 1_000:
            raise ValueError(
                f"standing_ms is {self.standing_ms}: expected more than delay_ms, which is {self.delay_ms}, else "
                "searches are refused before depth has given way; and less than 1000, CoDel's interval"
            )
        return self


class RankerSettings(_Role):
    listen: HostPort = "127.0.0.1:7301"
    group: str = "ranker"
    threads: PositiveInt = 1
    workers: PositiveInt | None = Field(
        None, description="requests ranked at once; unset: 2, or 8 with a language model, whose forwards they share"
    )
    depth: PositiveInt = 250
    max_depth: PositiveInt = 2_000
    max_queue: PositiveInt = 1_024
    score_cache_ttl_s: PositiveInt = 900
    scorer: Literal["fused", "engine", "transformers", "remote"] = Field(
        "fused", description="fused alone, or fused with a language model for the best: docs/ranker.md"
    )
    model: Path | None = Field(None, description="the model's directory, for engine and transformers")
    dtype: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="what the engine computes in; auto: bf16 on a CUDA device, fp32 elsewhere"
    )
    weights: Literal["auto", "plain", "int8", "fp8"] = Field(
        "plain",
        description="what the engine's products multiply on a device: its dtype, or numbers of one byte, which are "
        "quicker and score a little differently; auto: what was measured there to be quicker and to score alike",
    )
    device: str = Field(
        "cpu",
        pattern=r"^(cpu|cuda(:\d+)?|interpreter)$",
        description="where engine and transformers run the model: cpu, cuda, cuda:1, ...; interpreter: the engine's "
        "kernels in Triton's interpreter, to look into them",
    )
    forward_tokens: PositiveInt = Field(2_048, description="tokens that one forward of the engine takes")
    interactive_tokens: PositiveInt = Field(2_048, description="likewise, where somebody waits for it")
    waiting_tokens: PositiveInt = Field(131_072, description="tokens that may wait for the engine; past it: degraded")
    arena_bytes: PositiveInt = Field(64 << 20, description="what the tokens of postings may take")
    device_arena_bytes: DeviceBytes = Field(
        64 << 20,
        le=4 << 30,
        description="what of the engine's device the tokens of postings may take, so that a forward is sent where they "
        "lie; 0: none; less where less is free. Nothing on a processor",
    )
    device_vector_bytes: DeviceBytes = Field(
        0,
        le=64 << 30,
        description="likewise, where postings are given to the engine as vectors: no scorer gives any yet",
    )
    remote: RemoteScorerSettings = RemoteScorerSettings()
    shaping: ShapingSettings = ShapingSettings()

    @property
    def workers_in_force(self) -> int:
        return self.workers or (2 if self.scorer == "fused" else 8)

    @field_validator("model", mode="before")
    @classmethod
    def _none_when_empty(cls, value: Any) -> Any:
        return value or None  # an empty variable names no directory, and not the one we are in

    @field_validator("scorer", mode="before")
    @classmethod
    def _no_directory(cls, value: Any) -> Any:
        if value not in ("fused", "engine", "transformers", "remote"):
            raise ValueError("expected fused, engine, transformers or remote; a model's directory goes in ranker.model")
        return value

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.depth > self.max_depth:
            raise ValueError(f"depth is {self.depth}: expected at most max_depth, which is {self.max_depth}")
        if self.scorer in ("engine", "transformers") and self.model is None:
            raise ValueError(f"scorer is {self.scorer}: expected the directory of a model in ranker.model")
        if self.scorer == "transformers" and self.device == "interpreter":
            raise ValueError("scorer is transformers and device is interpreter: expected cpu, cuda, cuda:1, ...")
        if self.scorer == "remote" and not self.remote.url:
            raise ValueError("scorer is remote: expected where it is in ranker.remote.url")
        if self.weights in ("int8", "fp8") and (self.scorer != "engine" or self.device == "cpu"):
            raise ValueError(
                f"weights is {self.weights}, scorer {self.scorer} and device {self.device}: expected the engine on a "
                "device, whose kernels multiply such numbers; set scorer to engine and device to cuda, or weights to "
                "auto or plain"
            )
        return self


class MetricsSettings(_Section):
    """Prometheus endpoints; 0 turns one off."""

    host: str = "127.0.0.1"
    models: Port = 0
    retrieval: Port = 0
    ranker: Port = 0
    enrich: Port = 0
    gateway: Port = 0
    flink: int = Field(
        0,
        ge=0,
        le=65_534,
        description="of the local cluster: this port and the next, which JobManager and TaskManager share out. "
        "Flink's reporter knows no host and listens on every interface: so `penstock up` chooses none",
    )


class Settings(BaseSettings):
    """The whole tree."""

    model_config = SettingsConfigDict(env_prefix="PENSTOCK_", env_nested_delimiter="__", frozen=True, extra="forbid")

    data_dir: Path = Path(DEFAULT_DATA_DIR)
    kafka: KafkaSettings = KafkaSettings()
    redis: RedisSettings = RedisSettings()
    flink: FlinkSettings = FlinkSettings()
    postings: PostingsSettings = PostingsSettings()
    queries: QueriesSettings = QueriesSettings()
    alerts: AlertsSettings = AlertsSettings()
    enrich: EnrichSettings = EnrichSettings()
    gateway: GatewaySettings = GatewaySettings()
    tracing: TracingSettings = TracingSettings()
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
        lines = [
            f"{'.'.join(str(part) for part in e['loc'])}: {e['msg'].removeprefix('Value error, ')}, got {e['input']!r}"
            for e in error.errors()
        ]
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
