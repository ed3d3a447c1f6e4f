"""The retrieval role over real gRPC, its log in memory: start, follow, restart, trouble, and every refusal by name."""

import socket
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import grpc
import pytest
from index_log import IndexLog, LetterBox
from prometheus_client import REGISTRY
from standing_inputs import ended, standing
from store_inputs import gone, query, upsert, vector
from store_oracle import Oracle, shown
from waiting import eventually

from penstock.infra.settings import RetrievalSettings, Settings
from penstock.retrieval import kinds, server
from penstock.retrieval.batching import Cost, ScanTimes
from penstock.retrieval.client import MIN_VERSION_TIMED_OUT, RetrievalClient
from penstock.retrieval.follower import Lag
from penstock.retrieval.shard import Shard
from penstock.retrieval.store.reading import MAX_K
from penstock.retrieval.store.records import Ask
from penstock.retrieval.store.store import Store
from penstock.schemas import filters
from penstock.schemas.errors import InvalidRecord
from penstock.schemas.events import IndexOp, IndexUpdate, MinVersion
from penstock.schemas.filters import is_in
from penstock.schemas.grpc_avro import CallError
from penstock.schemas.rpc import (
    ExplainRequest,
    GetRequest,
    HoldsRequest,
    PercolateRequest,
    Retrieval,
    RowState,
    SearchRequest,
    StandingRequest,
)

ROWS = [vector([float(i), 1.0, 0.5, 0.0, -1.0, 2.0], [i] * 16) for i in range(8)]
ASKED = query([0.5, 1.0, 0.0, 0.0, 0.0, 0.0], [0.01] * 16)
CALL_S = 10.0


class Role:
    """A served shard and a client of it; `stop` ends it well, `crash` without its last snapshot."""

    def __init__(self, log, queries, folder, port, **settings):
        own = {"listen": f"127.0.0.1:{port}", "initial_rows": 4, "publish_interval_ms": 5, **settings}
        self.letters, self.query_letters = LetterBox(), LetterBox()
        self.stopping = threading.Event()
        self.settings = Settings(data_dir=folder, retrieval=RetrievalSettings(**own))
        self.failed = []
        self.thread = threading.Thread(target=self._serve, args=(log, queries))
        self.thread.start()
        self.client = RetrievalClient([own["listen"]])

    def _serve(self, log, queries):
        try:
            logs = server.Log(log, self.letters), server.Log(queries, self.query_letters)
            server.serve_from(*logs, self.settings, self.stopping)
        except Exception as error:
            self.failed.append(error)

    def status(self):
        return self.client.status(CALL_S)[0]

    def ready(self):
        eventually(lambda: self.status().ready, f"ready ({self.status().reason})")
        return self

    def search(self, vector_=ASKED, tree=None, k=50, **more):
        return self.client.search(SearchRequest(vector=vector_, filters=tree, k=k, **more), CALL_S)

    def ids(self, **more):
        return sorted(hit.posting_id for hit in self.search(None, **more).hits)

    def get(self, *ids, **more):
        return self.client.get(GetRequest(posting_ids=ids, **more), CALL_S)

    def has(self, posting_id, version):
        reply = self.get(posting_id, min_version=MinVersion(posting_id=posting_id, version=version), timeout_ms=9_000)
        assert reply.degraded == ()
        return reply.rows[0]

    def stop(self):
        self.client.close()
        self.stopping.set()
        self.thread.join(30)
        assert not self.thread.is_alive()

    def crash(self, monkeypatch):
        with monkeypatch.context() as patched:
            patched.setattr("penstock.retrieval.shard.Shard._finish", lambda self: None)
            self.stop()


@pytest.fixture
def log():
    return IndexLog()


@pytest.fixture
def queries():
    """alerts.query.v1."""
    return IndexLog(log_id="cluster/queries")


@pytest.fixture
def start(log, queries, tmp_path, free_port):
    roles = []

    def make(log=log, **settings):
        roles.append(Role(log, queries, tmp_path, free_port(), **settings))
        return roles[-1]

    yield make
    for role in roles:
        role.stop()
        assert role.failed == []


def test_what_is_published_is_searched_exactly(log, start):
    before = [upsert(f"p{i}", vector=ROWS[i], company=f"c{i % 3}") for i in range(5)]
    log.publish(*before)
    role = start().ready()
    after = [upsert(f"q{i}", vector=ROWS[i], company="c1") for i in range(4)] + [gone("p0", 2)]
    log.publish(*after)
    role.has("p0", 2), role.has("q3", 1)
    oracle = Oracle([*before, *after])
    for vector_ in (ASKED, None):
        for tree in (None, is_in("company", "C1")):
            reply = role.search(vector_, tree)
            assert shown(reply) == oracle.search(vector_, tree, 50, now_ms=0)
            assert (reply.shard, reply.degraded) == ("shard-0", ())
    rows = role.get("p0", "p1", "nobody").rows
    assert [row.state for row in rows] == ["DELETED", "LIVE", "ABSENT"]
    assert rows[1].update == before[1]
    assert rows[1].searchable_at <= time.time() * 1000
    clauses = (is_in("company", "c0"), is_in("company", "c9"))
    assert role.client.holds(HoldsRequest(clauses=clauses), CALL_S).held == (True, False)


@pytest.mark.interpreter
def test_a_shard_on_a_device_answers_the_same_before_and_after_a_restart(log, start):
    """In the interpreter, which is slow: its searches may take a while beside the one whose answer is known."""
    before = [upsert(f"p{i}", vector=ROWS[i], company=f"c{i % 3}") for i in range(5)]
    log.publish(*before)
    for life in range(2):
        role = start(device="interpreter", initial_rows=1).ready()
        status = role.status()
        assert (status.texts["device"], status.numbers["device_bytes"] > 0) == ("interpreter", True)
        for tree in (None, is_in("company", "C1")):
            assert shown(role.search(ASKED, tree)) == Oracle(before).search(ASKED, tree, 50, now_ms=0)
        role.stop()
        assert life == 0 or status.texts["snapshot"]
    assert REGISTRY.get_sample_value("penstock_search_plans_total", {"plan": "device scan"}) >= 2


