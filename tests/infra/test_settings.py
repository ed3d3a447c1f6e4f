"""Settings are refused by name when they are out of bounds, and say where clients dial."""

import pickle
import re

import pytest
from typer.testing import CliRunner

from penstock.infra import settings as module
from penstock.infra.cli.main import app
from penstock.infra.settings import ModelsSettings, RankerSettings, Settings, SettingsError
from penstock.schemas.topics import LONGEST_POSTING_LIFE, POSTINGS


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No variables of this machine's."""
    for name in [name for name in module.os.environ if name.startswith("PENSTOCK_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PENSTOCK_DATA_DIR", str(tmp_path))


@pytest.mark.parametrize("section", [ModelsSettings, RankerSettings])
def test_clients_dial_the_address_and_otherwise_the_listener(section):
    assert section(listen="10.0.0.1:7101").dial == "10.0.0.1:7101"
    assert section(listen="0.0.0.0:7101", address="models.internal:7101").dial == "models.internal:7101"


def test_every_default_is_within_its_own_bounds():
    given = module.load().model_dump(exclude={"data_dir"})
    assert module.load(**given).model_dump(exclude={"data_dir"}) == given


NUMBERS = [
    (section, key)
    for section, field in Settings.model_fields.items()
    if isinstance(field.default, module._Section)
    for key, value in field.default
    if isinstance(value, (int, float))
]


@pytest.mark.parametrize(("section", "key"), NUMBERS)
def test_every_number_has_a_lower_bound(section, key):
    with pytest.raises(SettingsError, match=rf"{section}\.{key}: .*-1"):
        module.load(**{section: {key: -1}})


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("postings", "max_life_ms", LONGEST_POSTING_LIFE + 1),
        ("postings", "tombstone_window_ms", POSTINGS.retention_ms),
        ("metrics", "ranker", 65_536),
        ("retrieval", "snapshot_interval_s", float("inf")),
        ("retrieval", "shards", ("10.0.0.1:7201", "10.0.0.2")),
        ("models", "listen", ""),
        ("models", "address", "7101"),
        ("ranker", "address", "http://ranker:7301"),
        ("ranker", "listen", "::1:7301"),
        ("ranker", "listen", "127.0.0.1:0"),
        ("flink", "rest", "127.0.0.1:65536"),
        ("kafka", "bootstrap_servers", "broker-1:9092,broker-2"),
    ],
)
def test_what_is_out_of_bounds_is_named_with_what_was_given(section, key, value):
    with pytest.raises(SettingsError, match=rf"{section}\.{key}") as error:
        module.load(**{section: {key: value}})
    assert re.search(r"expected|should be", str(error.value))
    assert "Value error" not in str(error.value)


def test_addresses_of_every_shape_pass():
    taken = module.load(
        kafka={"bootstrap_servers": "broker-1:9092, broker-2:9092"},
        models={"listen": "[::]:7101", "address": "[2001:db8::1]:7101"},
        retrieval={"shards": ("shard_a.internal:7201",)},
    )
    assert taken.models.dial == "[2001:db8::1]:7101"


def test_a_default_depth_above_the_deepest_is_refused():
    with pytest.raises(SettingsError, match=r"ranker: depth is 9: expected at most max_depth, which is 5"):
        module.load(ranker={"depth": 9, "max_depth": 5})


def test_what_only_java_reads_stays_out_of_logs_and_travels_with_a_job():
    settings = module.load(kafka={"java": {"ssl.keystore.password": "hush"}})
    assert "hush" not in repr(settings)
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert settings.kafka.properties().keys() == {"bootstrap.servers"}


def test_clients_of_redis_are_made_with_our_timeout_unless_settings_have_their_own_and_always_give_bytes():
    given = {"password": "hush", "client": {"socket_timeout": 9.0, "decode_responses": True, "ssl": True}}
    assert module.load(redis=given).redis.options(0.25) == {
        "socket_timeout": 9.0,
        "socket_connect_timeout": 0.25,
        "ssl": True,
        "password": "hush",
        "decode_responses": False,
    }
    assert "password" not in module.load().redis.options(0.25)


def test_a_search_goes_to_the_address_and_not_to_what_the_ranker_binds(monkeypatch, free_port):
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("PENSTOCK_RANKER__LISTEN", "0.0.0.0:7301")
    monkeypatch.setenv("PENSTOCK_RANKER__ADDRESS", address)
    result = CliRunner().invoke(app, ["search", "nurse"])
    assert result.exit_code == 1 and address in result.stderr and "0.0.0.0" not in result.stderr
