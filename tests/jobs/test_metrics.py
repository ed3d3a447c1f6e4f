"""What the operators count, by the names that Prometheus shows."""

from flink_metrics import Metrics
from hypothesis import given
from hypothesis import strategies as st

from penstock.jobs.operators.metrics import BOUNDS, Freshness, counters


def test_counters_are_named_by_subject_and_unit():
    metrics = Metrics()
    counted = counters(metrics, "intake", ("accepted", "refused"), topic="jobs.posting.v1")
    counted["accepted"].inc()
    counted["accepted"].inc(2)
    assert metrics.values == {
        'penstock_intake_accepted_total{topic="jobs_posting_v1"}': 3,
        'penstock_intake_refused_total{topic="jobs_posting_v1"}': 0,
    }


@given(st.lists(st.integers(-1_000, 400_000), max_size=30))
def test_freshness_is_a_histogram_of_cumulative_buckets(delays):
    metrics = Metrics()
    freshness = Freshness(metrics, "enriched")
    for delay in delays:
        freshness.observe(1_000_000, 1_000_000 + delay)
    read = metrics.values
    for bound in BOUNDS:
        name = f'penstock_freshness_seconds_bucket{{until="enriched",le="{bound:g}"}}'.replace(".", "_")
        assert read[name] == sum(max(0, delay) / 1000 <= bound for delay in delays)
    assert read['penstock_freshness_seconds_bucket{until="enriched",le="inf"}'] == len(delays)


class InJvm:
    """A metric group as Flink's embedded Python has it: gauges there are read by a thread that is not Python's."""

    def __init__(self):
        self.counted = []

    def add_group(self, name, extra=None):
        return self

    def counter(self, name):
        self.counted.append(name)
        return self

    def inc(self, n=1):
        self.counted.append(n)


InJvm.__module__ = "pyflink.fn_execution.metrics.embedded.metric_impl"


def test_in_the_jvm_numbers_are_counters_of_flinks():
    group = InJvm()
    counters(group, "postings", ("published",))["published"].inc(2)
    assert group.counted == ["postings_published_total", 2]
