"""The command line as a person and as a program meet it; behind it real servers speak the real protocol."""

import json
import os
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from penstock.infra.cli.main import app
from penstock.schemas import filters, grpc_avro, rpc
from penstock.schemas.errors import InvalidRecord
from penstock.schemas.events import (
    Attributes,
    Filter,
    IndexOp,
    IndexUpdate,
    Location,
    RankedItem,
    RankRequest,
    RankResult,
    Understood,
    Vector,
)

NOW = int(time.time() * 1000)


def row(posting_id, title, version=3):
    return rpc.Row(
        posting_id=posting_id,
        state=rpc.RowState.LIVE,
        searchable_at=NOW,
        update=IndexUpdate(
            posting_id=posting_id,
            version=version,
            op=IndexOp.UPSERT,
            attributes=Attributes(
                title=title,
                company="Veterans Health",
                location=Location(text="Columbus, Ohio", region="OH"),
                posted_at=NOW - 3 * 86_400_000,
            ),
            vector=Vector(space_id="s", encoder_id="e", dense=b"\x00\x00", sketch=b"\x01"),
            produced_at=NOW,
        ),
    )


ROWS = {"p1": row("p1", "Night nurse"), "p2": row("p2", "Day [nurse]")}


@pytest.fixture
def asked():
    """Every request that reached the servers."""
    return []


@pytest.fixture
def answers():
    """What the ranker says; a test may change it."""
    return {
        "result": RankResult(
            request_id="r",
            items=(
                RankedItem(posting_id="p1", version=3, score=0.91, parts={"dense": 0.5, "lexical": 0.25}),
                RankedItem(posting_id="p2", version=3, score=0.42, parts={"dense": 0.1}),
                RankedItem(posting_id="p3", version=1, score=0.1, parts={}),
            ),
            total=17,
            depth_served=250,
            understood=(
                Understood(label="in Ohio", span="Ohio", filter=filters.is_in("location.region", "OH")),
                Understood(
                    label="remote",
                    span="remote",
                    filter=filters.is_in("remote", "REMOTE"),
                    needs_values=True,
                    applied=False,
                ),
            ),
            degraded=("score cache: redis does not answer",),
            timings={"retrieve": 12.0, "score": 3.0},
        )
    }


@pytest.fixture
def cli(free_port, monkeypatch, tmp_path, asked, answers):
    """Runs `penstock …` against servers of this test's own."""

    def get(request, context):
        asked.append(request)
        known = [ROWS.get(i, rpc.Row(posting_id=i, state=rpc.RowState.ABSENT)) for i in request.posting_ids]
        return rpc.GetReply(rows=tuple(known), shard="shard-0")

    def explain(request, context):
        asked.append(request)
        effects = (rpc.ClauseEffect(clause=filters.describe(request.filters), passed=12, missing=5),)
        return rpc.ExplainReply(filter="", postings=40, passed=12, clauses=effects, plan=("shard-0: 3 of 9 blocks",))

    def rank(request, context):
        asked.append(request)
        if isinstance(answers["result"], Exception):
            raise answers["result"]
        return answers["result"]

    retrieval, ranker = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    servers = [
        grpc_avro.serve(retrieval, {rpc.Retrieval.GET: get, rpc.Retrieval.EXPLAIN: explain}),
        grpc_avro.serve(ranker, {rpc.Ranker.RANK: rank}),
    ]
    monkeypatch.setenv("PENSTOCK_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("PENSTOCK_RETRIEVAL__LISTEN", retrieval)
    monkeypatch.setenv("PENSTOCK_RANKER__LISTEN", ranker)
    monkeypatch.setenv("COLUMNS", "200")
    yield lambda *arguments: CliRunner().invoke(app, list(arguments))
    for server in servers:
        server.stop(None).wait()


def test_search_shows_ranks_titles_and_what_was_understood(cli, asked):
    result = cli("search", "nurse in Ohio, remote", "--filter", "salary.annual_max>=60000", "-f", "remote=REMOTE")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert any("Night nurse" in line and "0.910" in line and "Columbus, Ohio" in line for line in lines)
    assert "Day [nurse]" in result.stdout  # brackets are text, not markup
    assert "p3 (withdrawn since)" in result.stdout
    assert "in Ohio (applied)" in result.stdout
    assert "remote (not applied: no posting here has this value)" in result.stdout
    assert "degraded: score cache" in result.stdout
    assert "retrieve 12 ms" in result.stdout
    query = asked[0].query
    assert query.text == "nurse in Ohio, remote"
    assert query.filters == filters.all_of(filters.parse("salary.annual_max>=60000"), filters.parse("remote=REMOTE"))


def test_search_asks_for_the_tenant_named(cli, asked):
    assert cli("search", "nurse", "--tenant", "acme").exit_code == 0
    assert asked[0].tenant == "acme"
    assert cli("search", "nurse").exit_code == 0
    assert [r.tenant for r in asked if isinstance(r, RankRequest)] == ["acme", "default"]
    assert cli("search", "nurse", "--tenant", "").exit_code == 2


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        (
            grpc_avro.Refused("12 s of work wait", 1.25, tenant=True),
            "the ranker is busy: this tenant asks more than its share of it; try again in 1.2 s (12 s of work wait)",
        ),
        (grpc_avro.Refused("12 s of work wait", 0.5), "the ranker is busy: try again in 0.5 s (12 s of work wait)"),
        (grpc_avro.Refused("64 streams are open"), "the ranker is busy: 64 streams are open"),
    ],
)
def test_a_search_that_is_refused_says_when_to_come_back(cli, answers, refused, said):
    answers["result"] = refused
    result = cli("search", "nurse")
    assert (result.exit_code, result.stderr.strip()) == (1, said)


