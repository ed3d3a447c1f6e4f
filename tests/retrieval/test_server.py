"""The retrieval role over real gRPC, its log in memory: start, follow, restart, trouble, and every refusal by name."""

import threading
import time
from dataclasses import replace

import grpc
import pytest
from index_log import IndexLog, LetterBox
from prometheus_client import REGISTRY
from store_inputs import gone, query, upsert, vector
from store_oracle import Oracle, shown

from penstock.infra.settings import RetrievalSettings, Settings
from penstock.retrieval import server
from penstock.retrieval.client import MIN_VERSION_TIMED_OUT, RetrievalClient
from penstock.schemas import filters
from penstock.schemas.events import IndexOp, IndexUpdate, MinVersion
from penstock.schemas.filters import is_in
from penstock.schemas.grpc_avro import CallError
from penstock.schemas.rpc import GetRequest, HoldsRequest, SearchRequest

ROWS = [vector([float(i), 1.0, 0.5, 0.0, -1.0, 2.0], [i] * 16) for i in range(8)]
ASKED = query([0.5, 1.0, 0.0, 0.0, 0.0, 0.0], [0.01] * 16)
CALL_S = 10.0


def eventually(condition, what, seconds=20.0):
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not in {seconds} s: {what}"
        pause.wait(0.01)
    return value


class Role:
    """A served shard and a client of it; `stop` ends it well, `crash` without its last snapshot."""

    def __init__(self, log, folder, port, **settings):
        own = {"listen": f"127.0.0.1:{port}", "initial_rows": 4, "publish_interval_ms": 5, **settings}
        self.letters = LetterBox()
        self.stopping = threading.Event()
        self.settings = Settings(data_dir=folder, retrieval=RetrievalSettings(**own))
        self.failed = []
        self.thread = threading.Thread(target=self._serve, args=(log,))
        self.thread.start()
        self.client = RetrievalClient([own["listen"]])

    def _serve(self, log):
        try:
            server.serve_from(log, self.letters, self.settings, self.stopping)
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
def start(log, tmp_path, free_port):
    roles = []

    def make(log=log, **settings):
        roles.append(Role(log, tmp_path, free_port(), **settings))
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
    epoch = first.search().epoch
    first.crash(monkeypatch)
    second = start().ready()
    assert second.search().epoch > epoch
    with pytest.raises(CallError, match="at_epoch") as error:
        second.search(at_epoch=epoch)
    assert error.value.code is grpc.StatusCode.INVALID_ARGUMENT


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
    (path,) = (tmp_path / "retrieval" / "shard-0").glob("*.penstock")
    path.write_bytes(path.read_bytes()[:-20])
    role = start().ready()
    assert role.ids() == ["p"]
    assert log.opened[-1] == {0: None, 1: None}
    assert path.name in role.status().texts["problems"]


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
    role.has("p", 1)
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


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (SearchRequest(k=0), "k"),
        (SearchRequest(filters=replace(filters.is_in("company", "x"), field="colour")), "filters.field"),
        (SearchRequest(vector=query([1.0] * 6, space="other")), "vector.space_id"),
        (SearchRequest(vector=query([1.0] * 5)), "vector.dense"),
        (SearchRequest(at_epoch=5), "at_epoch"),
    ],
)
def test_what_a_caller_got_wrong_is_named(log, start, request_, field):
    log.publish(upsert("p", vector=ROWS[0]))
    role = start().ready()
    with pytest.raises(CallError, match=field) as error:
        role.client.search(request_, CALL_S)
    assert error.value.code is grpc.StatusCode.INVALID_ARGUMENT


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
    from penstock.retrieval.store.store import Store

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
