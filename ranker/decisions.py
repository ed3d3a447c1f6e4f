"""A shaper whose every decision is a metric, with its class and its reason.

The decisions stay pure (ranker/shaping); what counts them stands around. A request that waits in a stream or in a line
of Kafka's is offered again and again: it is `refused` once, and each further time it `waits`. How requests end is
counted where they end (ranker/service.py).

Owner: whoever owns the shaper inside; not safe for threads, as that is not.
"""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import Counter, Histogram

from penstock.ranker.shaping.work import Admission, Admitted, Batch, Deferred, Shaper, State, Wait, Why, Work

DECISIONS = Counter(
    "penstock_shaping_decisions_total", "What was decided of requests that came", ["class", "decision", "reason"]
)
DEPTHS = Counter("penstock_shaping_depths_total", "Requests by what bound their depth", ["class", "reason"])
DEPTH = Histogram(
    "penstock_shaping_depth_items",
    "How deep requests were let rank",
    ["class"],
    buckets=(8, 16, 24, 32, 48, 64, 131, 250, 500, 1_000, 2_000),
)


@dataclass(frozen=True, slots=True)
class Counted:
    """The same shaper."""

    inside: Shaper

    def offer(self, work: Work, now_s: float) -> Admission:
        admission = self.inside.offer(work, now_s)
        if isinstance(admission, Admitted):
            decision = "admitted"
        else:
            not_in = "waits" if work.again else "refused"
            decision = "deferred" if isinstance(admission, Deferred) else not_in
        DECISIONS.labels(work.class_.value, decision, admission.reason.value).inc()
        return admission

    def batch(self, now_s: float, budget_tokens: float) -> Batch | Wait:
        found = self.inside.batch(now_s, budget_tokens)
        if isinstance(found, Batch):
            for part in found.parts:
                DEPTHS.labels(part.work.class_.value, part.reason.value).inc()
                DEPTH.labels(part.work.class_.value).observe(part.depth)
            for work in found.expired:
                DECISIONS.labels(work.class_.value, "expired", Why.LATE.value).inc()
        return found

    def done(self, batch: Batch, now_s: float, seconds: float) -> None:
        self.inside.done(batch, now_s, seconds)

    def withdraw(self, number: int) -> bool:
        return self.inside.withdraw(number)

    def state(self, now_s: float) -> State:
        return self.inside.state(now_s)
