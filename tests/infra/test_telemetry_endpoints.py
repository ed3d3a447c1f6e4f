"""Where metrics are scraped: the local stack gives every role a loopback port, unless settings name or refuse it."""

import json

import yaml

from penstock.infra import settings as settings_module
from penstock.infra.local import config, ports, provision, scrape
from penstock.infra.local.layout import Layout
from penstock.infra.settings import Settings

CHOSEN = dict.fromkeys(ports.LISTENERS, 12_345)


def test_up_gives_every_role_a_port_and_writes_it_down(tmp_path, monkeypatch, free_port):
    monkeypatch.delenv("PENSTOCK_CONFIG", raising=False)
    layout = Layout.at(tmp_path)
    layout.make()
    mine = free_port()
    layout.settings.write_text(f"[metrics]\nranker = {mine}\nenrich = 0\n")
    chosen = provision.choose_ports(layout, settings_module.load_at(tmp_path))
    metrics = settings_module.load_at(tmp_path).metrics
    assert (metrics.ranker, metrics.enrich) == (mine, 0)
    assert metrics.host == "127.0.0.1"
    for role in ("models", "retrieval", "gateway"):
        assert getattr(metrics, role) == chosen.chosen[f"metrics_{role}"] > 0
    again = settings_module.load_at(tmp_path)
    assert provision.choose_ports(layout, again) == chosen
    assert provision.unchanged_ports(layout, again) == chosen.all


def test_flinks_reporter_is_on_only_where_settings_give_it_ports(tmp_path):
    """It listens on every interface, which nothing of ours does unasked."""
    layout = Layout.at(tmp_path)
    plain = yaml.safe_load(config.flink_config(layout, CHOSEN, Settings(), "/python", []))
    assert not [key for key in plain if key.startswith("metrics.reporter")]
    asked = yaml.safe_load(config.flink_config(layout, CHOSEN, Settings(metrics={"flink": 9249}), "/python", []))
    assert asked["metrics.reporter.prometheus.port"] == "9249-9250"
    assert asked["metrics.reporter.prometheus.factory.class"].endswith(".PrometheusReporterFactory")


def test_prometheus_finds_what_is_on(tmp_path):
    chosen = {"metrics_models": 1_001, "metrics_ranker": 0, "kafka": 9_092}
    found = json.loads(scrape.targets(Settings(metrics={"flink": 9249}), chosen))
    assert found == [
        {"targets": ["127.0.0.1:1001"], "labels": {"role": "models"}},
        {"targets": ["127.0.0.1:9249", "127.0.0.1:9250"], "labels": {"role": "flink"}},
    ]
