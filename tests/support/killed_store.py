"""A store that is killed again and again while it applies its log and writes snapshots.

    python killed_store.py FOLDER SEED KILLS

Each life is a fork: it restores the newest snapshot, replays the log from there and goes on, with a snapshot now and
then, until SIGKILL comes at a call drawn at random: any call, of Python or of C, that the store makes; in every other
life, any of those that write a snapshot. After each death a line of JSON says what a restart finds.
"""

import json
import os
import random
import signal
import sys
from pathlib import Path

import torch
from store_inputs import gone, upsert, vector

from penstock.retrieval.store.slabs import POSTINGS
from penstock.retrieval.store.snapshot import Covered, Snapshots
from penstock.retrieval.store.store import Store

IDS, BATCH = 400, 25


def log_of(seed, length=1_500):
    """Inserts, changes, latecomers, deletions and expiries over a few hundred ids."""
    draw = random.Random(seed)
    log = []
    for _ in range(length):
        posting_id, version = f"p{draw.randrange(IDS)}", draw.randrange(12)
        if draw.random() < 0.15:
            log.append(gone(posting_id, version))
            continue
        made = vector([draw.randrange(-3, 4) for _ in range(6)], [draw.randrange(-9, 9) for _ in range(16)])
        log.append(
            upsert(
                posting_id,
                version,
                vector=made if draw.random() < 0.8 else None,
                company=f"c{draw.randrange(5)}",
                skills=tuple(f"s{draw.randrange(30)}" for _ in range(draw.randrange(12))),
                expires_at=draw.choice([None, 10**9]),
                posted_at=draw.randrange(6) * 7 * 86_400_000,
            )
        )
    return log


def opened(folder, first_epoch):
    """(store, snapshots, offset in the log from which to replay, problems)."""
    snapshots = Snapshots(folder, POSTINGS)
    store = Store(page_rows=128, first_epoch=first_epoch, hold_ms=0)
    restored = snapshots.restore(store)
    return store, snapshots, restored.covered.offsets[0] if restored.covered else 0, restored.problems


class Killer:
    """Kills this process at its `calls`th call; with `in_snapshots`, of those made while one is written."""

    def __init__(self, calls, in_snapshots):
        self.left = calls
        self.counting = not in_snapshots
        sys.setprofile(self)

    def __call__(self, frame, event, arg):
        self.left -= self.counting and event in ("call", "c_call")
        if self.left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)


def live(folder, log, life, every, killer):
    """One life: to the end of the log, a snapshot every so many batches."""
    store, snapshots, offset, _ = opened(folder, life * 10_000)
    batches = 0
    while offset < len(log):
        store.apply(log[offset : offset + BATCH], now_ms=offset)
        offset = min(offset + BATCH, len(log))
        batches += 1
        if batches % every == 0:
            before, killer.counting = killer.counting, True
            snapshots.write(store.capture(), Covered({0: offset}, "log"))
            killer.counting = before


def killed(act):
    """Runs `act` in a fork. True when it was killed, False when it came to its end."""
    child = os.fork()
    if not child:
        act()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def main(folder, seed, kills):
    torch.set_num_threads(1)
    log, draw = log_of(seed), random.Random(seed + 1)
    whole = Store(page_rows=128)
    whole.apply(log, now_ms=0)
    for life in range(1, kills + 1):
        in_snapshots, every = life % 2 == 0, draw.choice((1, 2, 5))
        calls = draw.randrange(1, 6_000) if in_snapshots else int(10 ** draw.uniform(2, 5.2))
        was = killed(
            lambda life=life, how=(calls, in_snapshots), every=every: live(folder, log, life, every, Killer(*how))
        )
        torn = len(list(folder.glob("*.tmp")))
        store, _, offset, problems = opened(folder, (life + kills) * 10_000)
        restored = store.counts().live
        store.apply(log[offset:], now_ms=0)
        ids = [f"p{number}" for number in range(IDS)]
        same = [row.update for row in store.get(ids, now_ms=0)] == [row.update for row in whole.get(ids, now_ms=0)]
        print(
            json.dumps(
                {
                    "calls": calls,
                    "killed": was,
                    "torn": torn,
                    "offset": offset,
                    "restored": restored,
                    "problems": problems,
                    "same": same and store.checksum() == whole.checksum(),
                }
            ),
            flush=True,
        )
        if offset == len(log):  # nothing left to do: the next life begins anew
            for file in folder.iterdir():
                file.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
