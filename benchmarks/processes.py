"""What a benchmark runs beside itself: a process of its own, spoken to over a pipe, gone when the pipe is closed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import psutil

from penstock.infra.local import ports

END_S = 10.0


@contextlib.contextmanager
def beside(
    target: Callable[..., Any], *args: object, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[Connection, psutil.Process]]:
    """`target(*args, its end of the pipe)` in a fresh interpreter; our end, and the process to look at.

    It ends with the block. `environment`: beside what this process has.
    """
    ours, its = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=target, args=(*args, its), daemon=True)
    kept = dict(os.environ)
    os.environ.update(environment or {})  # the new interpreter gets what stands here
    try:
        process.start()
    finally:
        os.environ.clear()
        os.environ.update(kept)
    its.close()
    try:
        yield ours, psutil.Process(process.pid)
    finally:
        ours.close()
        process.join(END_S)
        process.kill()


def free_port() -> int:
    """A loopback port that nobody listens on at the moment of asking."""
    port = ports.candidate()
    while not ports.is_free(port):
        port = ports.candidate()
    return port


def leave(pipe: Connection) -> NoReturn:
    """For the process beside: waits until the other end is closed, then goes, with nothing to save."""
    with contextlib.suppress(EOFError):
        while True:
            pipe.recv()
    os._exit(0)
