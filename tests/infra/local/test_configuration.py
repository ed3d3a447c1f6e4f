"""What the stack writes and chooses, as functions of plain values: order, ports, files, checkpoints."""

import configparser
import os
import random
import sys
import threading
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.infra import settings as settings_module
from penstock.infra.local import config, flink, ports, processes, programs, provision
from penstock.infra.local.bringup import remedy
from penstock.infra.local.errors import PortTaken, StackError
from penstock.infra.local.layout import Layout
from penstock.infra.local.parts import PARTS, Kind, Part, in_order, stop_order
from penstock.infra.settings import Settings
from penstock.infra.topics_admin import all_topics, compare
from penstock.schemas import topics

CHOSEN = {name: 20_000 + number for number, name in enumerate(ports.LISTENERS)}


# --- order -------------------------------------------------------------------------------------------------------


def test_every_part_waits_only_for_earlier_waves():
    seen = set()
    for wave in in_order(PARTS):
        assert all(seen.issuperset(part.after) for part in wave)
        seen |= {part.name for part in wave}
    assert seen == {part.name for part in PARTS}


def test_jobs_wait_for_what_runs_and_feeds_them():
    for part in PARTS:
        if part.kind is Kind.JOB:
            assert {"topics", "jobmanager", "taskmanager"} <= set(part.after)


def test_a_cycle_and_an_unknown_name_are_refused():
    with pytest.raises(ValueError, match="wait for each other: a, b"):
        in_order([Part("a", "", after=("b",)), Part("b", "", after=("a",))])
    with pytest.raises(ValueError, match="a waits for z"):
        in_order([Part("a", "", after=("z",))])


def test_users_stop_before_what_they_use():
    order = [part.name for wave in stop_order(PARTS) for part in wave]
    assert set(order) == {part.name for part in PARTS if part.kind is Kind.PROCESS}
    assert order.index("ranker") < order.index("retrieval") < order.index("kafka")
    assert set(order[-2:]) == {"kafka", "redis"}


# --- ports -------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32), taken=st.sets(st.integers(10_000, 10_030), max_size=20), data=st.data())
def test_chosen_ports_are_distinct_and_free_and_the_wanted_and_the_old_are_kept(seed, taken, data):
    wanted = data.draw(st.dictionaries(st.sampled_from(ports.LISTENERS), st.just(9092), max_size=1))
    previous = {name: 10_000 + number for number, name in enumerate(ports.LISTENERS)}
    source = random.Random(seed)
    chosen = ports.choose(wanted, previous, lambda p: p not in taken, lambda: source.randrange(10_000, 10_060))
    assert set(chosen) == set(ports.LISTENERS)
    assert len(set(chosen.values())) == len(chosen)
    for name, port in chosen.items():
        if name in wanted:
            assert port == wanted[name]
            continue
        assert port not in taken
        if previous[name] not in taken:
            taken_meanwhile = port != previous[name] and previous[name] in chosen.values()
            assert port == previous[name] or taken_meanwhile


def test_a_port_in_use_is_named_with_its_setting_and_holder(free_port):
    import socket

    port = free_port()
    ports.require_free("redis", port)
    with socket.socket() as held:
        held.bind(("127.0.0.1", port))
        held.listen()
        with pytest.raises(PortTaken) as error:
            ports.require_free("redis", port)
    assert f"port {port} (redis.url) is in use by" in str(error.value)
    assert f"process {os.getpid()}" in str(error.value)


def test_candidates_are_out_of_the_way_of_outgoing_connections():
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert lowest <= 12_000 or all(10_000 <= ports.candidate() < lowest for _ in range(50))


def test_a_broker_elsewhere_is_not_ours_to_start():
    with pytest.raises(StackError, match=r"kafka\.bootstrap_servers is 'broker.example:9092'"):
        ports.port_of("kafka.bootstrap_servers", "broker.example:9092")


def test_settings_decide_ports_and_chosen_ones_stay(tmp_path, monkeypatch, free_port):
    monkeypatch.delenv("PENSTOCK_CONFIG", raising=False)
    layout = Layout.at(tmp_path)
    layout.make()
    mine = free_port()
    layout.settings.write_text(f'[redis]\nurl = "redis://127.0.0.1:{mine}/0"\n[ranker]\nworkers = 3\n')
    first = provision.choose_ports(layout, settings_module.load_at(tmp_path))
    assert first.configured == {"redis": mine}
    again = settings_module.load_at(tmp_path)
    assert again.ranker.workers == 3
    assert again.kafka.bootstrap_servers == f"127.0.0.1:{first.chosen['kafka']}"
    assert provision.choose_ports(layout, again) == first
    assert provision.unchanged_ports(layout, again) == first.all
    other = free_port()
    monkeypatch.setenv("PENSTOCK_FLINK__REST", f"127.0.0.1:{other}")
    with pytest.raises(StackError, match=r"flink\.rest changed while the stack runs"):
        provision.unchanged_ports(layout, settings_module.load_at(tmp_path))


