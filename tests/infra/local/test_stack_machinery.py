"""Start, kill, heal, interrupt, stop: on real processes under a real supervisord, with trivial programs as parts."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from trivial_stack import TrivialStack
from waiting import eventually

from penstock.infra.local import processes
from penstock.infra.local.errors import PartFailed

SUPPORT = Path(__file__).parents[2] / "support"


def pid_of(stack, part):
    return int(stack.pid_file(part).read_text())


def gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def kill(pid):
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: gone(pid), f"process {pid} is gone")


@pytest.fixture
def stack(tmp_path):
    made = TrivialStack(tmp_path / "a folder with 100 % odd; name")
    yield made
    made.down()
    assert processes.members(made.layout.root) == []


def test_parts_come_up_in_order_and_a_second_up_changes_nothing(stack):
    lines = []
    stack.up(lines.append)
    assert [line.split()[0] for line in lines] == ["ground", "wall", "paint", "roof"]
    assert all(" healthy " in line for line in lines)
    before = [pid_of(stack, part) for part in ("ground", "wall", "roof")]
    again = []
    stack.up(again.append)
    assert all("already up" in line for line in again)
    assert [pid_of(stack, part) for part in ("ground", "wall", "roof")] == before


def test_down_leaves_nothing_and_is_harmless_twice(stack):
    stack.up()
    assert len(processes.members(stack.layout.root)) >= 5  # supervisord, three parts, a child
    stack.down()
    assert processes.members(stack.layout.root) == []
    stack.down()
    stack.up()
    assert stack.running()


@pytest.mark.parametrize("victim", ["ground", "wall", "roof"])
def test_up_heals_a_killed_part_and_leaves_the_others(stack, victim):
    stack.up()
    others = {part: pid_of(stack, part) for part in ("ground", "wall", "roof") if part != victim}
    dead = pid_of(stack, victim)
    kill(dead)
    stack.up()
    assert pid_of(stack, victim) != dead
    assert {part: pid_of(stack, part) for part in others} == others


def test_up_heals_a_part_that_supervisord_gave_up(stack):
    stack.up()
    stack._supervisor().stop_process("wall")
    stack.up()
    assert stack._supervisor().process("wall").alive


def test_children_of_a_part_do_not_outlive_it(stack):
    stack.up()
    eventually(stack.pid_file("child").is_file, "the child runs")
    child = pid_of(stack, "child")
    kill(pid_of(stack, "roof"))
    eventually(lambda: gone(child), "the child went with its part")


def test_nothing_outlives_a_killed_supervisord_and_up_starts_anew(stack):
    stack.up()
    eventually(stack.pid_file("child").is_file, "the child runs")
    pids = [pid_of(stack, part) for part in ("ground", "wall", "roof", "child")]
    kill(stack._supervisor().pid())
    for pid in pids:
        eventually(lambda pid=pid: gone(pid), f"process {pid} went with supervisord")
    assert not stack.running()
    stack.up()
    assert stack.running()
    assert not set(pids) & {pid_of(stack, part) for part in ("ground", "wall", "roof")}


def test_a_failed_start_says_why_and_leaves_nothing(tmp_path):
    stack = TrivialStack(tmp_path / "s", broken="roof")
    with pytest.raises(PartFailed) as failure:
        stack.up()
    assert failure.value.part == "roof"
    assert "the beam is cracked" in str(failure.value)
    assert str(stack.layout.log("roof")) in str(failure.value)
    assert processes.members(stack.layout.root) == []


def test_failed_healing_leaves_the_healthy(stack):
    stack.up()
    ground = pid_of(stack, "ground")
    stack._supervisor().stop_process("roof")
    stack.broken = "roof"
    with pytest.raises(PartFailed):
        stack.up()
    assert pid_of(stack, "ground") == ground
    assert not gone(ground)
    assert not stack._supervisor().process("roof").going
    stack.broken = ""
    stack.up()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_up(tmp_path, how):
    """Ctrl-C leaves no process. A killed `up` cannot clear up, but the next `down` does."""
    root = tmp_path / "s"
    process = subprocess.Popen(
        [sys.executable, str(SUPPORT / "trivial_stack.py"), str(root)],
        stdout=subprocess.PIPE,
        text=True,
        # As in a terminal: a shell that runs the tests in the background hands on an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        for line in process.stdout:
            if line.startswith("paint"):
                break
        stack = TrivialStack(root)
        eventually(lambda: stack._supervisor().process("roof").alive, "roof is starting")
        process.send_signal(how)
        assert process.wait(30) == (130 if how is signal.SIGINT else -how)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    if how is signal.SIGKILL:
        assert stack.running()
        stack.down()
    assert processes.members(root) == []


def test_two_at_once_take_turns(stack):
    lines = []
    stack.layout.root.mkdir()
    with stack._locked(lines.append):
        other = threading.Thread(target=stack.up, args=(lines.append,))
        other.start()
        eventually(lambda: lines, "the second says that it waits")
        assert not stack.running()
    other.join(30)
    assert "waiting for another" in lines[0]
    assert stack.running()


def test_a_sweep_leaves_other_stacks_alone(tmp_path):
    one, two = TrivialStack(tmp_path / "s"), TrivialStack(tmp_path / "s2")
    try:
        one.up()
        two.up()
        one.down()
        assert processes.members(one.layout.root) == []
        assert not gone(pid_of(two, "ground"))
    finally:
        two.down()
        one.down()


def test_status_and_logs_need_no_stack(tmp_path):
    stack = TrivialStack(tmp_path / "never")
    assert {part.state for part in stack.status()} == {"stopped"}
    assert stack.logs("roof") == []
    with pytest.raises(KeyError, match="there are: ground"):
        stack.logs("roofing")
    stack.down()


def test_erase_removes_the_data_and_nothing_else(tmp_path):
    stack = TrivialStack(tmp_path / "s")
    stack.up()
    stack.down(erase=True)
    assert {path.name for path in stack.layout.root.iterdir()} <= {"stack.lock"}
    other = tmp_path / "precious"
    other.mkdir()
    (other / "thesis").write_text("years of work")
    with pytest.raises(Exception, match="does not look like a stack's data directory"):
        TrivialStack(other).down(erase=True)
    assert (other / "thesis").read_text() == "years of work"