def test_status_tells_what_is_there(log, start):
    log.publish(upsert("p", vector=ROWS[1]), upsert("q"), gone("r", 1), gone("r", 1))
    role = start().ready()
    status = eventually(lambda: (s := role.status()).numbers["rows"] == 2 and s, "the view is renewed")
    expected = {"rows": 2, "tombstones": 1, "rows_without_vector": 1, "stale_updates": 1, "lag_offsets": 0}
    assert {name: status.numbers[name] for name in expected} == expected
    assert status.numbers["lag_seconds"] == 0 and status.numbers["memory_bytes"] > 0
    assert (status.role, status.texts["shard"], status.texts["space_id"]) == ("retrieval", "shard-0", "space-1")


def test_nothing_is_answered_before_the_log_has_been_read(log, start):
    log.publish(upsert("p"))
    log.away = "no broker at nowhere:9092"
    role = start()
    status = eventually(lambda: (s := role.status()).reason.startswith("waiting for the log") and s, "waits")
    assert not status.ready and "nowhere" in status.reason
    with pytest.raises(CallError, match="nowhere") as error:
        role.search()
    assert error.value.retryable
    log.away = ""
    assert role.ready().ids() == ["p"]


def test_records_that_are_no_updates_become_dead_letters_and_hold_nothing_up(log, start):
    log.append(b"garbage")
    log.append(None)
    log.publish(IndexUpdate(posting_id="x", version=1, op=IndexOp.UPSERT, produced_at=0), partition=0)
    log.publish(upsert("p"), partition=0)
    role = start().ready()
    assert role.ids() == ["p"]
    found = [(record.offset, record.value, type(error).__name__) for record, error in role.letters.letters]
    assert [(offset, name) for offset, _, name in found] == [
        (0, "MalformedRecord"),
        (1, "MalformedRecord"),
        (2, "InvalidRecord"),
    ]
    assert found[0][1] == b"garbage"
    assert eventually(lambda: role.status().numbers["updates_refused"] == 3, "they are counted")


def test_a_restart_goes_on_where_the_snapshot_ends(log, start):
    log.publish(upsert("p", vector=ROWS[1]), upsert("pp", vector=ROWS[2]), gone("q", 3))
    first = start().ready()
    seen = first.get("p", "pp", "q").rows
    first.stop()
    log.publish(upsert("ppp"))
    second = start().ready()
    assert log.opened[-1] == {0: 1, 1: 2}
    assert second.get("p", "pp", "q").rows == seen  # searchable_at too
    assert second.ids() == ["p", "pp", "ppp"]
    assert second.search().epoch > 0


def test_epochs_of_one_life_are_never_those_of_another(log, start, monkeypatch):
    log.publish(upsert("p"))
    first = start().ready()
    epoch = first.search(None).epoch
    first.crash(monkeypatch)
    second = start().ready()
    assert second.search(None).epoch > epoch
    with pytest.raises(CallError, match="at_epoch") as error:
        second.search(None, at_epoch=epoch)
    assert error.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_epochs_of_replicas_that_began_together_are_not_mistaken(log, tmp_path):
    """A minute's epochs, one every 20 ms, of two that began five milliseconds apart."""
    own = Settings(data_dir=tmp_path)
    kind = kinds.postings(own, kinds.lexicon_of(own), None)
    first, second = (
        Shard(own.retrieval, tmp_path / name, log, LetterBox(), kind, lambda at=at: at).store
        for name, at in (("a", 1_700_000_000_000), ("b", 1_700_000_000_005))
    )
    held = own.retrieval.hold_epochs_ms // own.retrieval.publish_interval_ms
    assert held == 3_000 and second.epoch - first.epoch > held


def test_after_a_crash_the_log_heals_what_the_snapshot_lacks(log, start, monkeypatch):
    log.publish(upsert("p", 1), upsert("q", 1))
    first = start(snapshot_interval_s=0.0).ready()
    eventually(lambda: first.status().texts["snapshot"], "a snapshot while serving")
    log.publish(upsert("p", 2), gone("q", 2))
    first.has("q", 2)
    first.crash(monkeypatch)
    second = start().ready()
    assert [row.update.version for row in second.get("p", "q").rows] == [2, 2]
    assert second.ids() == ["p"]


def test_a_damaged_snapshot_is_named_and_the_log_is_read_again(log, start, tmp_path):
    log.publish(upsert("p"))
    start().ready().stop()
    (path,) = (tmp_path / "retrieval" / "shard-0").glob("snapshot-*.penstock")
    path.write_bytes(path.read_bytes()[:-20])
    role = start().ready()
    assert role.ids() == ["p"]
    assert log.opened[-1] == {0: None, 1: None}
    assert path.name in role.status().texts["problems"]


def test_a_snapshot_with_records_that_this_release_refuses_is_named_and_the_log_is_read_again(
    log, queries, start, monkeypatch
):
    from penstock.retrieval.percolate import store

    queries.publish(standing("s"), standing("t"))
    start().ready().stop()
    honest = store.draft_of

    def stricter(query, *more):
        if query.subscription_id == "t":
            raise InvalidRecord("filters", "...", "what a newer release allows")
        return honest(query, *more)

    monkeypatch.setattr(store, "draft_of", stricter)
    role = start().ready()
    assert in_force(role, "s", "t") == (True, False)
    assert "this release refuses: filters" in role.status().texts["standing_problems"]
    assert len(role.query_letters.letters) == 1