def test_two_stacks_choose_apart(tmp_path):
    chosen = []
    for name in ("one", "two"):
        layout = Layout.at(tmp_path / name)
        layout.make()
        chosen.append(provision.choose_ports(layout, settings_module.load_at(tmp_path / name)).all)
    assert not set(chosen[0].values()) & set(chosen[1].values())


# --- files -------------------------------------------------------------------------------------------------------


def test_every_listener_is_on_loopback(tmp_path):
    layout = Layout.at(tmp_path)
    kafka = config.kafka_properties(layout, CHOSEN)
    assert all("//127.0.0.1:" in line for line in kafka.splitlines() if "listeners=" in line)
    assert "bind 127.0.0.1\n" in config.redis_conf(layout, CHOSEN, None)
    cluster = config.flink_config(layout, CHOSEN, Settings(), "/python", [])
    for key in ("jobmanager.bind-host", "taskmanager.bind-host", "taskmanager.host", "rest.bind-address"):
        assert f'{key}: "127.0.0.1"' in cluster


def test_flink_keeps_checkpoints_and_takes_its_pace_from_settings(tmp_path):
    settings = Settings(flink={"checkpoint_interval_ms": 700, "bundle_time_ms": 7, "bundle_size": 9})
    cluster = config.flink_config(Layout.at(tmp_path), CHOSEN, settings, "/python", ["--add-opens=a/b=c"])
    for line in (
        'execution.checkpointing.externalized-checkpoint-retention: "RETAIN_ON_CANCELLATION"',
        'execution.checkpointing.mode: "AT_LEAST_ONCE"',
        'execution.checkpointing.interval: "700 ms"',
        "python.fn-execution.bundle.time: 7",
        "python.fn-execution.bundle.size: 9",
        'state.backend.type: "rocksdb"',
        'env.java.opts.all: "--add-opens=a/b=c"',
    ):
        assert line in cluster.splitlines()


def test_redis_never_evicts_features_and_keeps_its_password_private(tmp_path):
    text = config.redis_conf(Layout.at(tmp_path), CHOSEN, 'a "quoted" word')
    assert "maxmemory-policy volatile-ttl\n" in text
    assert 'requirepass "a \\"quoted\\" word"\n' in text
    config.write(tmp_path / "redis.conf", text)
    assert (tmp_path / "redis.conf").stat().st_mode & 0o077 == 0


def test_supervisord_starts_nothing_by_itself(tmp_path):
    layout = Layout.at(tmp_path)
    kept = [part for part in PARTS if part.kind is Kind.PROCESS]
    launchers = {part.name: programs.launcher(layout, part.name) for part in kept}
    parser = configparser.RawConfigParser()
    parser.read_string(config.supervisord_conf(layout, kept, launchers))
    programs_of = [section for section in parser.sections() if section.startswith("program:")]
    assert len(programs_of) == len(kept)
    assert {parser[section]["autostart"] for section in programs_of} == {"false"}


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8),
        st.one_of(st.text(), st.integers(-(2**60), 2**60), st.booleans(), st.lists(st.integers(0, 9))),
        max_size=4,
    )
)
def test_toml_reads_back(values):
    tree = {"number": 1, "section": {"plain": "x", **values}, "other": {"table": {"a b": 'c\\d"e'}}}
    assert tomllib.loads(config.toml(tree)) == tree


def test_a_long_data_directory_gets_a_short_socket(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "r"))
    (tmp_path / "r").mkdir()
    assert Layout(Path("/data")).supervisor_socket() == Path("/data/run/supervisor.sock")
    long = Layout(Path("/" + "d" * 100)).supervisor_socket()
    assert long.is_relative_to(tmp_path / "r")
    assert long != Layout(Path("/" + "e" * 100)).supervisor_socket()
    assert long.parent.stat().st_mode & 0o077 == 0
    long.parent.chmod(0o777)
    with pytest.raises(PermissionError, match="must belong to this user alone"):
        Layout(Path("/" + "d" * 100)).supervisor_socket()


def test_the_script_that_submits_is_found_and_knows_every_job():
    from penstock.jobs.submit import JOBS

    assert programs.submit_script().is_file()
    assert [part.name for part in PARTS if part.kind is Kind.JOB] == list(JOBS)


def test_a_full_disk_and_a_taken_port_are_recognised(tmp_path):
    assert "disk is full" in remedy("java.io.IOException: No space left on device", tmp_path)
    assert "port is in use" in remedy("java.net.BindException: Address already in use", tmp_path)
    assert str(tmp_path) in remedy("never seen before", tmp_path)


def test_the_callers_own_processes_are_never_members(tmp_path, monkeypatch):
    monkeypatch.setenv(processes.MARK, str(tmp_path))
    assert processes.members(tmp_path) == []


