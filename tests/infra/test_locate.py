"""Which variables name a system of somebody's own, and which only say how a part works."""

import os

import pytest

from penstock.infra.locate import configured_elsewhere, stack_runs


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in [name for name in os.environ if name.startswith("PENSTOCK_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    "name",
    [
        "PENSTOCK_CONFIG",
        "PENSTOCK_KAFKA__BOOTSTRAP_SERVERS",
        "PENSTOCK_KAFKA__CLIENT",
        "PENSTOCK_REDIS__URL",
        "PENSTOCK_RETRIEVAL__SHARDS",
        "PENSTOCK_RETRIEVAL__LISTEN",
        "PENSTOCK_RANKER__ADDRESS",
        "PENSTOCK_RANKER__LISTEN",
    ],
)
def test_an_address_names_a_system(monkeypatch, name):
    assert not configured_elsewhere()
    monkeypatch.setenv(name, "127.0.0.1:1")
    assert configured_elsewhere()


@pytest.mark.parametrize(
    "name",
    [
        "PENSTOCK_DATA_DIR",
        "PENSTOCK_DEBUG",
        "PENSTOCK_RANKER__SCORER",
        "PENSTOCK_RANKER__MODEL",
        "PENSTOCK_RANKER__REMOTE__URL",
        "PENSTOCK_RANKER__SHAPING__DELAY_MS",
        "PENSTOCK_RETRIEVAL__THREADS",
        "PENSTOCK_REDIS__PASSWORD",
        "PENSTOCK_REDIS__PREFIX",
    ],
)
def test_how_a_part_works_names_no_system(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert not configured_elsewhere()


def test_a_directory_without_a_stack_has_none_running(tmp_path):
    assert not stack_runs(tmp_path)
    assert not stack_runs(tmp_path / "gone")
