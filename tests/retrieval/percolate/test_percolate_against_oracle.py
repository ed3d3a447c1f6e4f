"""Whatever happens to it, the store of standing queries matches as the oracle does, after restarts too."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from standing_inputs import StandingOracle, arrivals, ended, records, shown, standing
from store_inputs import query, upsert, vector
from store_oracle import floats

from penstock.retrieval.percolate.snapshot import STANDING
from penstock.retrieval.percolate.store import StandingQueries
from penstock.retrieval.store.snapshot import Covered, Snapshots
from penstock.schemas.filters import is_in

torch.set_num_threads(1)

batches = st.lists(arrivals(), min_size=1, max_size=5)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("apply"), st.lists(records, max_size=10)),
        st.tuples(st.just("percolate"), batches),
        st.tuples(st.just("restart"), st.none()),
    ),
    max_size=10,
)


def small(backend):
    return StandingQueries(block=3, backend=backend)  # so that blocks fill, split and empty


def answers(store, batch, now_ms=10):
    return [shown(one.matches) for one in store.percolate(batch, now_ms=now_ms)[0].found]


@settings(max_examples=200, deadline=None)
@given(script=steps, last=batches)
def test_any_history(tmp_path_factory, script, last):
    check_history(None, tmp_path_factory, script, last)


@settings(max_examples=25, deadline=None)
@given(script=steps, last=batches)
def test_any_history_through_the_kernels(tmp_path_factory, device_backend, script, last):
    check_history(device_backend, tmp_path_factory, script, last)


def check_history(backend, tmp_path_factory, script, last):
    store, oracle = small(backend), StandingOracle()
    for what, given_ in [*script, ("percolate", last)]:
        if what == "apply":
            store.apply(given_, now_ms=5)
            for record in given_:
                oracle.accept(record)
        elif what == "restart":
            snapshots = Snapshots(tmp_path_factory.mktemp("standing"), STANDING)
            snapshots.write(store.capture(), Covered({0: 7}, "log"))
            store = small(backend)
            assert snapshots.restore(store).covered == Covered({0: 7}, "log")
        else:
            assert answers(store, given_) == [oracle.percolate(update, 10) for update in given_]
            for one in store.percolate(given_, now_ms=10)[0].found:
                asked = [m.subscription_id for m in one.matches if oracle.newest[m.subscription_id].min_score]
                assert [q.subscription_id for q in one.queries] == asked
                for sent in one.queries:
                    assert same(sent, oracle.newest[sent.subscription_id])
        known = [oracle.newest.get(f"s{i}") for i in range(12)]
        for tenant in ("default", "other"):
            told = store.standing([f"s{i}" for i in range(12)], tenant=tenant)
            assert told == tuple(
                (-1, False) if r is None or r.tenant != tenant else (r.version, r.op == "UPSERT") for r in known
            )
    assert store.counts().live == sum(record.op == "UPSERT" for record in oracle.newest.values())


def same(sent, published):
    """A vector's lexical part may come back with zeros where there were negative zeros."""
    a, b = sent.vector, published.vector
    if (a is None) != (b is None):
        return False
    if a is not None and (a.dense != b.dense or floats(a.lexical or b"") != floats(b.lexical or b"")):
        return False
    return replace(sent, vector=None) == replace(published, vector=None)


@settings(max_examples=15, deadline=None)
@given(batch=st.lists(records, max_size=30), postings=batches)
def test_the_kernels_find_what_a_cpu_does(device_backend, batch, postings):
    found = []
    for backend in (None, device_backend):
        store = small(backend)
        for start in range(0, len(batch), 4):
            store.apply(batch[start : start + 4], now_ms=0)
        result, _ = store.percolate(postings, now_ms=10)
        found.append((result, store.percolate(postings[::-1], now_ms=10)[0]))
    assert found[0] == found[1]


