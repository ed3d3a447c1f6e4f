"""The commands about alerts, over an in-memory topic and a real shard's protocol. Real topics: tests/e2e."""

import json
import os
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from penstock.infra import kafka_clients
from penstock.infra.cli import alerts as alert_commands
from penstock.infra.cli.main import app
from penstock.schemas import grpc_avro, rpc
from penstock.schemas.events import Alert, Attributes, Location, Match, Op, Subscription
from penstock.schemas.topics import SUBSCRIPTIONS
from penstock.schemas.wire import codec


class Message:
    def __init__(self, value):
        self._value = value

    def value(self):
        return self._value


class Topics:
    """Takes the broker's place: what was published is what is read."""

    def __init__(self):
        self.published = []
        self.garbage = [b"not a record", None]

    def read_all(self, settings, topics, **_):
        assert topics == [SUBSCRIPTIONS.name]
        return [Message(value) for value in (*self.garbage, *map(codec(Subscription).encode, self.published))]

    def publisher(self, settings):
        topics = self

        class Publisher:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                pass

            def publish(self, topic, record):
                assert topic is SUBSCRIPTIONS
                topics.published.append(record)

        return Publisher()


@pytest.fixture
def topics(monkeypatch):
    made = Topics()
    monkeypatch.setattr(kafka_clients, "read_all", made.read_all)
    monkeypatch.setattr(kafka_clients, "Publisher", made.publisher)
    monkeypatch.setattr(kafka_clients, "check_broker", lambda *_: None)
    return made


@pytest.fixture
def shard(topics):
    """What retrieval says of subscriptions; `deaf` while it has heard of none."""
    return {"deaf": False}


@pytest.fixture
def cli(free_port, monkeypatch, tmp_path, topics, shard):
    def standing(request, context):
        newest = {one.subscription_id: one for one in topics.published}
        known = [None if shard["deaf"] else newest.get(name) for name in request.subscription_ids]
        return rpc.StandingReply(
            versions=tuple(-1 if one is None else one.version for one in known),
            in_force=tuple(one is not None and one.op is Op.UPSERT for one in known),
        )

    address = f"127.0.0.1:{free_port()}"
    server = grpc_avro.serve(address, {rpc.Retrieval.STANDING: standing})
    monkeypatch.setenv("PENSTOCK_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("PENSTOCK_RETRIEVAL__LISTEN", address)
    monkeypatch.setenv("COLUMNS", "200")
    yield lambda *arguments: CliRunner().invoke(app, ["subscriptions", *arguments])
    server.stop(None).wait()


def test_a_subscription_is_in_force_when_add_says_so(cli, topics):
    result = cli(
        *("add", "remote nurse in Ohio", "--person", "ann", "--id", "s1", "--filter", "salary.annual_max>=60000"),
        *("--min-score", "0.4", "--max-per-day", "5", "--cadence", "daily", "--quiet", "22:00-07:00"),
        *("--time-zone", "America/New_York"),
    )
    assert result.exit_code == 0, result.stderr
    assert "s1 is in force" in result.stderr
    [sent] = topics.published
    assert (sent.person_id, sent.text, sent.filters.field) == ("ann", "remote nurse in Ohio", "salary.annual_max")
    assert (sent.min_score, sent.max_per_day, sent.cadence, sent.time_zone) == (0.4, 5, "DAILY", "America/New_York")
    assert (sent.quiet_hours.start, sent.quiet_hours.end) == ("22:00", "07:00")
    assert abs(sent.version - time.time() * 1000) < 60_000


def test_one_that_does_not_come_into_force_is_a_failure_in_one_sentence(cli, shard):
    shard["deaf"] = True
    result = cli("add", "nurse", "--person", "ann", "--wait", "0.3")
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1
    assert "not in force" in result.stderr and "penstock status" in result.stderr
    assert cli("add", "nurse", "--person", "ann", "--no-wait").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("nurse",), "--person"),
        (("--person", "ann"), "text"),
        (("nurse", "--person", "ann", "--cadence", "HOURLYISH"), "--cadence"),
        (("nurse", "--person", "ann", "--quiet", "at night"), "--quiet"),
        (("nurse", "--person", "ann", "--quiet", "25:00-07:00"), "quiet_hours.start"),
        (("nurse", "--person", "ann", "--time-zone", "Mars"), "time_zone"),
        (("nurse", "--person", "ann", "--filter", "remote=SOMETIMES"), "--filter"),
        (("nurse", "--person", "ann", "--min-score", "2"), "--min-score"),
        (("nurse", "--person", ""), "person_id"),
    ],
)
def test_a_wrong_subscription_is_a_wrong_argument(cli, topics, arguments, named):
    result = cli("add", *arguments)
    assert result.exit_code == 2 and named in result.stderr
    assert topics.published == []


def test_a_list_shows_the_newest_of_each_and_what_is_in_force(cli, shard):
    for arguments in (("a", "ann", "nurse"), ("b", "bob", "[welder]"), ("a", "ann", "night nurse")):
        assert cli("add", arguments[2], "--person", arguments[1], "--id", arguments[0]).exit_code == 0
    shown = cli("list").stdout
    assert "night nurse" in shown and "[welder]" in shown and shown.count("yes") == 2
    assert "welder" not in cli("list", "--person", "ann").stdout
    shard["deaf"] = True
    document = json.loads(cli("list", "--json").stdout)
    assert [(one["subscription_id"], one["in_force"]) for one in document["subscriptions"]] == [
        ("a", False),
        ("b", False),
    ]
    assert "no subscriptions" in cli("list", "--tenant", "acme").stderr


