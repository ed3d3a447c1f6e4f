"""The device cell of live updates: searches on one stream while another writes 100,000 rows a second.

The writer is a thread with a stream of its own. Every PERIOD it stages what has come since, sends the records and the
zone maps of their blocks, and publishes an epoch in which they are born and as many older rows die. A row is visible
when the epoch's word has been written; how late that is counts from when the first row of its batch came. Searches are
of the newest epoch, without pause, in phases with the writer and without it by turns.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.kerneling.stores import HASH, NEVER, ODD, TENANT, Store, asked, drawn, share
from benchmarks.kerneling.timing import BUFFERS, timed
from penstock.kernels.filtered_topk.triton import filtered_topk
from penstock.kernels.filtered_topk.workspace import Workspace
from penstock.kernels.scatter_rows.segments import of_blocks, of_rows
from penstock.kernels.scatter_rows.staging import Publication, Staging
from penstock.kernels.slabs.layout import BLOCK

if TYPE_CHECKING:
    from benchmarks.kerneling.cells import Session

RATE = 100_000  # rows a second
PERIOD = 0.002  # s between batches
PHASES, PHASE_S = 8, 3.0
SPARE = 0.25  # of the rows: room that the writer fills
BATCH, K, WIDTH = 16, 1_000, 256


class Writer:
    """Owns the second stream and everything that is sent on it; searches read `epoch`.

    `tick` sends what has come since the last one. On a GPU a thread ticks; on a CPU, whose interpreter is not for
    threads, whoever searches does.
    """

    def __init__(self, store: Store, first: int, rate: int = RATE) -> None:
        """first: the first free slot, from which on blocks are the writer's."""
        layout, device = store.layout, store.device
        self.store, self.first, self.rate = store, first, rate
        self.room = store.slabs.pages * layout.rows - first
        self.most = max(1, int(rate * PERIOD * 4))  # rows of a batch
        self.epoch, self.written = 1, 0
        self.late: list[float] = []  # milliseconds from a batch's first row to its being visible
        self.failed: BaseException | None = None
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._rows = Staging(of_rows(layout), self.most, device)
        self._blocks = Staging(of_blocks(layout), self.most // BLOCK + 2, device)
        self._publication = Publication(2 * self.most, device)
        self._word = torch.zeros(1, dtype=torch.int64, device=device)
        self._values, self._bounds = _records(layout, self.most), _zones(layout)
        self._begun, self._sent = 0.0, 0

    def begin(self) -> None:
        """From now on rows come."""
        self._begun, self._sent = time.perf_counter(), 0

    def run(self, stop: threading.Event) -> None:
        try:
            while not stop.is_set():
                if not self.tick():
                    stop.wait(PERIOD / 4)
        except BaseException as error:  # it is raised where the thread is joined
            self.failed = error

    def tick(self) -> bool:
        """Sends a batch and waits until it is visible, if one is due."""
        came = int((time.perf_counter() - self._begun) * self.rate) - self._sent
        if came < max(1, int(self.rate * PERIOD)):
            return False
        arrived, count = self._begun + self._sent / self.rate, min(came, self.most)
        layout, table = self.store.layout, self.store.slabs.table
        slots = self.first + (self.written + torch.arange(count)) % self.room
        self._rows.ready()
        self._blocks.ready()
        self._rows.slots[:count] = slots
        for name, value in self._values.items():
            self._rows.field(name)[:count] = value[:count]
        self._rows.field(f"column.{HASH}")[:count, 0] = (slots + self.room * self.epoch) * ODD
        touched = torch.unique(slots // BLOCK)[: self._blocks.rows]
        self._blocks.slots[: len(touched)] = touched
        for name, bound in self._bounds.items():
            self._blocks.field(name)[: len(touched)] = bound
        self._rows.send(table, count, self._stream)
        self._blocks.send(table, len(touched), self._stream)
        self._publication.send(
            table,
            self._word,
            epoch=self.epoch + 1,
            dead=[(self.written + at) % self.first for at in range(count)],
            born=slots.tolist(),
            per_page=layout.rows,
            birth=layout.arrays["birth"].offset,
            death=layout.arrays["death"].offset,
            stream=self._stream,
        )
        if self._stream is not None:
            self._stream.synchronize()
        self.late.append((time.perf_counter() - arrived) * 1e3)
        self.epoch += 1
        self.written += count
        self._sent += count
        return True


def _records(layout: Any, count: int) -> dict[str, torch.Tensor]:
    """What `count` new rows hold, by field; drawn once: what is written costs the same whatever it says."""
    segments = of_rows(layout)
    out = {}
    for name, dtype in segments.dtypes.items():
        size = segments.place(name)[1] // dtype.itemsize
        value = torch.randn(count, size) if dtype.is_floating_point else torch.zeros(count, size)
        out[name] = value.to(dtype)
    out["dense"] = torch.nn.functional.normalize(out["dense"].float(), dim=1).bfloat16()
    out["expires"].fill_(NEVER)
    out["tenant"].fill_(TENANT)
    return out


def _zones(layout: Any) -> dict[str, float]:
    """Of a block that new rows go to: as wide as can be."""
    out: dict[str, float] = dict.fromkeys(of_blocks(layout).dtypes, 0)
    out |= {"zone.rows": BLOCK, "zone.expires_max": NEVER, "zone.tenants": 1 << TENANT}
    for name in out:
        if name.endswith((".low", ".high")):
            out[name] = -torch.inf if name.endswith(".low") else torch.inf
        elif name == "zone.norms":
            out[name] = 1.01
    return out


def churning(
    session: Session, phase_s: float = PHASE_S, phases: int = PHASES, rate: int = RATE, k: int = K, width: int = WIDTH
) -> dict[str, float]:
    filled = int(session.rows / (1 + SPARE)) // session.page_rows * session.page_rows
    store = drawn(session.rows, width, session.device, page_rows=session.page_rows)
    _emptied(store, filled)
    filters = share(store.layout, 0.0, 1.0, session.device)
    workspace, on_gpu = Workspace(session.device), session.device.type == "cuda"
    queries = [asked(BATCH if on_gpu else 1, width, seed) for seed in range(BUFFERS)]
    writer = Writer(store, filled, rate)
    spent: dict[bool, list[float]] = {False: [], True: []}

    def search(turn: int) -> float:
        filters.epochs.fill_(writer.epoch)
        begin = time.perf_counter()
        filtered_topk(store.slabs, filters, queries[turn % BUFFERS], k, hashes=HASH, workspace=workspace)
        if on_gpu:
            torch.cuda.current_stream().synchronize()
        return (time.perf_counter() - begin) * 1e3

    for turn in range(BUFFERS):
        search(turn)
    for phase in range(phases):
        writing, stop = phase % 2 == 1, threading.Event()
        thread = threading.Thread(target=writer.run, args=(stop,))
        writer.begin()
        if writing and on_gpu:
            thread.start()
        until, turn = time.perf_counter() + phase_s, 0
        while time.perf_counter() < until or not turn:
            spent[writing].append(search(turn))
            if writing and not on_gpu:
                writer.tick()
            turn += 1
        stop.set()
        if writing and on_gpu:
            thread.join()
        if writer.failed is not None:
            raise writer.failed
    quiet, busy, late = timed(spent[False]), timed(spent[True]), timed(writer.late)
    seconds = phase_s * (phases // 2)
    session.cells.append(
        {
            "cell": "churn",
            "rows": filled,
            "rows_a_second": writer.written / seconds,
            "quiet_ms": [quiet.median, quiet.p99],
            "busy_ms": [busy.median, busy.p99],
            "visible_ms": [late.median, late.p99],
        }
    )
    if on_gpu and writer.written < 0.95 * rate * seconds:
        raise RuntimeError(f"the writer came to {writer.written / seconds:,.0f} rows a second of {rate:,}")
    return {"churn/100k_p99_ratio": busy.p99 / quiet.p99, "churn/visible_p99_ms": late.p99}


def _emptied(store: Store, first: int) -> None:
    """Rows from `first` on are unborn, and their blocks hold none: the writer's room."""
    page = first // store.layout.rows
    for arena in store.arenas[page:]:
        store.layout.view(arena, "birth").fill_(NEVER)
        store.layout.view(arena, "zone.rows").zero_()
