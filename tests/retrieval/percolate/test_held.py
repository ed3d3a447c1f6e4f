"""What standing queries take of a device: counted before it is allocated, given back when they go, refused in words.

Whatever the device has no memory for, the host compares: the answers are the same, and the result names it.
"""

import gc
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from standing_inputs import StandingOracle, ended, shown, standing
from store_inputs import query, upsert, vector

from penstock.kernels.percolate.room import Room
from penstock.kernels.percolate.rows import RowLayout
from penstock.kernels.percolate.standing import Standing
from penstock.kernels.percolate.tuning import PLACE
from penstock.retrieval.device.backend import Budget, Claim
from penstock.retrieval.percolate import held
from penstock.retrieval.percolate.batch import Batch
from penstock.retrieval.percolate.held import CALM, NO_MEMORY, NO_SHARED_MEMORY, TOO_MANY_TERMS, Tenants, Tide
from penstock.retrieval.percolate.service import PercolationService
from penstock.retrieval.percolate.store import StandingQueries
from penstock.retrieval.store.errors import OutOfRoom
from penstock.schemas.filters import is_in
from penstock.schemas.rpc import PercolateRequest

ASKED = query([1.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.25] + [0.0] * 15)
OTHER = query([1.0, 0.0, 0.0], space="other")
ROW = vector([0.5, 0.0, 0.0, 0.0, 0.0, 0.0], [1] + [0] * 15)
BATCH = [upsert("p", vector=ROW, company="a"), upsert("q"), upsert("r", vector=vector([1.0] * 3, space="other"))]
SLAB_PLACES = 4  # of the interpreter; a device's slabs are larger and stay so: the budgets below follow


def slab_bytes(width, terms, backend):
    places = SLAB_PLACES if not backend.is_cuda else held.Standing(RowLayout(0, 0), "cpu").slab
    return Standing(RowLayout(width, terms), "cpu", slab=places).slab_bytes, places * PLACE


def limited(backend, limit):
    return replace(backend, budget=Budget(limit))


def mixed(count, version=1):
    """Of two spaces and of none, a third each."""
    vectors = (ASKED, OTHER, None)
    return [standing(f"s{i:04}", version, vector=vectors[i % 3], threshold=0.1) for i in range(count)]


def test_a_claim_takes_what_it_lacks_and_gives_back_what_it_does_not_need():
    budget = Budget(100)
    claim = Claim(budget)
    claim.resize("one", 60)
    claim.resize("less", 30)
    assert budget.held == 30
    with pytest.raises(OutOfRoom, match=r"more needs 71 bytes, the store holds 30 of 100: raise retrieval\.device_b"):
        claim.resize("more", 101)
    assert budget.held == 30
    claim.resize("all", 100)
    del claim
    gc.collect()
    assert budget.held == 0


@given(counts=st.lists(st.integers(0, 10_000), max_size=300))
def test_room_rises_at_once_and_falls_when_it_has_long_not_been_needed(counts):
    tide = Tide(64, 64)
    for at, count in enumerate(counts):
        before = tide.room
        after = tide.saw(count)
        assert after >= max(count, 64) if count > before else after <= before
        if after < before:
            calm = counts[at + 1 - CALM : at + 1]
            assert len(calm) == CALM and max(calm) <= before // 4 and max(calm) <= after // 2


def test_room_falls_after_a_storm_and_one_large_launch_starts_the_count_again():
    tide = Tide(64, 64)
    assert tide.saw(5_000) == 8_192
    for _ in range(CALM - 1):
        assert tide.saw(100) == 8_192
    assert tide.saw(2_049) == 8_192  # more than a quarter
    for _ in range(CALM - 1):
        assert tide.saw(100) == 8_192
    assert tide.saw(7) == 256
    assert [tide.saw(0) for _ in range(CALM)][-1] == 64


def test_numbers_of_tenants_that_have_gone_are_given_again():
    tenants = Tenants()
    for step in range(100):
        now = (f"t{step}", f"t{step + 1}")
        numbers = tenants.enter(now)
        if step:
            tenants.leave((f"t{step - 1}", f"t{step}"))
        assert len(set(numbers.tolist())) == 2 and len(tenants) <= 4
        (bits,) = tenants.bits(Batch([upsert("p", tenant=f"t{step + 1}")], 0)).T
        assert bits.tolist() == [int(number == numbers[1]) for number in range(len(tenants))]


