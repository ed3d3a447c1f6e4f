"""The role over gRPC: real listener, real Redis, the shipped scorer; models and retrieval on listeners of their own.

Kafka is away throughout: the loops that need it wait for it, and nobody who calls over gRPC notices.
"""

import gc
import time

import grpc
import numpy as np
import pytest
from prometheus_client import REGISTRY
from qwen3_directory import make_directory
from ranker_stack import Stack, ask, status

from penstock.infra.settings import ShapingSettings
from penstock.ranker.errors import DeadlinePassed
from penstock.ranker.known_answer import CHECK_EVERY_MS, CHECK_S, KnownAnswer
from penstock.ranker.scoring import Scorers
from penstock.ranker.shaping.work import Why
from penstock.schemas import grpc_avro
from penstock.schemas.events import Page
from penstock.schemas.grpc_avro import CallError
from penstock.schemas.rpc import Ranker


def test_a_search_over_grpc_and_what_the_role_says_of_itself(redis_url, free_port, until):
    with Stack(redis_url, free_port) as stack:
        until(lambda: status(stack))
        result = stack.client.rank(ask(), 10)
        assert [item.posting_id for item in result.items] == ["p0", "p1", "p2"]
        assert result.model_id.startswith("fused:")
        assert sum(result.items[0].parts.values()) == pytest.approx(
            np.log(result.items[0].score / (1 - result.items[0].score))
        )
        assert stack.client.rank(ask(), 10).cache_hits == 3
        told = until(lambda: (now := status(stack)) and now.numbers["served_total"] == 2 and now)
        assert told.ready and told.reason == ""
        assert told.numbers["cache_hit_rate"] == 0.5
        assert (told.numbers["redis_up"], told.numbers["queue_depth"], told.numbers["known_answer_ok"]) == (1, 0, 1)
        assert (told.numbers["queue_interactive"], told.numbers["admitted_interactive_total"]) == (0, 2)
        assert told.numbers["cost_token_seconds"] > 0 and told.texts["depth_reason"] in set(Why)
        depth = REGISTRY.get_sample_value("penstock_shaping_depth", {"reason": told.texts["depth_reason"]})
        assert depth == pytest.approx(told.numbers["shaping_depth"], rel=0.5)
        admitted = {"class": "INTERACTIVE", "decision": "admitted", "reason": "fits"}
        assert REGISTRY.get_sample_value("penstock_shaping_decisions_total", admitted) >= 2
        stack.retrieval.stop(0).wait(10)
        told = until(lambda: (now := status(stack)) and not now.ready and now)
        assert "no retrieval shard ready" in told.reason
        with pytest.raises(CallError, match="retrieve: CallError") as caught:
            stack.client.rank(ask(), 10)
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE


def test_bad_full_late_and_gone_callers_each_get_their_own_answer(redis_url, free_port, until):
    with Stack(redis_url, free_port, workers=1, max_queue=1) as stack:
        until(lambda: status(stack))
        with pytest.raises(CallError, match=r"page\.size: got 0") as caught:
            stack.client.rank(ask(page=Page(size=0)), 10)
        assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(CallError, match="deadline passed before ranking began") as caught:
            stack.client.rank(ask(deadline=5), 10)
        assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED

        stack.hold.clear()
        while stack.entered.acquire(blocking=False):
            pass
        channel = grpc_avro.Client(stack.settings.ranker.listen)
        busy = channel.start(Ranker.RANK, ask("busy"), 20)
        assert stack.entered.acquire(timeout=20)
        stands_in = channel.start(Ranker.RANK, ask("stands in", "another nurse"), 20)
        assert stack.entered.acquire(timeout=20)  # in the lane of the one that is stuck
        waits = channel.start(Ranker.RANK, ask("waits"), 20)
        until(lambda: status(stack).numbers["queue_depth"] == 1)
        with pytest.raises(
            CallError, match=r"not let in \(queue\): the ranker is full; ask again in 1\.00 s"
        ) as caught:
            stack.client.rank(ask("refused"), 10)
        assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        waits.cancel()
        until(lambda: status(stack).numbers["queue_depth"] == 0)
        stack.hold.set()
        assert [one.result().request_id for one in (busy, stands_in)] == ["busy", "stands in"]
        told = status(stack)
        assert (told.numbers["left_total"], told.numbers["refused_total"], told.numbers["expired_total"]) == (1, 1, 1)
        channel.close()