@pytest.mark.parametrize("change", ["new log", "more partitions", "shorter log"])
def test_a_snapshot_of_another_log_is_not_used(log, start, change):
    log.publish(*(upsert(f"p{i}") for i in range(4)), partition=0)
    start().ready().stop()
    other = {
        "new log": IndexLog(2, "cluster/another"),
        "more partitions": IndexLog(3),
        "shorter log": IndexLog(2),
    }[change]
    other.publish(upsert("new"), partition=1)
    role = start(other).ready()
    assert role.ids() == ["new"]
    assert "full replay" in role.status().texts["problems"]


def test_a_failing_loop_starts_again_and_loses_nothing(log, start):
    role = start().ready()
    log.fault = RuntimeError("a fault nobody thought of")
    log.publish(upsert("p"))
    # Until the loop has started again answers say that they are stale.
    eventually(lambda: role.get("p").rows[0].state is RowState.LIVE, "p is searchable")
    assert role.ready().ids() == ["p"]


def test_a_broker_long_away_is_said_and_the_last_state_still_answered(log, start):
    log.publish(upsert("p"))
    role = start().ready()
    log.quiet = "no Kafka broker for 11 s"
    status = eventually(lambda: not (s := role.status()).ready and s, "unready")
    assert status.reason == log.quiet
    reply = role.search(None)
    assert [hit.posting_id for hit in reply.hits] == ["p"]
    assert reply.degraded == (f"stale: {log.quiet}",)
    log.quiet = ""
    role.ready()


def test_a_caller_that_left_waits_for_no_version(log, start, monkeypatch):
    monkeypatch.setattr(server, "WAITERS", 1)
    role = start().ready()
    [client] = role.client._shards[0].clients
    wanted = MinVersion(posting_id="p", version=2)
    calls = []

    def another():
        try:
            return role.get("p", min_version=wanted, timeout_ms=1).degraded
        except CallError as error:
            assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            return str(error)

    def has_the_place():
        if not calls or calls[-1].done():  # refused while the other had the place
            request = GetRequest(posting_ids=("p",), min_version=wanted, timeout_ms=600_000)
            calls.append(client.start(Retrieval.GET, request, 600.0))
        return "wait for a version already" in another()

    eventually(has_the_place, "the first has the only place")
    calls[-1].cancel()
    eventually(lambda: another() == (MIN_VERSION_TIMED_OUT,), "the place is free")


def test_a_call_whose_deadline_comes_before_a_place_to_scan_costs_nothing(still, monkeypatch):
    role, held, first = still()
    called = []
    monkeypatch.setattr(Store, "explain", lambda *args, **more: called.append("explain"))
    monkeypatch.setattr(Store, "holds", lambda *args, **more: called.append("holds"))
    for ask, request in (
        (role.client.explain, ExplainRequest(filters=is_in("company", "c1"))),
        (role.client.holds, HoldsRequest(clauses=(is_in("company", "c1"),))),
    ):
        with pytest.raises(CallError) as error:
            ask(request, 0.1)
        assert error.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    held.open.set()
    first[0].join(20)
    assert role.search().total == 6
    assert called == []


class Caller:
    """A call's context: so many seconds left, there or gone."""

    def __init__(self, left, there=True):
        self.left, self.there = left, there

    def time_remaining(self):
        return self.left

    def is_active(self):
        return self.there


def test_a_place_to_scan_is_waited_for_until_the_deadline_and_given_back():
    shard = SimpleNamespace(store=Store())
    service = server.RetrievalService(shard, shard, "shard-9", 1)
    try:
        late = pytest.raises(TimeoutError, match="shard-9: the deadline came")
        with service._place(Caller(None)), late, service._place(Caller(0.01)):
            pass
        with pytest.raises(TimeoutError, match="nobody waits"), service._place(Caller(None, there=False)):
            pass
        with service._place(Caller(1.0)):
            pass
    finally:
        service.close()


def test_reading_your_writes_waits_or_says_it_did_not(log, start):
    role = start().ready()
    wanted = MinVersion(posting_id="p", version=2)
    late = role.search(None, min_version=wanted, timeout_ms=50)
    assert (late.total, late.degraded) == (0, (MIN_VERSION_TIMED_OUT,))
    waiting = []
    thread = threading.Thread(target=lambda: waiting.append(role.search(None, min_version=wanted, timeout_ms=9_000)))
    thread.start()
    log.publish(upsert("p", 1))
    log.publish(upsert("p", 2))
    thread.join(20)
    assert [(hit.version, waiting[0].degraded) for hit in waiting[0].hits] == [(2, ())]


COMPANY = is_in("company", "x")
PAY = filters.in_range("salary.annual_min", 1.0, None)
WRONG = [
    (SearchRequest(k=0), "k: got 0"),
    (SearchRequest(k=-1), "k: got -1"),
    (SearchRequest(k=MAX_K + 1), f"k: got {MAX_K + 1}, expected 1 to {MAX_K}"),
    (SearchRequest(at_epoch=5), "at_epoch: got 5"),
    (SearchRequest(vector=query([1.0] * 6, space="other")), "vector.space_id: got 'other'"),
    (SearchRequest(vector=query([1.0] * 5)), "vector.dense: got '5 values'"),
    (SearchRequest(vector=query([1.0] * 6, [1.0] * 15)), "vector.lexical: got '15 values'"),
    (SearchRequest(vector=replace(query([1.0] * 6), dense=b"123")), "vector.dense: got '3 bytes'"),
    (SearchRequest(vector=query([float("nan")] * 6)), "vector.dense: got 'a value that is not finite'"),
    (SearchRequest(vector=query([0.0] * 6, [float("inf")] * 16)), "vector.lexical: got 'a value that is not finite'"),
    (SearchRequest(filters=replace(COMPANY, field="colour")), "filters.field: got 'colour'"),
    (SearchRequest(filters=replace(PAY, field="company")), r"filters \(company\): got 'RANGE'"),
    (SearchRequest(filters=replace(COMPANY, field="salary.annual_min")), r"filters \(salary.annual_min\): got 'IN'"),
    (SearchRequest(filters=replace(COMPANY, field="location")), r"filters \(location\): got 'IN'"),
    (SearchRequest(filters=replace(PAY, minimum=float("nan"))), r"filters \(salary.annual_min\): got nan"),
    (SearchRequest(filters=is_in("seniority", "BOSS")), "seniority: got 'BOSS'"),
    (SearchRequest(filters=replace(COMPANY, values=())), r"filters.values: got \(\)"),
]


