"""The device cell of live updates: searches on one stream while another writes 100,000 rows a second.

The writer is a thread with a stream of its own. Every PERIOD it stages what has come since, sends the records and the
zone maps of their blocks, and publishes an epoch in which they are born and as many older rows die. A row is visible
when the epoch's word has been written; how late that is counts from when the first row of its batch came. Searches are
of the newest epoch, without pause, in phases with the writer and without it by turns.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.kerneling.stores import HASH, NEVER, TENANT, Store, asked, drawn, share
from benchmarks.kerneling.timing import BUFFERS, timed
from penstock.kernels.filtered_topk.run import Workspace
from penstock.kernels.filtered_topk.triton import filtered_topk
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


@dataclass(slots=True)
class Writer:
    """Owns the second stream and everything that is sent on it; `epoch` is read by searches."""

    store: Store
    first: int  # the first free slot
    rate: int = RATE
    epoch: int = 1
    written: int = 0
    late: list[float] = field(default_factory=list)  # milliseconds from a batch's first row to its being visible
    failed: BaseException | None = None

    def run(self, stop: threading.Event) -> None:
        try:
            self._run(stop)
        except BaseException as error:  # it is raised where the thread is joined
            self.failed = error

    def _run(self, stop: threading.Event) -> None:
        store, layout = self.store, self.store.layout
        device, most = store.device, max(1, int(self.rate * PERIOD * 4))
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        rows, blocks = Staging(of_rows(layout), most, device), Staging(of_blocks(layout), most // BLOCK + 2, device)
        publication = Publication(2 * most, device)
        word = torch.zeros(1, dtype=torch.int64, device=device)
        arrays, values = layout.arrays, _records(layout, most)
        begun, sent = time.perf_counter(), 0
        room = store.slabs.pages * layout.rows - self.first
        while not stop.is_set():
            came = int((time.perf_counter() - begun) * self.rate) - sent
            if came < self.rate * PERIOD:
                stop.wait(PERIOD / 4)
                continue
            arrived = begun + sent / self.rate
            count = min(came, most)
            slots = self.first + (self.written + torch.arange(count)) % room
            rows.ready()
            blocks.ready()
            rows.slots[:count] = slots
            for name, value in values.items():
                rows.field(name)[:count] = value[:count]
            touched = torch.unique(slots // BLOCK)[: blocks.rows]
            blocks.slots[: len(touched)] = touched
            for name, one in _zones(layout).items():
                blocks.field(name)[: len(touched)] = one
            rows.send(store.slabs.table, count, stream)
            blocks.send(store.slabs.table, len(touched), stream)
            publication.send(
                store.slabs.table,
                word,
                epoch=self.epoch + 1,
                dead=[(self.written + at) % self.first for at in range(count)],
                born=slots.tolist(),
                per_page=layout.rows,
                birth=arrays["birth"].offset,
                death=arrays["death"].offset,
                stream=stream,
            )
            if stream is not None:
                stream.synchronize()
            self.late.append((time.perf_counter() - arrived) * 1e3)
            self.epoch += 1
            self.written += count
            sent += count


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


def churning(session: Session, phase_s: float = PHASE_S, phases: int = PHASES, rate: int = RATE) -> dict[str, float]:
    filled = int(session.rows / (1 + SPARE)) // session.page_rows * session.page_rows
    store = drawn(session.rows, WIDTH, session.device, page_rows=session.page_rows)
    _emptied(store, filled)
    filters = share(store.layout, 0.0, 1.0, session.device)
    queries = [asked(BATCH, WIDTH, seed) for seed in range(BUFFERS)]
    workspace = Workspace(session.device)
    writer = Writer(store, filled, rate)
    spent: dict[bool, list[float]] = {False: [], True: []}

    def search(turn: int) -> float:
        filters.epochs.fill_(writer.epoch)
        begin = time.perf_counter()
        filtered_topk(store.slabs, filters, queries[turn % BUFFERS], K, hashes=HASH, workspace=workspace)
        if session.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        return (time.perf_counter() - begin) * 1e3

    for turn in range(BUFFERS):
        search(turn)
    for phase in range(phases):
        writing, stop = phase % 2 == 1, threading.Event()
        thread = threading.Thread(target=writer.run, args=(stop,))
        if writing:
            thread.start()
        until, turn = time.perf_counter() + phase_s, 0
        while time.perf_counter() < until or not turn:
            spent[writing].append(search(turn))
            turn += 1
        stop.set()
        if writing:
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
    if writer.written < 0.95 * rate * seconds:
        raise RuntimeError(f"the writer came to {writer.written / seconds:,.0f} rows a second of {rate:,}")
    return {"churn/100k_p99_ratio": busy.p99 / quiet.p99, "churn/visible_p99_ms": late.p99}


def _emptied(store: Store, first: int) -> None:
    """Rows from `first` on are unborn, and their blocks hold none: the writer's room."""
    page = first // store.layout.rows
    for arena in store.arenas[page:]:
        store.layout.view(arena, "birth").fill_(NEVER)
        store.layout.view(arena, "zone.rows").zero_()
