"""The running system tells of itself: what Prometheus scrapes, what Flink shows of the jobs, what `top` makes of it."""

import re
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families
from system import eventually, posting

from penstock.infra.top import stages
from penstock.infra.top.sources import Sources
from penstock.schemas import topics

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ROLES = ("models", "retrieval", "ranker", "enrich", "gateway")
OURS = re.compile(r"penstock_[a-z0-9_]+")


def scraped(system, role):
    metrics = system.settings.metrics
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{metrics.host}:{getattr(metrics, role)}/metrics", timeout=10) as reply:
        return list(text_string_to_metric_families(reply.read().decode()))


@pytest.fixture
def sources(system):
    looking = Sources(system.settings)
    yield looking
    looking.close()


@pytest.fixture(scope="module")
def published(system):
    """A posting with a trace that is searchable, and one that was refused."""
    made = posting(system.new_id("seen"), trace=TRACE)
    system.publish(topics.POSTINGS, made)
    system.publish_raw(topics.POSTINGS, [("poison", b"\xc3\x01 no posting")])
    system.row(made.posting_id, version=1)
    system.search("veterinary nurse")
    return made


@pytest.mark.parametrize("role", ROLES)
def test_every_role_is_scraped_under_one_prefix_with_help(system, published, role):
    ours = [family for family in scraped(system, role) if not family.name.startswith(("process_", "python_"))]
    assert ours
    for family in ours:
        assert OURS.fullmatch(family.name), family.name
        assert family.documentation, family.name
        if family.type == "histogram":
            assert family.name.endswith(("_seconds", "_bytes", "_tokens", "_items"))


def test_freshness_is_observed_where_postings_become_searchable(system, published):
    [freshness] = [family for family in scraped(system, "retrieval") if family.name == "penstock_freshness_seconds"]
    counts = {s.labels["until"]: s.value for s in freshness.samples if s.name.endswith("_count")}
    assert counts["searchable"] >= 1


def test_the_jobs_show_what_they_took_and_how_fresh_it_was(system, published, sources):
    def told():
        jobs = sources.look().metrics.get("postings")
        if jobs is None or not jobs.total("penstock_intake_accepted_total", topic="jobs_posting_v1"):
            return None
        seen = jobs.buckets("penstock_freshness_seconds", until="enriched").get(float("inf"))
        return jobs if seen and jobs.total("penstock_intake_refused_total") else None

    jobs = eventually(told, "the postings job's numbers at Flink's REST interface", timeout=180)
    assert jobs.total("penstock_postings_published_total") >= 1
    assert jobs.total("penstock_postings_enrichments_made_total") is not None


def test_top_knows_every_stage_of_a_running_system(system, published, sources):
    def all_there():
        before = sources.look()
        now = sources.look()
        rows = stages.rows(system.settings, before, now)
        return rows if not [row for row in rows if row.trouble] and all(row.rate is not None for row in rows) else None

    rows = {row.stage: row for row in eventually(all_there, "every stage of top without trouble")}
    assert rows["retrieval"].rss_bytes > 50_000_000
    assert rows["ranker"].errors is not None
    assert rows["postings"].lag is not None


def test_the_producers_trace_reaches_the_index(system, published):
    assert system.row(published.posting_id, version=1).update.trace == TRACE