@pytest.fixture(scope="module")
def answering(tmp_path_factory):
    """A ready role for calls that change nothing: one posting with a vector, one without."""
    log, queries_ = IndexLog(), IndexLog(log_id="cluster/queries")
    log.publish(upsert("p", vector=ROWS[0]), upsert("q"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    role = Role(log, queries_, tmp_path_factory.mktemp("role"), port).ready()
    yield role
    role.stop()


@pytest.mark.parametrize(("request_", "said"), WRONG, ids=[said for _, said in WRONG])
def test_what_a_caller_got_wrong_is_named(answering, request_, said):
    with pytest.raises(CallError, match=said) as error:
        answering.client.search(request_, CALL_S)
    assert error.value.code is grpc.StatusCode.INVALID_ARGUMENT and not error.value.retryable


@pytest.mark.parametrize(
    ("method", "request_", "said"),
    [
        (Retrieval.GET, GetRequest(posting_ids=("p",) * (server.MAX_IDS + 1)), "posting_ids"),
        (Retrieval.HOLDS, HoldsRequest(clauses=(COMPANY,) * (server.MAX_CLAUSES + 1)), "clauses"),
        (Retrieval.HOLDS, HoldsRequest(clauses=(replace(COMPANY, field="colour"),)), "filters.field"),
        (Retrieval.EXPLAIN, ExplainRequest(filters=replace(COMPANY, field="colour")), "filters.field"),
    ],
)
def test_what_is_wrong_with_other_calls_is_named(answering, method, request_, said):
    [client] = answering.client._shards[0].clients
    with pytest.raises(CallError, match=said) as error:
        client.call(method, request_, CALL_S)
    assert error.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_bytes_that_are_no_request_are_refused(answering):
    with grpc.insecure_channel(answering.settings.retrieval.listen) as channel:
        for body in (b"", b"garbage", b"\x00" * 40):
            with pytest.raises(grpc.RpcError) as error:
                channel.unary_unary(Retrieval.SEARCH.path)(body, timeout=CALL_S)
            assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_query_of_zeros_scores_everything_0_in_the_order_of_ids(answering):
    reply = answering.search(query([0.0] * 6, [0.0] * 16))
    assert shown(reply) == Oracle([upsert("p", vector=ROWS[0]), upsert("q")]).search(
        query([0.0] * 6, [0.0] * 16), None, 50, now_ms=0
    )
    assert [hit.score for hit in reply.hits] == [0.0, 0.0] and reply.degraded == ()


def test_nothing_found_is_an_answer(answering):
    for tree, tenant in ((is_in("company", "nobody"), "default"), (None, "nobody")):
        for vector_ in (ASKED, None):
            reply = answering.search(vector_, tree, tenant=tenant)
            assert (reply.hits, reply.total, reply.degraded) == ((), 0, ()) and reply.epoch > 0


def test_what_is_wrong_with_updates_has_each_its_outcome(log, start):
    """Older than stored, twice in a batch, deletions of the unknown, vectors that cannot be used: all by the log."""
    role = start().ready()
    log.publish(upsert("old", 5, vector=ROWS[1]), partition=0)
    role.has("old", 5)
    log.publish(
        *(upsert("old", 4), gone("old", 3), gone("nobody", 2), upsert("nobody", 1), gone("late", 1)),
        *(upsert("twice", 1, vector=ROWS[1]), upsert("twice", 3, vector=ROWS[3]), upsert("twice", 2, vector=ROWS[2])),
        upsert("nan", vector=vector([float("nan")] * 6)),
        upsert("wide", vector=vector([1.0] * 7)),
        upsert("zero", vector=vector([0.0] * 6, [0] * 16)),
        upsert("late", 2),
        partition=0,
    )
    role.has("late", 2)
    rows = {row.posting_id: row for row in role.get("old", "nobody", "twice", "nan", "wide", "zero", "late").rows}
    states = {name: (row.state, row.update.version) for name, row in rows.items()}
    assert states == {
        "old": ("LIVE", 5),
        "nobody": ("DELETED", 2),
        "twice": ("LIVE", 3),
        "late": ("LIVE", 2),
        "nan": ("LIVE", 1),
        "wide": ("LIVE", 1),
        "zero": ("LIVE", 1),
    }
    assert rows["nan"].update.vector is None and rows["wide"].update.vector is None
    assert rows["zero"].update.vector == vector([0.0] * 6, [0] * 16)
    scores = {hit.posting_id: hit.score for hit in role.search().hits}
    assert set(scores) == {"old", "twice", "nan", "wide", "zero", "late"}
    assert scores["nan"] == scores["wide"] == scores["zero"] == 0.0 != scores["old"]
    numbers = eventually(lambda: (s := role.status().numbers)["rows"] == 6 and s, "the view is renewed")
    assert (numbers["tombstones"], numbers["vectors_refused"]) == (1, 2)
    assert numbers["stale_updates"] >= 3 and role.letters.letters == []


def test_a_tenant_sees_its_own(log, start):
    log.publish(upsert("p", tenant="a", vector=ROWS[1]), upsert("q", tenant="b", vector=ROWS[2]))
    role = start().ready()
    assert [hit.posting_id for hit in role.search(ASKED, tenant="a").hits] == ["p"]
    assert role.search(ASKED, tenant="nobody").total == 0
    assert [row.state for row in role.get("p", "q", tenant="a").rows] == ["LIVE", "ABSENT"]
    assert role.get("q", tenant="a").rows[0].update is None


def test_an_epoch_can_be_read_for_as_long_as_settings_say(log, start):
    log.publish(upsert("p", vector=ROWS[1]))
    held, brief = start(hold_epochs_ms=60_000).ready(), start(log, shard="brief", hold_epochs_ms=0).ready()
    at = {role: role.search().epoch for role in (held, brief)}
    for version in range(2, 12):  # more than there are free rows
        log.publish(upsert("p", version, vector=ROWS[2]))
        held.has("p", version), brief.has("p", version)
    assert [hit.version for hit in held.search(at_epoch=at[held]).hits] == [1]
    with pytest.raises(CallError, match="at_epoch"):
        brief.search(at_epoch=at[brief])


def test_vectors_of_another_space_are_named_in_answers(log, start):
    log.publish(upsert("p", vector=ROWS[1]), upsert("q", vector=vector([1.0], space="other")), partition=0)
    role = start().ready()
    eventually(lambda: role.status().numbers["vectors_refused"] == 1, "counted")
    reply = role.search(ASKED)
    assert reply.total == 2 and reply.degraded == (server.OTHER_SPACE,)


def test_words_alone_are_searched_by_the_shard_s_own_sketch(log, start):
    log.publish(
        upsert("nurse", title="Veterinary nurse"), upsert("baker", title="Baker"), upsert("other", title="Plumber")
    )
    role = start().ready()
    reply = role.search(None, words="a veterinary practice")
    assert reply.hits[0].posting_id == "nurse"
    assert reply.hits[0].lexical == reply.hits[0].score > reply.hits[1].score
    assert reply.hits[0].dense == 0.0
    assert reply.total == 3
    assert eventually(lambda: role.status().numbers["rows_without_vector"] == 3, "they are counted")


def test_words_alone_are_refused_where_no_row_could_answer(log, start):
    log.publish(upsert("a", vector=ROWS[0]))
    role = start().ready()
    with pytest.raises(CallError, match="words: got 'nurse'") as caught:
        role.search(None, words="nurse")
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


def freshness_count():
    return REGISTRY.get_sample_value("penstock_freshness_seconds_count", {"until": "searchable"}) or 0


def test_freshness_is_observed_of_what_comes_and_not_of_a_replay(log, start):
    log.publish(upsert("p"), upsert("q"))
    before = freshness_count()
    role = start().ready()
    assert freshness_count() == before
    moment = time.time_ns() // 1_000_000
    log.publish(upsert("r", produced_at=moment), replace(upsert("r", 1, 1), produced_at=moment))
    log.publish(gone("p", 2, op=IndexOp.EXPIRE))
    role.has("p", 2)
    assert freshness_count() == before + 1  # neither a refinement nor an expiry is news


def test_a_batch_with_one_impossible_record_loses_that_one_alone(log, start, monkeypatch):
    honest = Store.apply

    def fragile(self, updates, *, now_ms):
        if any(update.posting_id == "bad" for update in updates):
            raise KeyError("what no rule foresaw")
        return honest(self, updates, now_ms=now_ms)

    monkeypatch.setattr(Store, "apply", fragile)
    log.publish(upsert("good"), upsert("bad"), upsert("fine"), partition=0)
    role = start().ready()
    assert role.ids() == ["fine", "good"]
    assert [record.offset for record, _ in role.letters.letters] == [1]


def test_a_snapshot_waits_for_dead_letters(log, start, tmp_path):
    role = start(snapshot_interval_s=0.0)
    role.letters.outstanding = 1
    role.ready()
    log.append(b"garbage")
    log.publish(upsert("p"))
    eventually(lambda: role.status().numbers["rows"] == 1, "the chores have been done")
    role.stop()
    assert list((tmp_path / "retrieval" / "shard-0").glob("*.penstock")) == []


# --- searches that share scans -----------------------------------------------------------------------------------


class Held:
    """Holds a role's scans: what arrives while one is held goes into the next batch."""

    def __init__(self, monkeypatch):
        self.batches, self.began, self.open = [], threading.Semaphore(0), threading.Event()
        honest = Store.search_many

        def search_many(store, asks):
            self.batches.append(len(asks))
            self.began.release()
            assert self.open.wait(20)
            return honest(store, asks)

        monkeypatch.setattr(Store, "search_many", search_many)


def in_thread(ask):
    """The reply, or the error, of a call made in a thread."""
    box = []

    def call():
        try:
            box.append(ask())
        except Exception as error:
            box.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    return thread, box


def waiting(role, count):
    return eventually(lambda: role.status().numbers["searches_waiting"] >= count, f"{count} searches wait")


@pytest.fixture
def still(log, start, monkeypatch):
    """A ready role whose next scans are held, the first of them under way; and the call that began it."""

    def make(**settings):
        # Its probe would wait for the held scans as well.
        monkeypatch.setattr(server.RetrievalService, "_ask_known", lambda self: "")
        log.publish(*(upsert(f"p{i}", vector=ROWS[i], company=f"c{i % 3}") for i in range(6)))
        role = start(**settings).ready()
        held = Held(monkeypatch)
        releases.append(held)
        first = in_thread(role.search)
        assert held.began.acquire(timeout=20)
        return role, held, first

    releases = []
    yield make
    for held in releases:
        held.open.set()


def test_searches_that_come_during_a_scan_share_the_next_and_fail_alone(still):
    role, held, first = still()
    asks = [
        lambda: role.search(None, is_in("company", "c1")),
        lambda: role.search(ASKED, k=2),
        lambda: role.search(query([1.0] * 5)),
        lambda: role.search(query([float("nan")] * 6)),
        lambda: role.search(None, tenant="nobody"),
    ]
    calls = [in_thread(ask) for ask in asks]
    waiting(role, len(asks))
    held.open.set()
    for thread, _ in (first, *calls):
        thread.join(20)
    assert held.batches[:2] == [1, len(asks)]
    by_company, best, *wrong, nobody = [box[0] for _, box in calls]
    oracle = Oracle([upsert(f"p{i}", vector=ROWS[i], company=f"c{i % 3}") for i in range(6)])
    assert shown(first[1][0]) == oracle.search(ASKED, None, 50, now_ms=0)
    assert shown(by_company) == oracle.search(None, is_in("company", "c1"), 50, now_ms=0)
    assert shown(best) == oracle.search(ASKED, None, 2, now_ms=0)
    assert nobody.total == 0
    for error, said in zip(wrong, ("'5 values'", "'a value that is not finite'"), strict=True):
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT and f"vector.dense: got {said}" in str(error)


def test_what_is_wrong_with_a_search_is_said_before_it_waits(still):
    role, held, first = still(max_queue_bytes=100_000)
    colour = replace(is_in("company", "x"), field="colour")
    wrong = {"k: got 16385": {"k": MAX_K + 1}, "filters.field": {"tree": colour}, "at_epoch": {"at_epoch": 5}}
    for said, ask in wrong.items():
        with pytest.raises(CallError, match=said) as error:
            role.search(None, **ask)
        assert error.value.code is grpc.StatusCode.INVALID_ARGUMENT
    held.open.set()
    first[0].join(20)
    assert role.search().total == 6 and held.batches == [1, 1]


def test_what_a_search_has_to_look_at_decides_whether_it_would_be_late(still, monkeypatch):
    role, held, first = still()
    monkeypatch.setattr(server, "STARTED", 0.0)
    # A second a row of dense scan; the scan that is held was offered before and is as good as over.
    monkeypatch.setattr(ScanTimes, "of", lambda self, cost: 0.0 if cost > 1_000 else 10 * cost)
    with pytest.raises(CallError, match="an answer is expected in") as error:
        role.search()
    assert error.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    thread, box = in_thread(lambda: role.search(ASKED, is_in("company", "nobody")))
    waiting(role, 1)
    held.open.set()
    first[0].join(20), thread.join(20)
    assert (box[0].total, box[0].hits) == (0, ())


def test_a_search_costs_what_its_plan_looks_at():
    store = Store(page_rows=512)
    store.apply([upsert(f"p{i}", vector=ROWS[i % 8], posted_at=i) for i in range(400)], now_ms=0)

    def cost(vector_, tree, tenant="default"):
        ask = Ask(vector_, tree, 5, 0, tenant)
        return server.expected_cost(store.planned(ask), ask)

    dense = cost(ASKED, None)
    assert dense == Cost(server.STARTED + 400 * (1 + server.LOOKED_AT), 400 * server.SCANNED)
    few = cost(ASKED, is_in("posting_id", "p1", "p2"))
    assert server.STARTED < few.own < dense.own and few.shared == 0
    assert cost(None, None) == Cost(server.STARTED + 400 * server.LOOKED_AT)
    assert cost(ASKED, is_in("company", "nobody")) == cost(ASKED, None, "nobody") == Cost(server.STARTED)


def test_a_queue_that_is_full_refuses_with_the_numbers(still):
    role, held, first = still(max_queue=2)
    calls = [in_thread(role.search) for _ in range(2)]
    waiting(role, 2)
    with pytest.raises(CallError, match="shard-0: 2 searches wait already, at most 2 may") as error:
        role.search()
    assert error.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED and error.value.retryable
    held.open.set()
    for thread, box in (first, *calls):
        thread.join(20)
        assert box[0].total == 6


def test_what_waits_is_bounded_in_bytes(still):
    role, held, first = still(max_queue_bytes=100_000)
    with pytest.raises(CallError, match=r"needs \d+ bytes, those that wait hold 0 of 100000") as error:
        role.search(k=1_000)
    assert error.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    held.open.set()
    first[0].join(20)


def test_a_search_that_would_be_late_is_refused_and_one_that_is_costs_no_scan(still, monkeypatch):
    role, held, first = still()
    with pytest.raises(CallError) as error:
        role.client.search(SearchRequest(vector=ASKED), 0.2)
    # The server, or the client beside it, says so at the deadline: it could not know that this scan takes long.
    assert error.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    eventually(lambda: role.status().numbers["searches_waiting"] == 0, "it has left the queue")
    thread, _ = in_thread(role.search)
    waiting(role, 1)
    monkeypatch.setattr(ScanTimes, "of", lambda self, searches: 60.0)
    with pytest.raises(CallError, match=r"an answer is expected in \d{5,} ms, the deadline is in") as error:
        role.search()
    assert error.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    held.open.set()
    first[0].join(20), thread.join(20)
    assert held.batches == [1, 1]


def test_a_caller_that_leaves_costs_no_scan(still):
    role, held, first = still()
    [client] = role.client._shards[0].clients
    call = client.start(Retrieval.SEARCH, SearchRequest(vector=ASKED), CALL_S)
    waiting(role, 1)
    before = REGISTRY.get_sample_value("penstock_search_requests_total", {"outcome": "left"}) or 0
    call.cancel()
    eventually(lambda: role.status().numbers["searches_waiting"] == 0, "it has left the queue")
    held.open.set()
    first[0].join(20)
    assert role.search().total == 6
    assert held.batches == [1, 1]
    assert REGISTRY.get_sample_value("penstock_search_requests_total", {"outcome": "left"}) == before + 1


def test_searches_are_counted_and_timed(log, start):
    def value(name, **labels):
        return REGISTRY.get_sample_value(f"penstock_{name}", labels) or 0

    log.publish(*(upsert(f"p{i}", vector=ROWS[i]) for i in range(5)), gone("p0", 2))
    role = start().ready()
    names = [
        ("search_requests_total", {"outcome": "served"}),
        ("search_batches_total", {"searches": "1"}),
        ("stage_seconds_count", {"role": "retrieval", "stage": "search"}),
        ("search_plans_total", {"plan": "dense scan"}),
        ("search_rows_total", {"step": "looked at"}),
        ("search_rows_total", {"step": "rescored"}),
    ]
    before = [value(name, **labels) for name, labels in names]
    passed, timed = (
        value("search_rows_total", step="passed"),
        value("stage_seconds_count", role="retrieval", stage="scan"),
    )
    assert role.search().total == 4
    assert all(value(name, **labels) > old for (name, labels), old in zip(names, before, strict=True))
    assert value("search_rows_total", step="passed") >= passed + 4
    assert value("stage_seconds_count", role="retrieval", stage="scan") > timed
    assert value("stage_seconds_count", role="retrieval", stage="queue") > 0
    eventually(lambda: value("index_tombstones") == 1, "the view is renewed")
    assert 0 < value("index_occupancy_ratio") <= 1
    assert value("index_epoch") == role.search().epoch


def test_what_a_shard_says_of_itself_is_measured(tmp_path):
    """Each number that operations need, by its name; docs/telemetry.md has what they mean."""
    own = Settings(data_dir=tmp_path, retrieval=RetrievalSettings(initial_rows=1))
    kind = kinds.postings(own, kinds.lexicon_of(own), None)
    store = kind.make(7)
    store.apply([upsert("p"), upsert("q"), upsert("r"), gone("x", 1)], now_ms=0)
    store.apply([upsert("p", 2), gone("q", 2)], now_ms=0)
    counts = kind.measure(store, Lag(5, 2.5))
    found = {
        name: REGISTRY.get_sample_value(f"penstock_index_{name}")
        for name in (
            *("lag_offsets", "lag_seconds", "epoch", "rows", "tombstones", "dead_rows"),
            *("memory_bytes", "device_bytes"),
        )
    }
    assert found == {
        "lag_offsets": 5,
        "lag_seconds": 2.5,
        "epoch": 9,
        "rows": 2,
        "tombstones": 2,
        "dead_rows": 2,
        "memory_bytes": counts.nbytes,
        "device_bytes": counts.bytes_device,
    }
    assert REGISTRY.get_sample_value("penstock_index_occupancy_ratio") == 2 / counts.capacity > 0


# --- a search whose answer is known --------------------------------------------------------------------------------


def for_tenant(tenant, change):
    return lambda ask, answer: change(answer) if ask.tenant == tenant else answer


def broken(change):
    """`search_many`, every answer of it changed."""
    honest = Store.search_many

    def search_many(store, asks):
        return [change(ask, answer) for ask, answer in zip(asks, honest(store, asks), strict=True)]

    return search_many


def first_hit(**changes):
    def change(ask, answer):
        if ask.filter is None:
            return answer
        return replace(answer, hits=tuple(replace(hit, **changes) for hit in answer.hits))

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda ask, answer: replace(answer, hits=()), "are found"),
        (lambda ask, answer: replace(answer, hits=(), total=0), "and a search without a filter finds nothing"),
        (lambda ask, answer: replace(answer, hits=tuple(replace(h, recency=-1) for h in answer.hits)), "is said to be"),
        (lambda ask, answer: answer if ask.filter is None else replace(answer, hits=(), total=0), "by its own id"),
        (first_hit(score=1.5), "scores 1.5 with itself"),
        (first_hit(version=7), "is found as version 7"),
        (lambda ask, answer: RuntimeError("the accelerator is gone"), "RuntimeError: the accelerator is gone"),
    ],
)
def test_a_role_that_answers_wrong_is_not_ready(log, start, monkeypatch, change, said):
    monkeypatch.setattr(server, "PROBE_AGAIN_S", 0.0)
    log.publish(upsert("p"), upsert("q", vector=ROWS[1], posted_at=9_000), gone("r", 1))
    role = start().ready()
    with monkeypatch.context() as patched:
        patched.setattr(Store, "search_many", broken(change))
        status = role.status()
        assert not status.ready and said in status.reason
    assert role.ready().status().numbers["probe_ms"] > 0