# --- jobs --------------------------------------------------------------------------------------------------------


def checkpoint(root, job, number, at, size=1):
    folder = root / job / f"chk-{number}"
    folder.mkdir(parents=True)
    (folder / "_metadata").write_bytes(b"m" * size)
    os.utime(folder / "_metadata", (at, at))
    return folder


def test_the_newest_complete_checkpoint_of_any_life(tmp_path):
    assert flink.newest_checkpoint(tmp_path, ["a"]) is None
    checkpoint(tmp_path, "a", 9, at=100)
    newest = checkpoint(tmp_path, "b", 10, at=200)
    checkpoint(tmp_path, "c", 99, at=900)  # another job's
    checkpoint(tmp_path, "b", 12, at=300, size=0)  # being written
    (tmp_path / "b" / "chk-13").mkdir()  # likewise
    assert flink.newest_checkpoint(tmp_path, ["a", "b"]) == newest
    assert flink.newest_checkpoint(tmp_path, ["a"]) == tmp_path / "a" / "chk-9"
    same = checkpoint(tmp_path, "b", 11, at=200)
    assert flink.newest_checkpoint(tmp_path, ["a", "b"]) == same


def test_earlier_lives_are_dropped_only_when_the_present_has_a_checkpoint(tmp_path):
    record = flink.JobRecord(tmp_path / "jobs.json")
    first, second = record.add("postings"), record.add("postings")
    checkpoint(tmp_path, first, 1, at=1)
    flink.prune(tmp_path, record, "postings")
    assert record.ids("postings") == [first, second]
    checkpoint(tmp_path, second, 2, at=2)
    flink.prune(tmp_path, record, "postings")
    assert record.ids("postings") == [second]
    assert not (tmp_path / first).exists()
    assert record.ids("queries") == []


def test_a_submission_names_its_id_and_its_checkpoint(tmp_path):
    from penstock.jobs.submit import configuration

    record = flink.JobRecord(tmp_path / "jobs.json")
    before = record.add("postings")
    newest = checkpoint(tmp_path, before, 7, at=1)
    postings, queries = flink.submissions(tmp_path, record, ["postings", "queries"])
    assert record.ids("postings") == [before, postings.job_id]
    arguments = flink.run_arguments(Path("submit.py"), 2, str(postings), str(queries))
    assert arguments[arguments.index("-py") + 1 :] == ["submit.py", str(postings), str(queries)]
    name, said = configuration(str(postings))
    assert name == "postings"
    assert said["$internal.pipeline.job-id"] == postings.job_id
    assert said["execution.state-recovery.path"] == newest.as_uri()
    assert configuration(str(queries)) == ("queries", {"$internal.pipeline.job-id": queries.job_id})
    assert configuration("alerts") == ("alerts", {})
    with pytest.raises(ValueError, match="'quuries': expected NAME"):
        configuration("quuries")


def test_jobs_that_ask_together_are_submitted_in_one_go():
    goes, cancelled = [], threading.Event()
    together = flink.Together(lambda jobs, _: goes.append(sorted(jobs)), gather_s=0.2)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda job: together.submit(job, cancelled), ["a", "b", "c"]))
    assert goes == [["a", "b", "c"]]
    together.submit("d", cancelled)
    assert goes[1:] == [["d"]]


def test_what_goes_wrong_with_one_go_is_told_to_every_job_of_it():
    def fails(jobs, _):
        raise flink.SubmitFailed(f"{len(jobs)} jobs")

    together = flink.Together(fails, gather_s=0.2)
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(together.submit, job, threading.Event()) for job in ("a", "b")]
    assert [str(each.exception()) for each in asked] == ["2 jobs", "2 jobs"]


def test_what_flink_run_says_is_in_every_job_s_log(tmp_path):
    logs = [tmp_path / "a.log", tmp_path / "b.log"]
    logs[0].write_text("before\n")
    command = [sys.executable, "-c", "print('refused')"]
    flink.submit(command, os.environ, logs, threading.Event(), 60)
    assert [log.read_text() for log in logs] == ["before\nrefused\n", "refused\n"]


# --- topics ------------------------------------------------------------------------------------------------------


def test_every_topic_has_its_dead_letters():
    names = [topic.name for topic in all_topics()]
    assert len(set(names)) == 2 * len(topics.TOPICS)
    assert all(f"{topic.name}.dlq" in names for topic in topics.TOPICS)


def test_topics_that_differ_are_told():
    promised = {**topics.INDEX.config(), "segment.bytes": "7"}
    assert compare(topics.INDEX, topics.INDEX.partitions, promised) == []
    assert compare(topics.INDEX, topics.INDEX.partitions, {**promised, "cleanup.policy": "delete,compact"}) == []
    assert len(compare(topics.INDEX, 1, {**promised, "cleanup.policy": "delete"})) == 2
