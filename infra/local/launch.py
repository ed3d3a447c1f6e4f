"""How supervisord's children begin: bind this process's life to its parent's, clear the way, become the program.

`python -I -S launch.py FILE` with FILE = {"part", "stack", "argv", "env", "has_children"}. It runs between fork and
exec of every part, so it is small and imports the standard library alone:

1. ask the kernel to kill this process when supervisord dies, even by SIGKILL (prctl PR_SET_PDEATHSIG, kept by exec);
2. kill what an earlier life of the same part left behind;
3. for a part with children of its own, which the kernel's promise does not cover (a TaskManager's Python workers
   would outlive it for minutes), leave a watcher that kills the rest of the process group when its leader is gone;
4. exec.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """SIGKILL to this process when its parent ends; at once if it has ended already."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def kill_leftovers(stack: str, part: str) -> None:
    """SIGKILL to every other process that carries this stack's and this part's mark in its environment."""
    marks = (f"\0PENSTOCK_STACK={stack}\0".encode(), f"\0PENSTOCK_PART={part}\0".encode())
    for name in os.listdir("/proc"):  # noqa: PTH208  no pathlib: every import costs each part its start
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as file:  # noqa: PTH123  likewise
                environment = b"\0" + file.read() + b"\0"
            if all(mark in environment for mark in marks):
                os.kill(int(name), signal.SIGKILL)
        except OSError:
            continue  # ended meanwhile, or another user's


def watch_group() -> None:
    """Fork a process that outlives everybody, waits for this one's end, and then ends this one's process group."""
    leader = os.getpid()
    if os.getpgrp() != leader:
        os.setpgrp()
    if os.fork():
        return
    os.setsid()  # out of the group, and of the terminal's reach
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):  # supervisord waits for the end of these
        os.dup2(nowhere, standard)
    with contextlib.suppress(ProcessLookupError):  # ended before we looked
        ended = select.poll()
        ended.register(os.pidfd_open(leader), select.POLLIN)
        ended.poll()
    with contextlib.suppress(ProcessLookupError):  # none left
        os.killpg(leader, signal.SIGKILL)
    os._exit(0)


def main(path: str) -> None:
    parent = os.getppid()
    die_with_parent(parent)
    with open(path, encoding="utf-8") as file:  # noqa: PTH123  likewise
        plan = json.load(file)
    kill_leftovers(plan["stack"], plan["part"])
    if plan["has_children"]:
        watch_group()
    environment = {**os.environ, **plan["env"], "PENSTOCK_STACK": plan["stack"], "PENSTOCK_PART": plan["part"]}
    os.execvpe(plan["argv"][0], plan["argv"], environment)


if __name__ == "__main__":
    main(sys.argv[1])
