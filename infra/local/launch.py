"""How supervisord's children begin: bind this process's life to its parent's, clear the way, become the program.

`python -I -S launch.py FILE` with FILE = {"part", "stack", "argv", "env"}. It runs between fork and exec of every
part, so it is small, imports the standard library alone and leaves no process of its own:

1. ask the kernel to kill this process when supervisord dies, even by SIGKILL (prctl PR_SET_PDEATHSIG, kept by exec);
2. kill what an earlier life of the same part left behind (Python workers of a killed TaskManager);
3. exec.
"""

from __future__ import annotations

import ctypes
import json
import os
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


def main(path: str) -> None:
    parent = os.getppid()
    die_with_parent(parent)
    with open(path, encoding="utf-8") as file:  # noqa: PTH123  likewise
        plan = json.load(file)
    kill_leftovers(plan["stack"], plan["part"])
    environment = {**os.environ, **plan["env"], "PENSTOCK_STACK": plan["stack"], "PENSTOCK_PART": plan["part"]}
    os.execvpe(plan["argv"][0], plan["argv"], environment)


if __name__ == "__main__":
    main(sys.argv[1])