def test_tenants_that_come_and_go_meet_their_own_postings_alone(device_backend):
    store = StandingQueries(block=2, backend=device_backend)
    for step in range(6):
        store.apply([standing(f"s{step}-{i}", tenant=f"t{step + i}") for i in range(3)], now_ms=step)
        if step:
            store.apply([ended(f"s{step - 1}-{i}", 2, tenant=f"t{step - 1 + i}") for i in range(3)], now_ms=step)
        batch = [upsert(f"p{i}", tenant=f"t{step + i}") for i in range(4)]
        answer, _ = store.percolate(batch, now_ms=step)
        assert [[match.subscription_id for match in one.matches] for one in answer.found] == [
            *([f"s{step}-{i}"] for i in range(3)),
            [],
        ]
        assert len(store._scan._held.tenants) <= 6


def test_every_byte_is_claimed_and_all_of_them_come_back(device_backend):
    backend = limited(device_backend, None)
    store, budget = StandingQueries(block=4, backend=backend), backend.budget
    assert budget.held == store.counts().bytes_device == 0
    seen = []
    for version, count in enumerate((3, 900, 9), 1):  # 75 blocks a space, of more than one slab anywhere
        store.apply(mixed(count, version), now_ms=0)
        store.apply([ended(f"s{i:04}", version) for i in range(count, 900)], now_ms=0)
        store.percolate(BATCH, now_ms=0)
        assert budget.held == store.counts().bytes_device
        seen.append(budget.held)
    assert seen[0] < seen[2] < seen[1]  # of what is empty one slab a space is kept
    store.apply([ended(f"s{i:04}", 4) for i in range(9)], now_ms=0)
    store.percolate(BATCH, now_ms=0)
    assert budget.held == store.counts().bytes_device == 0
    store.apply([standing("again", vector=ASKED)], now_ms=0)
    store.percolate(BATCH, now_ms=0)
    assert budget.held > 0
    del store
    gc.collect()
    assert budget.held == 0


def test_blocks_that_do_not_fit_are_compared_on_the_host_and_named(device_backend):
    one, queries = slab_bytes(16, held.TERMS, device_backend)
    backend = limited(device_backend, one + Room.bytes_for(held.ROOM, queries))
    store, oracle = StandingQueries(block=64, backend=backend), StandingOracle(records := mixed(300))
    store.apply(records, now_ms=0)
    answer, _ = store.percolate(BATCH, now_ms=0)
    assert [shown(each.matches) for each in answer.found] == [oracle.percolate(update, 0) for update in BATCH]
    # A space's blocks share a slab: the first space has one, and the two others none.
    assert answer.on_host == {NO_MEMORY: 200}
    assert 0 < backend.budget.held == store.counts().bytes_device <= backend.budget.limit
    host = StandingQueries(block=64)
    host.apply(records, now_ms=0)
    alone, _ = host.percolate(BATCH, now_ms=0)
    assert answer == replace(alone, on_host=answer.on_host) and alone.other_space > 0
    store.apply([ended(f"s{i:04}", 2) for i in range(300) if i % 3 == 0], now_ms=0)
    answer, _ = store.percolate(BATCH, now_ms=0)
    assert answer.on_host == {}  # what the one gave back, the others took: their records are narrower


def test_a_storm_that_there_is_no_room_for_is_the_hosts_and_the_next_batch_the_devices(device_backend, monkeypatch):
    monkeypatch.setattr(held, "ROOM", 8)
    one, queries = slab_bytes(0, 0, device_backend)
    backend = limited(device_backend, one + Room.bytes_for(8, queries))
    store = StandingQueries(block=64, backend=backend)
    store.apply([standing(f"s{i}", filters=is_in("company", "all", f"c{i}")) for i in range(20)], now_ms=0)
    for _ in range(2):
        storm, _ = store.percolate([upsert("p", company="all")], now_ms=0)
        assert len(storm.found[0].matches) == 20 and storm.on_host == {NO_MEMORY: 20}
        calm, _ = store.percolate([upsert("p", company="c3")], now_ms=0)
        assert len(calm.found[0].matches) == 1 and calm.on_host == {}
    assert backend.budget.held == backend.budget.limit == store.counts().bytes_device