def test_with_the_engine_the_best_are_read_by_the_model_and_what_goes_where_is_told(
    redis_url, free_port, until, tmp_path
):
    model = make_directory(tmp_path)
    with Stack(redis_url, free_port, scorer="engine", model=model, shaping=ShapingSettings(depths=(2, 2, 2))) as stack:
        until(lambda: status(stack))
        assert gc.get_freeze_count() > 0
        result = stack.client.rank(ask(), 10)
        assert result.lm_scored == 2
        assert "+engine-fp32:" in result.model_id
        assert {"lm", "lm_tokenise", "lm_queue", "lm_pack", "lm_forward", "lm_reply"} <= result.timings.keys()
        assert [("yes_no" in item.parts) for item in result.items] == [True, True, False]
        again = stack.client.rank(ask(), 10)
        assert again.cache_hits == 5
        assert [item.posting_id for item in again.items] == [item.posting_id for item in result.items]
        told = status(stack)
        assert told.ready and told.texts["language_model"] == "well"
        assert told.numbers["engine_forwards_total"] >= 1 and told.numbers["arena_items"] >= 2


def test_without_redis_the_role_answers_and_says_so(redis_server, free_port, until):
    redis_server.stop()
    with Stack(redis_server.url, free_port) as stack:
        until(lambda: status(stack))
        result = stack.client.rank(ask(), 10)
        assert len(result.items) == 3
        assert [reason.split(":")[0] for reason in result.degraded] == ["score cache", "feature store"]
        told = status(stack)
        assert told.ready and told.numbers["redis_up"] == 0


# --- the known answer ----------------------------------------------------------------------------------------------


class Fickle:
    model_id, part_names, tolerance = "fickle", (), 1e-6

    def __init__(self):
        self.p, self.asked, self.error = 0.5, 0, None

    def score(self, query, items, caller=None):
        from penstock.ranker.backends.scorer import Scores

        self.asked, self.caller = self.asked + 1, caller
        if self.error is not None:
            raise self.error
        return Scores(np.full(len(items), self.p), np.zeros((len(items), 0)))


def test_a_scorer_is_only_asked_when_idle_and_a_changed_answer_is_seen():
    scorer, now = Fickle(), [0]
    known = KnownAnswer(Scorers(scorer), lambda: now[0])
    now[0] = 5 * CHECK_EVERY_MS
    scorer.p = 0.6
    assert known.verdict(idle_ms=0).ok and scorer.asked == 1
    assert "a known pair scores 0.6 by fickle, at the start it scored 0.5" in known.verdict(CHECK_EVERY_MS).reason
    assert not known.verdict(CHECK_EVERY_MS).ok and scorer.asked == 2
    now[0] += CHECK_EVERY_MS
    scorer.p = float("nan")
    assert "NonFiniteScore" in known.verdict(CHECK_EVERY_MS).reason
    now[0] += CHECK_EVERY_MS
    scorer.p = 0.5
    assert known.verdict(CHECK_EVERY_MS).ok


def test_a_scorer_that_is_busy_is_not_waited_for_and_not_ill():
    scorer, now = Fickle(), [0]
    known = KnownAnswer(Scorers(scorer), lambda: now[0])
    now[0] += CHECK_EVERY_MS
    scorer.error = DeadlinePassed("its forward", late_ms=1)
    began = time.monotonic()
    assert known.verdict(CHECK_EVERY_MS).ok and scorer.asked == 2
    assert began + CHECK_S <= scorer.caller.deadline_s <= time.monotonic() + CHECK_S