def test_each_tenant_is_searched_whoever_asks_and_the_one_that_fails_until_it_is_right(log, start, monkeypatch):
    monkeypatch.setattr(server, "PROBE_AGAIN_S", 0.0)
    log.publish(*(upsert(f"p{n}", tenant=f"t{n}", vector=ROWS[n]) for n in range(1, 5)))
    role = start().ready()
    for n in range(1, 5):
        with monkeypatch.context() as patched:
            empty = for_tenant(f"t{n}", lambda answer: replace(answer, hits=(), total=0))
            patched.setattr(Store, "search_many", broken(empty))
            found = [role.status() for _ in range(6)]
            reasons = [status.reason for status in found]
            assert any(f"tenant t{n} holds p{n}" in reason for reason in reasons)
            first = next(number for number, status in enumerate(found) if not status.ready)
            assert first < 4 and not any(status.ready for status in found[first:])
        role.ready()


def test_a_scan_that_hangs_makes_the_role_unready_and_a_busy_one_does_not(log, start, monkeypatch):
    monkeypatch.setattr(server, "PROBE_AGAIN_S", 0.0)
    monkeypatch.setattr(server, "PROBE_S", 0.05)
    log.publish(upsert("p", vector=ROWS[1]))
    role = start().ready()
    held = Held(monkeypatch)
    try:
        assert role.status().ready  # the last answer is not long ago
        monkeypatch.setattr(server, "FRESH_S", 0.0)
        status = role.status()
        assert not status.ready and status.reason.startswith("searches are not answered: ")
    finally:
        held.open.set()
    role.ready()


