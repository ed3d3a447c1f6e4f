"""Metric names: one prefix, base units, help; and every name that documents and rules speak of is really there."""

import importlib
import re
import subprocess
import sys

import pytest
import yaml
from flink_metrics import Metrics

from penstock.infra.settings import Settings

MODULES = (
    "penstock.infra.gateway.metrics",
    "penstock.infra.gateway.server",
    "penstock.infra.spans",
    "penstock.infra.telemetry",
    "penstock.ranker.backends.remote.scorer",
    "penstock.ranker.engine.device_arena",
    "penstock.ranker.engine.scorer",
    "penstock.ranker.server",
    "penstock.retrieval.encoder.server",
    "penstock.retrieval.enrichment.server",
    "penstock.retrieval.server",
)
SCRIPT = """
import importlib, json, sys
from prometheus_client import REGISTRY
for name in sys.argv[1:]:
    importlib.import_module(name)
told = {f.name: [f.type, f.documentation] for f in REGISTRY.collect()}
print(json.dumps({n: t for n, t in told.items() if not n.startswith(("process_", "python_"))}))
"""
NOT_BASE = re.compile(r"_(ms|millis|milliseconds|us|ns|minutes|hours|days|kb|mb|gb|kilobytes|megabytes|percent)(_|$)")


@pytest.fixture(scope="module")
def registered():
    """Of the roles: name -> (type, help)."""
    import json

    present = [name for name in MODULES if importlib.util.find_spec(name)]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *present], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Context(Metrics):
    """A runtime context that gives state as well."""

    def get_state(self, _descriptor):
        return None

    def add_group(self, name, value=None):
        made = super().add_group(name, value)
        return Context(made._path, made._labels, made._read)


def of_operators():
    from penstock.jobs.operators.analyze import Analyze
    from penstock.jobs.operators.enrich import Enrich
    from penstock.jobs.operators.intake import Intake, check_posting
    from penstock.jobs.operators.keep import Keep
    from penstock.schemas.topics import POSTINGS

    settings, names = Settings(), set()
    for operator in (Intake(POSTINGS, check_posting, settings), Enrich(settings), Analyze(settings), Keep(settings)):
        context = Context()
        operator.open(context)
        names |= {name.split("{")[0] for name in context.values}
    from penstock.jobs.operators import deliver, percolate, scores, subscriptions

    for module in (deliver, percolate, scores):
        names |= {f"penstock_alerts_{name}_total" for name in module.COUNTED}
    return names | {f"penstock_subscriptions_{name}_total" for name in subscriptions.COUNTED}


def test_every_metric_of_the_roles_has_the_prefix_a_base_unit_and_help(registered):
    assert len(registered) > 15
    for name, (kind, told) in registered.items():
        assert name.startswith("penstock_"), name
        assert not NOT_BASE.search(name), name
        assert told.strip(), name
        assert kind in ("counter", "gauge", "histogram"), name
        if kind == "histogram":
            assert name.endswith(("_seconds", "_bytes", "_tokens", "_items")), name
        assert not name.endswith("_rate"), f"{name}: a rate is Prometheus's to compute, a share is a _ratio"


def test_every_number_of_the_jobs_has_the_prefix_and_a_unit():
    names = of_operators()
    assert "penstock_postings_published_total" in names
    for name in names:
        assert re.fullmatch(r"penstock_[a-z0-9_]+(_total|_seconds_bucket)", name), name
        assert not NOT_BASE.search(name), name


def exists(name, registered):
    stem = re.sub(r"_(bucket|count|sum|total)$", "", name)
    return stem in registered or name in registered or name in of_operators() or f"{name}_bucket" in of_operators()


@pytest.mark.parametrize("file", ["docs/telemetry.md", "infra/prometheus/rules.yml"])
def test_every_name_that_is_spoken_of_is_there(file, registered, request):
    text = (request.config.rootpath / file).read_text(encoding="utf-8")
    named = set(re.findall(r"\bpenstock_[a-z0-9_]*[a-z0-9]\b", text))
    assert named
    assert not [name for name in sorted(named) if not exists(name, registered)]


# --- relabelling -----------------------------------------------------------------------------------------------------


def relabelled(labels, rules):
    """As Prometheus does it, of what our rules use. None: dropped."""
    for rule in rules:
        value = ";".join(labels.get(name, "") for name in rule["source_labels"])
        match = re.fullmatch(rule["regex"], value)
        if rule.get("action") == "keep":
            if match is None:
                return None
        elif match is not None:
            labels = labels | {rule["target_label"]: match.expand(rule["replacement"].replace("$", "\\"))}
    return labels


SCOPE = "flink_taskmanager_job_task_operator_"
BUCKET = "penstock_freshness_seconds_bucket"


@pytest.mark.parametrize(
    ("given", "labels", "name", "le"),
    [
        (f"{SCOPE}penstock_postings_published_total", {}, "penstock_postings_published_total", None),
        (f"{SCOPE}topic_penstock_intake_refused_total", {}, "penstock_intake_refused_total", None),
        (f"{SCOPE}until_le_{BUCKET}", {"le": "0_5"}, BUCKET, "0.5"),
        (f"{SCOPE}until_le_{BUCKET}", {"le": "30"}, BUCKET, "30"),
        (
            f"{SCOPE}until_le_penstock_freshness_seconds_bucket",
            {"le": "inf"},
            "penstock_freshness_seconds_bucket",
            "+Inf",
        ),
        ("penstock_stage_seconds_bucket", {"le": "0.5"}, "penstock_stage_seconds_bucket", "0.5"),
        (f"{SCOPE}pendingRecords", {}, f"{SCOPE}pendingRecords", None),
        ("flink_taskmanager_job_task_numBuffersOut", {}, None, None),
    ],
)
def test_what_flink_reports_arrives_under_our_names(given, labels, name, le, request):
    config = yaml.safe_load((request.config.rootpath / "infra/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    [scrape] = config["scrape_configs"]
    found = relabelled({"__name__": given, **labels}, scrape["metric_relabel_configs"])
    assert (None if found is None else found["__name__"]) == name
    assert (found or {}).get("le") == le