@settings(deadline=None)
@given(batch=st.lists(records, max_size=30), postings=batches, seed=st.integers(0, 9))
def test_neither_order_nor_batches_nor_repeats_matter(batch, postings, seed):
    # Of two different records with one version the later in the log stands, so there order does matter: keep one.
    unique = list({(r.subscription_id, r.version): r for r in batch}.values())
    chance = random.Random(seed)
    found = []
    for _ in range(2):
        store, arriving = small(None), unique + chance.sample(unique, len(unique) // 2)
        chance.shuffle(arriving)
        while arriving:
            size = chance.randint(1, 6)
            store.apply(arriving[:size], now_ms=0)
            del arriving[:size]
        found.append(answers(store, postings))
    assert found[0] == found[1]


def wide(rng, count):
    rows = rng.standard_normal((count, 384)).astype(np.float32) / np.float32(384**0.5)
    return (rows.view(np.uint32) & 0xFFFF0000).view(np.float32)


@pytest.mark.parametrize("seed", range(3))
def test_a_threshold_that_float32_cannot_tell_from_the_score(seed, backend):
    """Each query's threshold is its exact score of some posting, or the next double above it."""
    rng = np.random.default_rng(seed)
    rows, sketches = wide(rng, 20), rng.integers(-20, 20, (20, 1024)).astype(np.int8)
    postings = [upsert(f"p{i}", vector=vector(rows[i], sketches[i])) for i in range(20)]
    oracle, queries = StandingOracle(), []
    for i in range(300):
        lexical = np.zeros(1024, np.float32)
        lexical[rng.choice(1024, 7, False)] = rng.standard_normal(7) * 1e-3
        asked = query(rng.standard_normal(384).astype(np.float32), lexical)
        probe = StandingOracle([standing("s", vector=asked, threshold=-1e9)])
        ((_, _, dense, lexical_),) = probe.percolate(postings[i % 20], 0)
        exact = dense + lexical_
        threshold = float(np.nextafter(exact, np.inf)) if i % 2 else exact
        queries.append(standing(f"s{i:03}", vector=asked, threshold=threshold))
        oracle.accept(queries[-1])
    store = StandingQueries(backend=backend)
    store.apply(queries, now_ms=0)
    wanted = [oracle.percolate(update, 0) for update in postings]
    assert answers(store, postings, 0) == wanted
    met = {id_ for one in wanted for id_, *_ in one}
    assert all(f"s{i:03}" in met for i in range(0, 300, 2))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, by which Triton's interpreter multiplies
def test_products_beyond_float32_are_decided_exactly(backend):
    big, huge = 2.0**64, 2.0**127
    postings = [
        upsert("p0", vector=vector([big, -big * (1 - 2.0**-8), 0.0, 0.0, 0.0, 0.0])),
        upsert("p1", vector=vector([2 * big, -2 * big, 0.0, 0.0, 0.0, 0.0])),
        upsert("p2", vector=vector([huge] * 6)),
        upsert("p3", vector=vector([2.0**-126] * 6)),
    ]
    queries = [
        standing(f"s{i}", vector=query([scale] * 6), threshold=threshold)
        for i, (scale, threshold) in enumerate(
            [(big, 2.0**119), (big, 2.0**121), (huge, 1e77), (-huge, 0.0), (2.0**-100, 1e-67), (2.0**-100, 2e-68)]
        )
    ]
    store, oracle = StandingQueries(backend=backend), StandingOracle(queries)
    store.apply(queries, now_ms=0)
    assert answers(store, postings, 0) == [oracle.percolate(update, 0) for update in postings]


def test_a_posting_that_matches_thousands_beside_others(backend):
    rng = np.random.default_rng(3)
    rows = wide(rng, 8)
    queries = [
        standing(
            f"s{i:05}",
            vector=query(rows[0] + rng.standard_normal(384).astype(np.float32) / 100) if i % 3 else None,
            filters=is_in("company", f"c{i % 5}", "all") if i % 2 else None,
            threshold=0.3,
        )
        for i in range(6_000)
    ]
    store = StandingQueries(backend=backend)
    for start in range(0, len(queries), 500):
        store.apply(queries[start : start + 500], now_ms=0)
    postings = [upsert(f"p{i}", vector=vector(rows[i]), company="all" if i == 0 else f"c{i}") for i in range(8)]
    found = answers(store, postings, 0)
    assert [len(one) for one in found][:2] == [6_000, 1_200]
    oracle = StandingOracle(queries)
    assert found[1] == oracle.percolate(postings[1], 0)
    assert found[0] == oracle.percolate(postings[0], 0)


def test_a_batch_of_more_postings_than_a_launch_takes(backend):
    """Three launches, of two kinds of postings between which the bits of the conditions are shared out."""
    rng = np.random.default_rng(4)
    rows = wide(rng, 150)
    queries = [
        standing(
            f"s{i:03}",
            vector=query(rows[i % 150]) if i % 4 else None,
            filters=is_in("company", f"c{i % 3}") if i % 2 else None,
            threshold=0.5,
        )
        for i in range(200)
    ]
    store, oracle = StandingQueries(block=64, backend=backend), StandingOracle(queries)
    store.apply(queries, now_ms=0)
    postings = [upsert(f"p{i}", vector=vector(rows[i]) if i % 5 else None, company=f"c{i % 4}") for i in range(150)]
    assert answers(store, postings, 0) == [oracle.percolate(update, 0) for update in postings]


def test_deleted_ones_leave_nothing_behind(backend):
    store = StandingQueries(block=3, backend=backend)
    store.apply([standing(f"s{i}", vector=query([1.0] * 6)) for i in range(40)], now_ms=0)
    store.apply([ended(f"s{i}", 2) for i in range(40)], now_ms=0)
    assert answers(store, [upsert("p", vector=vector([1.0] * 6))]) == [[]]
    assert store.capture().blocks == ()
