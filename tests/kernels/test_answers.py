"""How an answer is read, and how what was not proven is asked again: in few waits, few scans and bounded memory."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from penstock.kernels.filtered_topk import answer, finish, result, run, sampling, scan
from penstock.kernels.filtered_topk.prepare import prepared, tensors_of
from penstock.kernels.filtered_topk.run import Run
from penstock.kernels.filtered_topk.triton import filtered_topk
from penstock.kernels.filtered_topk.workspace import Workspace
from penstock.kernels.gather_topk import gather
from penstock.kernels.gather_topk import triton as gathering
from penstock.kernels.gather_topk.triton import gather_topk
from penstock.kernels.int8_topk.triton import int8_topk
from penstock.kernels.slabs.batch import Filters, Slabs
from tests.kernels.test_topk_kernels import EVERYTHING, found
from tests.support.captured import Captured
from tests.support.device_pages import Seen, World

every_operator = pytest.mark.parametrize("operator", [filtered_topk, int8_topk, gather_topk])


# --- waits: on a device that is only pretended, of which nothing can be read -----------------------------------------


class _Kernel:
    def __init__(self, launch) -> None:
        self._launch = launch

    def __getitem__(self, grid):
        assert all(isinstance(size, int) and size > 0 for size in grid)
        return self._launch


class Device:
    """Pretends to be one: tensors have shapes there and no values, and kernels are noted and not run."""

    def __init__(self, monkeypatch) -> None:
        self.mode, self.launched = FakeTensorMode(), []
        for module in (run, gathering):
            monkeypatch.setattr(module, "INTERPRETED", False)
        for module, names in (
            (scan, ("plan", "scan")),
            (finish, ("threshold", "select", "rescore", "rank")),
            (gather, ("collect", "gather")),
        ):
            for name in names:
                monkeypatch.setattr(module, name, self.kernel(name))
        properties = SimpleNamespace(multi_processor_count=132)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)

    def kernel(self, name):
        def launch(*args, **how):
            assert all(one.device.type == "cuda" for one in args if isinstance(one, torch.Tensor))
            self.launched.append(name)

        return _Kernel(launch)

    def holds(self, tensor):
        with self.mode:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")

    def workspace(self):
        device = self

        class Pretended(Workspace):
            def take(self, name, shape, dtype):
                with device.mode:
                    return super().take(name, shape, dtype)

        return Pretended(torch.device("cuda"))

    def run(self, kind, k):
        """A batch of three queries there: what launches it, and the queries."""
        world = World(pages=2)
        slabs, filters = world.slabs(), world.filters([EVERYTHING, Seen(epoch=5)])
        here = Slabs(slabs.layout, self.holds(slabs.table), self.holds(slabs.offsets))
        there = Filters(**{name: self.holds(getattr(filters, name)) for name in Filters.__dataclass_fields__})
        queries = world.queries([0, 1, 0])
        if kind == "gather":
            arranged, _ = gathering.by_filter(queries, gathering.QUERIES)
            ready = gathering.tiled(arranged, slabs.layout)
            made = gathering._Gather(
                here, there, k, "id", workspace=self.workspace(), tuning=None, sampled=2, room=1 << 16
            )
        else:
            quantised = kind == "int8"
            ready = prepared(queries, slabs.layout, quantised=quantised)
            made = Run(here, there, k, "id", workspace=self.workspace(), sampled=2, quantised=quantised)
        return made, replace(ready, **{name: self.holds(one) for name, one in tensors_of(ready).items()})


@pytest.fixture
def device(monkeypatch):
    return Device(monkeypatch)


KINDS = ["scan", "int8", "gather"]
STEPS = {
    "scan": ["plan", "scan", "threshold", "scan", "select", "rescore", "rank"],
    "int8": ["plan", "scan", "threshold", "scan", "select", "rescore", "rank"],
    "gather": ["plan", "collect", "gather", "threshold", "gather", "select", "rescore", "rank"],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 10])
def test_what_a_graph_captures_reads_nothing_and_has_its_memory_by_then(device, monkeypatch, kind, k):
    monkeypatch.setattr(run, "room_for", lambda *_: 64)  # fewer than there are rows: a seed is worth it
    made, queries = device.run(kind, k)
    with Captured():
        made.launched(queries)
        moved, nbytes = made.workspace.moved, made.workspace.nbytes
        made.launched(queries)
    assert device.launched == STEPS[kind] * 2
    assert (moved, nbytes) == (made.workspace.moved, made.workspace.nbytes)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_waits_for_the_device_once(device, monkeypatch, kind):
    """All that may be read is what is fetched, all at once."""
    made, queries = device.run(kind, 10)
    fetches = []

    def fetched(whole):
        fetches.append(whole)
        host = torch.zeros(whole.shape, dtype=torch.uint8)
        copy = result.Result.of(host, queries.count, 2, 10)
        copy.status[:, finish.PROVEN], copy.status[:, finish.KEPT] = 1, 7
        copy.totals[:], copy.slots[:] = 9, 5
        return host

    monkeypatch.setattr(result, "fetched", fetched)
    with Captured():
        out = made.answer(queries)
    assert len(fetches) == 1 and fetches[0].device.type == "cuda"
    assert (out.counts.tolist(), out.totals.tolist()) == ([7] * queries.count, [9, 9])
    assert out.settled.all() and out.reruns == 0 and (out.slots == 5).all()
    assert {one.device.type for one in (out.slots, out.dense, out.lexical, out.counts, out.totals)} == {"cpu"}


@pytest.mark.parametrize(
    "read",
    [
        lambda run: int(run.counters[0]),
        lambda run: run.found.tolist(),
        lambda run: run.found.cpu(),
        lambda run: (run.found > 0).nonzero(),
        lambda run: run.found[run.found > 0],
        lambda run: bool((run.found > 0).any()),
        lambda run: run.found.copy_(torch.zeros(run.found.shape, dtype=torch.int32)),
    ],
)
def test_a_read_would_be_seen(device, read):
    made, queries = device.run("scan", 10)
    with pytest.raises(Exception, match=r"captured|aten\.|data_ptr|numpy"), Captured():
        made.launched(queries)
        read(made)


# --- reruns ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def scans(monkeypatch):
    """Survivors that each scan had room for, seeds left out."""
    seen, honest = [], Run.scan

    def scan_(self, queries, tau, totals, capacity):
        seen.append(capacity)
        honest(self, queries, tau, totals, capacity)

    monkeypatch.setattr(Run, "scan", scan_)
    return seen


def tied(pages, queries):
    """Rows that all tie for half of the queries, among some that are better for the other half."""
    world = World(pages=pages, free=0, alike=True, dense=16, sketch=8)
    world.planes[40:], world.sketches[40:] = 1, 1
    world.arenas = [world._arena(number) for number in range(world.pages)]
    seen = [EVERYTHING, Seen(epoch=5)]
    asked = world.queries([number % 2 for number in range(queries)])
    asked.dense[::2] = 0  # words alone
    return world, seen, asked


@every_operator
def test_many_queries_whose_rows_tie_are_asked_again_by_one_scan(operator, scans, monkeypatch):
    monkeypatch.setattr(run, "room_for", lambda *_: 64)
    monkeypatch.setattr(sampling, "seed_rank", lambda *_: 1 << 20)  # which no seed has
    world, seen, queries = tied(2, 20)
    rows, out = found(operator, world, seen, queries, 6)
    assert rows == world.oracle(queries, seen, 6)
    assert out.reruns == 20 and len(scans) == 2


@every_operator
def test_more_that_tie_than_there_is_room_for_are_looked_at_in_parts(operator, scans, monkeypatch):
    """No scan has room for more than a rerun may hold, and what is found is the same."""
    monkeypatch.setattr(run, "room_for", lambda *_: 64)
    monkeypatch.setattr(sampling, "seed_rank", lambda *_: 1 << 20)  # which no seed has
    monkeypatch.setattr(answer, "ROOM", 4 * 256)
    monkeypatch.setattr(answer, "APART", 1)
    world, seen, queries = tied(3, 4)
    rows, out = found(operator, world, seen, queries, 6)
    assert rows == world.oracle(queries, seen, 6)
    assert out.reruns == 4 and len(scans) > 3
    assert max(scans[1:]) <= 256


@every_operator
def test_a_threshold_that_is_lower_than_was_thought_is_tried_before_rows_are_parted(operator, scans, monkeypatch):
    """More survivors than are expected: the scan that had no room for them is made in parts."""
    monkeypatch.setattr(sampling, "DOUBT", -3.0)
    monkeypatch.setattr(answer, "ROOM", 256)
    monkeypatch.setattr(answer, "APART", 1)
    world = World(pages=5, free=0, seed=1)
    queries = world.queries([0, 0])
    rows, out = found(operator, world, [EVERYTHING], queries, 9, sampled=2)
    assert rows == world.oracle(queries, [EVERYTHING], 9)
    assert out.reruns > 0


def test_of_what_ties_the_least_hashes_are_chosen_and_all_else_in_order():
    score = torch.tensor([[3.0, 1, 1, 2, 1, 9, 1], [0.0, -0.0, 0, 0, 0, 0, 0], [5.0, 4, 0, 0, 0, 0, 0]]).double()
    ties = torch.tensor([[1, 9, -7, 1, 4, 0, 8], [6, 5, 4, 3, 2, 1, 0], [1, 0, 0, 0, 0, 0, 0]])
    there = torch.ones(3, 7, dtype=torch.bool)
    there[0, 5], there[2, 2:] = False, False
    places = answer._places(score, ties, there, 4)
    assert places[0].tolist() == [0, 3, 2, 4]
    assert places[1].tolist() == [6, 5, 4, 3]
    assert places[2, :2].tolist() == [0, 1]


def test_a_workspace_that_may_not_grow_stays_as_it_was():
    def admit(nbytes):
        if nbytes > 1_000:
            raise MemoryError(nbytes)

    workspace = Workspace(torch.device("cpu"), admit)
    held = workspace.take("one", (100,), torch.float32)
    with pytest.raises(MemoryError):
        workspace.take("one", (300,), torch.float32)
    assert workspace.take("one", (10, 10), torch.float32).data_ptr() == held.data_ptr() and workspace.moved == 0
    assert workspace.take("one", (200,), torch.float32).shape == (200,)
    assert workspace.moved == 1 and workspace.nbytes == 800