@pytest.mark.parametrize("held", [[], [gone("p", 1)], [upsert("p", tenant="a", vector=ROWS[1])], [upsert("p")]])
def test_whatever_a_shard_holds_it_knows_an_answer(log, start, held):
    log.publish(*held)
    role = start().ready()
    assert role.search(None, tenant="a").total == sum(update.tenant == "a" for update in held)
    assert role.ready()


# --- standing queries --------------------------------------------------------------------------------------------


def matching(role, *updates):
    reply = role.client.percolate(PercolateRequest(updates=updates), CALL_S)
    assert reply.degraded == ()
    return [[match.subscription_id for match in one.matches] for one in reply.found]


def in_force(role, *ids):
    return role.client.standing(StandingRequest(subscription_ids=ids), CALL_S).in_force


def test_standing_queries_are_followed_and_kept(log, queries, start):
    queries.publish(standing("s", vector=ASKED), standing("t", 2), standing("gone"), ended("gone", 2))
    first = start().ready()
    posting = upsert("p", vector=ROWS[1], expires_at=time.time_ns() // 1_000_000 + 3_600_000)
    assert matching(first, posting, replace(posting, expires_at=1)) == [["s", "t"], []]
    queries.publish(standing("u", vector=ASKED))
    eventually(lambda: in_force(first, "u") == (True,), "it is percolated")
    status = eventually(lambda: (s := first.status()).numbers["standing_queries"] == 3 and s, "the view is renewed")
    assert (status.numbers["standing_tombstones"], status.numbers["standing_lag_offsets"]) == (1, 0)
    eventually(lambda: REGISTRY.get_sample_value("penstock_standing_queries") == 3, "the gauge says so")
    first.stop()
    queries.publish(ended("t", 3), standing("gone", 1))  # later than its end, and older
    second = start().ready()
    assert sum(queries.opened[-1].values()) == 5
    assert matching(second, posting) == [["s", "u"]]
    told = second.client.standing(StandingRequest(subscription_ids=("t", "gone", "s")), CALL_S)
    assert (told.versions, told.in_force) == ((3, 2, 1), (False, False, True))


def test_a_role_is_ready_when_both_logs_have_been_read(log, queries, start):
    queries.publish(standing("s"))
    queries.away = "no topic alerts.query.v1"
    role = start()
    status = eventually(lambda: "alerts.query.v1" in (s := role.status()).reason and s, "it says so")
    assert not status.ready and status.reason.startswith("standing queries: ")
    with pytest.raises(CallError, match=r"alerts\.query\.v1") as error:
        matching(role, upsert("p"))
    assert error.value.retryable
    queries.away = ""
    assert matching(role.ready(), upsert("p")) == [["s"]]


def test_records_that_are_no_standing_queries_become_dead_letters(queries, start):
    queries.append(b"garbage")
    colour = replace(is_in("company", "x"), field="colour")
    queries.publish(standing("bad", filters=colour), standing("worse", threshold=float("nan")), partition=0)
    queries.publish(standing("ill", vector=query([float("inf")] * 6)), standing("well"), partition=0)
    role = start().ready()
    assert matching(role, upsert("p")) == [["well"]]
    found = [(record.offset, str(error)) for record, error in role.query_letters.letters]
    assert [offset for offset, _ in found] == [0, 1, 2, 3]
    assert "filters.field" in found[1][1] and "threshold" in found[2][1] and "vector.dense" in found[3][1]
    assert role.letters.letters == []
    assert eventually(lambda: role.status().numbers["standing_refused"] == 4, "they are counted")


def test_standing_queries_that_the_snapshot_lacks_come_from_the_log(queries, start, monkeypatch):
    queries.publish(standing("s"))
    first = start(snapshot_interval_s=0.0).ready()
    eventually(lambda: first.status().texts["standing_snapshot"], "a snapshot while serving")
    queries.publish(ended("s", 2), standing("t"))
    eventually(lambda: in_force(first, "s", "t") == (False, True), "followed")
    first.crash(monkeypatch)
    assert matching(start().ready(), upsert("p")) == [["t"]]


def test_a_standing_loop_that_cannot_go_on_ends_the_role(log, queries, start, monkeypatch):
    honest = Shard.run

    def run(self, stop, ready):
        if self._source is queries:
            raise RuntimeError("a fault nobody thought of")
        honest(self, stop, ready)

    monkeypatch.setattr(Shard, "run", run)
    role = start()
    eventually(lambda: not role.thread.is_alive(), "the role ended")
    assert [str(error) for error in role.failed] == ["a fault nobody thought of"]
    role.failed.clear()


def test_a_filter_is_explained_with_what_a_search_would_read(log, start):
    log.publish(*(upsert(f"p{i}", company=f"c{i % 4}") for i in range(40)))
    role = start().ready()
    reply = role.client.explain(ExplainRequest(filters=is_in("company", "c1")), CALL_S)
    assert (reply.postings, reply.passed, reply.degraded) == (40, 10, ())
    assert [clause.passed for clause in reply.clauses] == [10]
    assert len(reply.plan) == 1
    assert reply.plan[0].startswith("shard-0: 1 of 1 blocks are looked at")
    assert "25.00% of their rows pass, less than 30%: gather" in reply.plan[0]
