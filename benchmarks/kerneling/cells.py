"""The cells that need a GPU: ours against what the device can read and multiply, and against torch, in one session.

    batch      d=256, k=1000 at B 1, 16, 64, 256: the share of bandwidth (of FLOPs at 256); B64 against torch, and k=10
    clustered  a filter that one row in a hundred passes, rows placed by it: against mask and topk, and against gather
    int8       the int8 plane against the bfloat16 one, and where the ids differ
    linr       LiNR's setting: 15.5 million rows of 128, 11 % pass, k=2000, one query
    percolate  postings against a million standing queries of 384 values (matching.py)
    churn      searches while a second stream writes 100,000 rows a second (churning.py)

The share of bandwidth is (bytes that the answer cannot do without: planes and columns of the rows that are looked at,
each once) / time / what a read-only kernel got in this session. Times are of the whole call: queries on the host in,
`Found` on the host out. A batch is timed twice: `ours`, as a store answers, by a CUDA graph; and `ours, eager`, one
launch after the other. Rows are of the first. Every cell's answers are held against torch's before it is timed: no
score of ours may be further from torch's at the same place than float32 explains.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.kerneling import peers
from benchmarks.kerneling.model import Work
from benchmarks.kerneling.session import DeviceSession
from benchmarks.kerneling.stores import BUCKET, HASH, Store, asked, drawn, share
from benchmarks.kerneling.timing import BUFFERS, read_bandwidth
from penstock.kernels.filtered_topk.answer import Found, read
from penstock.kernels.filtered_topk.prepare import Prepared, prepared, tensors_of
from penstock.kernels.filtered_topk.run import Run
from penstock.kernels.filtered_topk.triton import filtered_topk
from penstock.kernels.filtered_topk.workspace import Workspace
from penstock.kernels.int8_topk.triton import int8_topk
from penstock.kernels.slabs.batch import Filters, Queries

CLOSE = 2e-2  # two bf16 products' scores of unit vectors
CLUSTERED = 0.01
LINR_ROWS, LINR_WIDTH, LINR_SHARE, LINR_K = 15_500_000, 128, 0.11, 2_000
STANDING, STANDING_WIDTH = 1_000_000, 384

TopK = Callable[..., Any]


@dataclass
class Session(DeviceSession):
    rows: int = 10_000_000  # of a store
    page_rows: int = 65_536
    bandwidth: float = 0.0

    def roofline(self, size: int = 8_192, nbytes: int = 2 << 30) -> None:
        super().roofline(size)
        self.bandwidth = read_bandwidth(self.device, nbytes, self.runs)

    @property
    def measured(self) -> dict[str, float]:
        return {"read_bytes_per_s": self.bandwidth, **super().measured}


def begun(device: torch.device, given: argparse.Namespace) -> Session:
    """As the command was asked."""
    return Session(device, given.runs, rows=given.rows)


def ours(search: TopK, store: Store, filters: Filters, queries: list[Queries], k: int) -> Callable[[int], Any]:
    """A contender. Its workspace is its own and is kept, as a server's is."""
    workspace = Workspace(store.device)
    return lambda buffer: search(store.slabs, filters, queries[buffer], k, hashes=HASH, workspace=workspace)