def test_the_same_id_again_changes_it_whatever_the_clocks_say(cli, topics):
    ahead = int(time.time() * 1000) + 3_600_000
    topics.published.append(Subscription(subscription_id="a", version=ahead, person_id="ann", text="nurse"))
    result = cli("add", "night nurse", "--person", "ann", "--id", "a", "--wait", "0.3")
    assert result.exit_code == 0, result.stderr
    assert (topics.published[-1].version, topics.published[-1].text) == (ahead + 1, "night nurse")


def test_an_id_of_somebody_else_is_a_wrong_argument(cli, topics):
    cli("add", "nurse", "--person", "ann", "--id", "a")
    for other in (("--person", "bob"), ("--person", "ann", "--tenant", "acme")):
        result = cli("add", "nurse", "--id", "a", *other)
        assert result.exit_code == 2 and "somebody else" in result.stderr
    assert len(topics.published) == 1


def test_what_is_removed_is_gone(cli, topics):
    cli("add", "nurse", "--person", "ann", "--id", "a")
    result = cli("remove", "a", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["ended"] is True
    assert topics.published[-1].op is Op.DELETE and topics.published[-1].version > topics.published[0].version
    again = cli("remove", "a")
    assert again.exit_code == 1 and "'a'" in again.stderr
    assert json.loads(cli("list", "--json").stdout)["subscriptions"] == []


# --- alerts ------------------------------------------------------------------------------------------------------

MATCH = Match(
    subscription_id="s1", version=1, person_id="ann", match_score=0.7, dense=0.5, lexical=0.2, reason="remote, Ohio"
)


def alert(title="Night nurse", tenant="default", person="ann", **more):
    return Alert(
        alert_id="x",
        tenant=tenant,
        person_id=person,
        posting_id="p1",
        version=1,
        matches=(MATCH,),
        attributes=Attributes(title=title, company="Clinic", location=Location(text="Columbus, Ohio")),
        produced_at=0,
        alerted_at=1_000,
        **more,
    )


def test_an_alert_is_readable_with_its_reasons():
    told = alert_commands.lines(alert(degraded=("rank: late",), deliver_after=0), 61_000)
    assert told == [
        "ann · Night nurse — Clinic, Columbus, Ohio (p1, 1 min ago)",
        "    because remote, Ohio [s1, match 0.70]",
        "    to be shown from 1970-01-01T00:00:00.000Z",
        "    degraded: rank: late",
    ]


def test_a_title_cannot_move_the_cursor():
    assert "\x1b" not in "".join(alert_commands.lines(alert(title="a\x1b[2Jb\nc"), 0))


class Feed:
    """Some alerts, then Ctrl-C."""

    def __init__(self, settings, topics, *, from_beginning):
        FEEDS.append(from_beginning)
        self.waiting = [codec(Alert).encode(one) for one in (alert(), alert(tenant="acme"), alert(person="bob"))]
        self.waiting.insert(1, b"garbage")

    def poll(self, timeout):
        if not self.waiting:
            raise KeyboardInterrupt
        return [Message(self.waiting.pop(0))]

    def close(self):
        pass


FEEDS: list[bool] = []


@pytest.fixture
def tail(monkeypatch, tmp_path):
    FEEDS.clear()
    monkeypatch.setattr(kafka_clients, "Tail", Feed)
    monkeypatch.setenv("PENSTOCK_DATA_DIR", str(tmp_path))
    return lambda *arguments: CliRunner().invoke(app, ["alerts", "tail", *arguments])


def test_a_tail_ends_well_on_ctrl_c_and_shows_whose_it_should(tail):
    result = tail("--person", "ann", "--from-beginning")
    assert result.exit_code == 0 and FEEDS == [True]
    assert result.stdout.count("Night nurse") == 1 and "because remote, Ohio" in result.stdout
    assert "cannot be read" in result.stderr
    everybody = tail("--json")
    assert [json.loads(line)["person_id"] for line in everybody.stdout.splitlines()] == ["ann", "bob"]
    assert FEEDS == [True, False]


def test_a_reader_that_has_enough_ends_it_quietly(tmp_path):
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from penstock.infra import kafka_clients\n"
        "import endless\n"
        "kafka_clients.Tail = endless.Feed\n"
        "sys.argv = ['penstock', 'alerts', 'tail']\n"
        "from penstock.infra.cli.main import main\n"
        "main()\n"
    )
    (tmp_path / "endless.py").write_text(
        "from penstock.schemas.events import Alert, Attributes\n"
        "from penstock.schemas.wire import codec\n"
        "one = codec(Alert).encode(Alert(alert_id='x', person_id='ann', posting_id='p', version=1, matches=(),\n"
        "    attributes=Attributes(title='T' * 500), produced_at=0, alerted_at=0))\n"
        "class Message:\n"
        "    def value(self): return one\n"
        "class Feed:\n"
        "    def __init__(self, *a, **k): pass\n"
        "    def poll(self, s): return [Message()] * 100\n"
        "    def close(self): pass\n"
    )
    environment = {**os.environ, "PENSTOCK_DATA_DIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    ) as running:
        assert running.stdout.readline()
        running.stdout.close()  # as `| head -1` does
        assert running.wait(60) == 0
        assert b"Traceback" not in running.stderr.read()