def test_search_explains_scores_and_trees(cli):
    result = cli("search", "nurse", "--explain")
    assert "dense 0.5 lexical 0.25" in result.stdout
    assert "location.region=OH" in result.stdout


def test_search_explains_what_each_filter_does(cli, asked):
    result = cli("search", "nurse", "--explain", "--tenant", "acme")
    [line] = [line for line in result.stdout.splitlines() if line.startswith("location.region=OH")]
    assert line.split()[1:] == ["12", "40", "5"]
    [ask] = [request for request in asked if isinstance(request, rpc.ExplainRequest)]
    assert (ask.tenant, ask.filters) == ("acme", filters.is_in("location.region", "OH"))  # what was applied, alone
    assert "shard-0: 3 of 9 blocks" in result.stdout
    document = json.loads(cli("search", "nurse", "--explain", "--json").stdout)
    assert document["explanation"]["clauses"][0]["passed"] == 12
    assert "explanation" not in json.loads(cli("search", "nurse", "--json").stdout)


def test_search_in_json_is_one_document(cli, asked):
    result = cli("search", "nurse", "--json", "--size", "7")
    document = json.loads(result.stdout)
    assert [item["posting"] and item["posting"]["title"] for item in document["items"]] == [
        "Night nurse",
        "Day [nurse]",
        None,
    ]
    assert document["understood"][0]["text"] == "in Ohio [location.region=OH] applied"
    assert asked[0].page.size == 7


@pytest.mark.parametrize(
    ("clause", "names"),
    [
        ("salary.annual_max>=x", "salary.annual_max"),
        ("salary>=1", "salary"),
        ("remote=SOMETIMES", "remote"),
        ("location~1,2", "location"),
        ("posted_at>=yesterday", "posted_at"),
        ("gibberish", "FIELD=VALUE"),
    ],
)
def test_a_wrong_filter_is_a_wrong_argument_naming_the_field(cli, asked, clause, names):
    result = cli("search", "nurse", "--filter", clause)
    assert result.exit_code == 2
    assert "--filter" in result.stderr and names in result.stderr
    assert result.stdout == "" and asked == []


@pytest.mark.parametrize("arguments", [("search",), ("search", " "), ("search", "x", "--size", "0"), ("nonsense",)])
def test_other_wrong_arguments_exit_with_two(cli, arguments):
    result = cli(*arguments)
    assert result.exit_code == 2 and result.stderr