def graphed(
    store: Store, filters: Filters, queries: list[Queries], k: int, *, quantised: bool = False
) -> Callable[[int], Any]:
    """A contender that replays what was captured over buffers of its own, as retrieval/device/graphs.py does."""
    run = Run(store.slabs, filters, k, HASH, workspace=Workspace(store.device), quantised=quantised)

    def sent(buffer: int) -> Prepared:
        return prepared(queries[buffer], store.layout, quantised=quantised).to(store.device)

    held = replace(first := sent(0), **{name: one.clone() for name, one in tensors_of(first).items()})
    launched = run.launched(held)  # what has to be compiled is
    replay: Callable[[], Any] = lambda: run.launched(held)  # noqa: E731  # without a device there is no graph
    if store.device.type == "cuda":
        torch.cuda.synchronize(store.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            launched = run.launched(held)
        replay = graph.replay

    def answered(buffer: int) -> Found:
        asked = tensors_of(sent(buffer))
        for name, one in tensors_of(held).items():
            one.copy_(asked[name], non_blocking=True)
        replay()
        return read(run, held, launched)

    return answered


def agrees(found: Any, reference: tuple[torch.Tensor, torch.Tensor], rows: int, k: int, what: str) -> None:
    """RuntimeError where a score of ours is not what torch found at the same place, or there are not as many."""
    values = reference[0].double()
    scores = (found.dense + found.lexical)[:, : values.shape[1]].to(values.device)
    least = min(k, rows)
    if int(found.counts.min()) < least:
        raise RuntimeError(f"{what}: {int(found.counts.min())} answers where {least} rows pass")
    worst = float((scores - values).abs().max())
    if worst > CLOSE:
        raise RuntimeError(f"{what}: a score is {worst:g} from torch's at the same place: expected {CLOSE:g} at most")


def buffers(batch: int, width: int) -> list[Queries]:
    return [asked(batch, width, seed) for seed in range(BUFFERS)]


def as_torch(queries: list[Queries], device: torch.device) -> list[torch.Tensor]:
    return [one.dense.to(device).bfloat16() for one in queries]


def batch(
    session: Session,
    k: int = 1_000,
    width: int = 256,
    batches: tuple[int, ...] = (1, 16, 64, 256),
    compared: int = 64,  # the batch that torch and a smaller k answer too
) -> dict[str, float]:
    store = drawn(session.rows, width, session.device, page_rows=session.page_rows)
    everything = share(store.layout, 0.0, 1.0, session.device)
    plane, found = store.plane(), {}
    for count in batches:
        queries = buffers(count, width)
        rounded = as_torch(queries, session.device)
        contenders: dict[str, Callable[[int], Any]] = {
            "ours": graphed(store, everything, queries, k),
            "ours, eager": ours(filtered_topk, store, everything, queries, k),
        }
        for name, mine in contenders.items():
            agrees(mine(0), peers.chunked(plane, rounded[0], k), store.rows, k, f"{name}, B{count}")
        if count == compared:
            contenders |= peers.unfiltered(plane, rounded, k)
            contenders["ours, k=10"] = graphed(store, everything, queries, 10)
        spent = session.timed(f"batch/B{count}", contenders, rows=store.rows, width=width, k=k)
        seconds, work = spent["ours"].median * 1e-3, Work(store.rows, width, count, k)
        name = f"filtered_topk/d256/k1000/B{count}"
        found[name] = (
            work.flops / seconds / session.flops if count == 256 else work.needed / seconds / session.bandwidth
        )
        if count == compared:
            best = min(one.median for peer, one in spent.items() if peer.startswith("torch"))
            found[f"{name}/ratio"] = best / spent["ours"].median
            found["filtered_topk/k1000_over_k10"] = spent["ours"].median / spent["ours, k=10"].median
    return found


def clustered(session: Session, count: int = 16, k: int = 1_000, width: int = 256) -> dict[str, float]:
    store = drawn(session.rows, width, session.device, clustered=True, page_rows=session.page_rows)
    low = 0.5
    one_percent = share(store.layout, low, low + CLUSTERED, session.device)
    numbers = store.numbers()
    mask = (numbers >= low) & (numbers < low + CLUSTERED)
    plane, queries = store.plane(), buffers(count, width)
    rounded = as_torch(queries, session.device)
    mine = ours(filtered_topk, store, one_percent, queries, k)
    passing = int(mask.sum())
    agrees(mine(0), peers.gathered(plane, mask, rounded[0], min(k, passing)), passing, k, "clustered")
    spent = session.timed(
        "clustered",
        {
            "ours": mine,
            "mask": lambda buffer: peers.masked(plane, mask, rounded[buffer], k),
            "gather": lambda buffer: peers.gathered(plane, mask, rounded[buffer], min(k, passing)),
        },
        rows=store.rows,
        passing=passing,
        k=k,
        batch=count,
    )
    return {
        "filtered/1pct_clustered/mask_topk": spent["mask"].median / spent["ours"].median,
        "filtered/1pct_clustered/gather": spent["gather"].median / spent["ours"].median,
    }


def int8(session: Session, count: int = 16, k: int = 1_000, width: int = 256) -> dict[str, float]:
    store = drawn(session.rows, width, session.device, quantised=True, page_rows=session.page_rows)
    everything, queries = share(store.layout, 0.0, 1.0, session.device), buffers(count, width)
    contenders = {
        "int8": graphed(store, everything, queries, k, quantised=True),
        "bf16": graphed(store, everything, queries, k),
        "int8, eager": ours(int8_topk, store, everything, queries, k),
        "bf16, eager": ours(filtered_topk, store, everything, queries, k),
    }
    plain, quick = contenders["bf16"], contenders["int8"]
    differences = sum(int((plain(turn).slots[:count] != quick(turn).slots[:count]).sum()) for turn in range(BUFFERS))
    spent = session.timed("int8", contenders, rows=store.rows, width=width, k=k, batch=count)
    return {
        "int8_topk/ratio": spent["bf16"].median / spent["int8"].median,
        "int8_topk/id_differences": differences,
    }


def linr(session: Session, rows: int = LINR_ROWS, k: int = LINR_K) -> dict[str, float]:
    """Rows that pass lie anywhere, as in LiNR's masking."""
    store = drawn(rows, LINR_WIDTH, session.device, page_rows=session.page_rows)
    filters, queries = share(store.layout, 0.0, LINR_SHARE, session.device), buffers(1, LINR_WIDTH)
    mine = ours(filtered_topk, store, filters, queries, k)
    mask, plane = store.numbers() < LINR_SHARE, store.plane()
    rounded, passing = as_torch(queries, session.device), int(mask.sum())
    agrees(mine(0), peers.gathered(plane, mask, rounded[0], min(k, passing)), passing, k, "linr")
    spent = session.timed(
        "linr",
        {"ours": mine, "mask": lambda buffer: peers.masked(plane, mask, rounded[buffer], min(k, passing))},
        rows=rows,
        k=k,
        passing=passing,
        column=BUCKET,
    )
    return {"linr_replica/B1_ms": spent["ours"].median}


def percolate(session: Session, standing: int = STANDING, width: int = STANDING_WIDTH) -> dict[str, float]:
    from benchmarks.kerneling.matching import matching

    return matching(session, standing, width)


def churn(session: Session) -> dict[str, float]:
    from benchmarks.kerneling.churning import churning

    return churning(session)


CELLS: dict[str, Callable[[Session], dict[str, float]]] = {
    "batch": batch,
    "clustered": clustered,
    "int8": int8,
    "linr": linr,
    "percolate": percolate,
    "churn": churn,
}