def test_room_of_a_storm_is_given_back(device_backend, monkeypatch):
    monkeypatch.setattr(held, "ROOM", 8)
    monkeypatch.setattr(held, "CALM", 2)
    backend = limited(device_backend, None)
    store = StandingQueries(backend=backend)
    store.apply([standing(f"s{i}", filters=is_in("company", "all", f"c{i}")) for i in range(50)], now_ms=0)
    held_bytes = []
    for company in ("c1", "all", "c1", "c1", "c1"):
        found, _ = store.percolate([upsert("p", company=company)], now_ms=0)
        assert len(found.found[0].matches) == (50 if company == "all" else 1) and found.on_host == {}
        held_bytes.append(backend.budget.held)
        assert backend.budget.held == store.counts().bytes_device or len(held_bytes) == 4
    more = Room.bytes_for(64, 0) - Room.bytes_for(8, 0)
    assert np.diff(held_bytes).tolist() == [more, 0, 0, -more]


def test_a_device_that_runs_out_while_it_works_leaves_the_rest_to_the_host(device_backend, monkeypatch):
    store, records = StandingQueries(block=64, backend=device_backend), mixed(30)
    store.apply(records, now_ms=0)
    oracle = StandingOracle(records)
    wanted = [oracle.percolate(update, 0) for update in BATCH]
    from penstock.kernels.percolate import triton

    honest, calls = triton.percolate, []

    def without_memory(*given_):
        calls.append(given_)
        if len(calls) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(*given_)

    monkeypatch.setattr(triton, "percolate", without_memory)
    answer, _ = store.percolate(BATCH, now_ms=0)
    assert [shown(each.matches) for each in answer.found] == wanted
    assert answer.on_host == {NO_MEMORY: 30}  # the first space's second launch failed as well: half an answer is none
    monkeypatch.setattr(triton, "percolate", honest)
    answer, _ = store.percolate(BATCH, now_ms=0)
    assert [shown(each.matches) for each in answer.found] == wanted and answer.on_host == {}


def test_a_device_whose_multiprocessors_are_too_small_for_a_space_leaves_it_to_the_host(device_backend, monkeypatch):
    from triton.runtime.errors import OutOfResources

    from penstock.kernels.percolate import triton

    honest = triton.percolate

    def small(standing_, *given_):
        if standing_.layout.terms:
            raise OutOfResources(230_400, 101_376, "shared memory")
        return honest(standing_, *given_)

    monkeypatch.setattr(triton, "percolate", small)
    store, records = StandingQueries(backend=device_backend), mixed(9)
    store.apply(records, now_ms=0)
    answer, _ = store.percolate(BATCH, now_ms=0)
    oracle = StandingOracle(records)
    assert [shown(each.matches) for each in answer.found] == [oracle.percolate(update, 0) for update in BATCH]
    assert answer.on_host == {NO_SHARED_MEMORY: 3}


def test_terms_that_a_record_cannot_name_are_the_hosts(device_backend, monkeypatch):
    monkeypatch.setattr(held, "MOST_SKETCH", 15)  # 65,536
    store, records = StandingQueries(backend=device_backend), mixed(9)
    store.apply(records, now_ms=0)
    answer, _ = store.percolate(BATCH, now_ms=0)
    oracle = StandingOracle(records)
    assert [shown(each.matches) for each in answer.found] == [oracle.percolate(update, 0) for update in BATCH]
    assert answer.on_host == {TOO_MANY_TERMS: 3}


def test_what_the_host_took_over_is_counted_and_the_reply_is_whole(device_backend):
    store = StandingQueries(backend=limited(device_backend, 1_000))
    store.apply(mixed(9), now_ms=0)
    shard = SimpleNamespace(store=store, not_ready=lambda: "", may_answer=lambda: True)
    service = PercolationService(shard, "0", threading.BoundedSemaphore(), 1)
    labels = {"role": "retrieval", "what": NO_MEMORY}
    before = REGISTRY.get_sample_value("penstock_degraded_total", labels) or 0
    reply = service.percolate(PercolateRequest(updates=(upsert("q"),)), None)
    assert reply.degraded == () and len(reply.found[0].matches) == 3
    assert REGISTRY.get_sample_value("penstock_degraded_total", labels) == before + 9