def test_what_the_server_refuses_is_a_wrong_argument(cli, answers):
    answers["result"] = InvalidRecord("page.cursor", "x", "a cursor of a result")
    result = cli("search", "nurse", "--cursor", "x")
    assert result.exit_code == 2 and "page.cursor" in result.stderr


def test_an_answer_that_is_an_error_is_a_failure(cli, answers):
    answers["result"] = RankResult(request_id="r", error="the deadline has passed", timings={})
    result = cli("search", "nurse")
    assert result.exit_code == 1 and "the deadline has passed" in result.stderr


def test_get_shows_a_row_and_its_json(cli):
    assert "Night nurse" in cli("get", "p1").stdout
    document = json.loads(cli("get", "p1", "--json").stdout)
    assert document["state"] == "LIVE"
    assert document["update"]["attributes"]["title"] == "Night nurse"
    assert "dense" not in document["update"]["vector"]


def test_get_of_nothing_fails_and_still_speaks_json(cli):
    result = cli("get", "nobody", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["state"] == "ABSENT"
    assert "nobody" in result.stderr


def test_get_waits_for_a_version_and_says_when_it_did_not_come(cli, asked):
    assert cli("get", "p1", "--min-version", "3").exit_code == 0
    assert cli("get", "p1", "--min-version", "4").exit_code == 1
    assert asked[-1].min_version.version == 4


# --- without a stack ---------------------------------------------------------------------------------------------


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """No stack, no variables."""
    for name in [name for name in os.environ if name.startswith("PENSTOCK_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PENSTOCK_DATA_DIR", str(tmp_path))
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def write(tmp_path, *lines):
    file = tmp_path / "lines.jsonl"
    file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(file)


GOOD = json.dumps({"posting_id": "a", "version": 1, "title": "T", "description": "D"})


def test_strict_publishing_names_each_wrong_line_and_field(alone, tmp_path):
    file = write(
        tmp_path,
        GOOD,
        json.dumps({"posting_id": "b", "version": 1, "title": "T"}),
        "",
        json.dumps({"posting_id": "c", "version": "one", "title": "T", "description": "D"}),
        "not json",
        json.dumps({"posting_id": "d", "version": 1, "title": "T", "description": "D", "sallary": 1}),
    )
    result = alone("publish", "postings", file, "--strict")
    assert result.exit_code == 1
    told = [line for line in result.stderr.splitlines() if line.startswith(file)]
    assert [line[len(file) :].split(":")[1] for line in told] == ["2", "4", "5", "6"]
    for line, name in zip(told, ["description", "version", "not JSON", "sallary"], strict=True):
        assert name in line
    assert "nothing was published" in result.stderr


def test_strict_publishing_of_queries_checks_their_rules(alone, tmp_path):
    file = write(tmp_path, json.dumps({"request_id": "q", "text": "x", "deadline_ms": 0}))
    result = alone("publish", "queries", file, "--strict")
    assert result.exit_code == 1 and "deadline_ms" in result.stderr


def test_publishing_a_file_that_is_not_there(alone):
    result = alone("publish", "postings", "nowhere.jsonl")
    assert result.exit_code == 2 and "nowhere.jsonl" in result.stderr


@pytest.mark.parametrize("arguments", [("search", "nurse"), ("get", "p1")])
def test_without_a_stack_the_way_to_start_one_is_told(alone, tmp_path, arguments, monkeypatch, free_port):
    # A file of a stack that is down: its ports are dead, and nobody else's can be hit by accident.
    dead = f'listen = "127.0.0.1:{free_port()}"'
    (tmp_path / "penstock.toml").write_text(f"[ranker]\n{dead}\n[retrieval]\n{dead}\n", encoding="utf-8")
    result = alone(*arguments)
    assert result.exit_code == 1
    assert result.stderr.strip() == f"no stack is running in {tmp_path}: start one with `penstock up`"


def test_a_wrong_setting_is_named(alone, tmp_path):
    (tmp_path / "penstock.toml").write_text('[ranker]\nworkers = "many"\n', encoding="utf-8")
    result = alone("search", "nurse")
    assert result.exit_code == 2 and "ranker.workers" in result.stderr


def test_somebody_elses_system_is_named_by_its_address(alone, monkeypatch, free_port):
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("PENSTOCK_RANKER__LISTEN", address)
    result = alone("search", "nurse")
    assert result.exit_code == 1 and address in result.stderr and "penstock up" not in result.stderr


def test_an_unexpected_error_is_one_sentence_unless_debugging(alone, tmp_path, monkeypatch):
    (tmp_path / "penstock.toml").write_bytes(b'title = "\xff\xfe"')  # not even text
    result = alone("get", "p1")
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1
    assert "PENSTOCK_DEBUG=1" in result.stderr
    monkeypatch.setenv("PENSTOCK_DEBUG", "1")
    assert isinstance(alone("get", "p1").exception, UnicodeDecodeError)


def test_the_demo_does_not_touch_a_configured_system_unless_told_to(alone, monkeypatch, free_port):
    brokers = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("PENSTOCK_KAFKA__BOOTSTRAP_SERVERS", brokers)
    result = alone("demo")
    assert result.exit_code == 2 and brokers in result.stderr and "--on-configured" in result.stderr
    told = alone("demo", "--on-configured")
    assert told.exit_code == 1 and "no Kafka broker answers" in told.stderr


# --- starting ----------------------------------------------------------------------------------------------------


def test_help_names_every_command(alone):
    text = alone("--help").stdout
    for command in (
        "demo",
        "search",
        "get",
        "publish",
        "subscriptions",
        "alerts",
        "dlq",
        "serve",
        "up",
        "down",
        "status",
        "logs",
        "doctor",
    ):
        assert f"│ {command} " in text, command


def test_starting_imports_nothing_heavy():
    heavy = ["torch", "transformers", "pyflink", "confluent_kafka", "grpc", "numpy", "pydantic", "redis", "supervisor"]
    code = f"import sys, penstock.infra.cli.main; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_version_is_the_packages(alone):
    result = alone("--version")
    assert result.exit_code == 0 and result.stdout.startswith("penstock 0.")


def test_filters_are_records_of_the_wire():
    """What --filter builds is what the wire carries: nothing of the command line's own in between."""
    from penstock.infra.cli.search import parse_filters

    assert isinstance(parse_filters(["remote=REMOTE"]), Filter)
    assert parse_filters([]) is None


@pytest.mark.parametrize(
    ("words", "offers"),
    [
        ("penstock d", ["demo", "dlq", "doctor", "down"]),
        ("penstock search x --filter salary.a", ["salary.annual_min>=", "salary.annual_max>="]),
        ("penstock dlq list --topic jobs", ["jobs.posting.v1"]),
    ],
)
def test_the_shell_completes_commands_filters_and_topics(alone, monkeypatch, words, offers):
    monkeypatch.setenv("_PENSTOCK_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    result = CliRunner().invoke(app, [], prog_name="penstock")
    assert sorted(result.stdout.split()) == sorted(offers)


@pytest.mark.parametrize("command", ["up", "demo"])
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--model", "."), "--model"),
        (("--scorer", "fused", "--model", "."), "goes with --scorer engine or --scorer transformers"),
        (("--scorer", "remote"), "expected its address in ranker.remote.url"),
        (("--scorer", "transformers"), "needs --model DIR"),
        (("--scorer", "engine", "--model", "."), "has no config.json"),
        (("--scorer", "engine", "--model", "gone"), "gone"),
        (("--scorer", "qwen3"), "qwen3"),
    ],
)
def test_a_scorer_that_cannot_be_is_refused_before_anything_starts(tmp_path, monkeypatch, command, arguments, says):
    for name in [name for name in os.environ if name.startswith("PENSTOCK_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, [command, *arguments])
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert not (tmp_path / ".penstock").exists()
