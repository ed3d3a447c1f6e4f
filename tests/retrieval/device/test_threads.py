"""Several threads ask a device while one writes: each gets what the host says of the very epoch that it reads.

Every reader takes an epoch and tells the writer, who then writes on. In even rounds the reader waits until a newer
epoch is there, so that it provably reads an older one; in odd rounds it reads while the writer writes.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from standing_inputs import ended, standing
from store_inputs import gone, query, upsert, vector
from store_oracle import shown

from penstock.retrieval.percolate.matching import percolate
from penstock.retrieval.percolate.store import StandingQueries
from penstock.retrieval.store import reading
from penstock.retrieval.store.records import Ask
from penstock.retrieval.store.store import Store
from penstock.schemas.filters import is_in, negate

READERS, ROUNDS, TENANTS, PATIENCE_S = 3, 4, ("default", "other"), 120.0
KEPT = 60  # rows and queries that the writer turns over


class Turns:
    """Lets readers and the writer wait for each other, with a deadline."""

    def __init__(self, epoch):
        self._epoch = epoch
        self._moved = threading.Condition()
        self._asked = threading.Semaphore(0)

    def read(self, reader, begun, check):
        """ROUNDS times: `begun` gives an epoch and what is read at it, `check` compares. Returns the epochs."""
        epochs = []
        for step in range(ROUNDS):
            with begun() as (epoch, held):
                self._asked.release()
                if step % 2 == 0:
                    with self._moved:
                        assert self._moved.wait_for(lambda at=epoch: self._epoch() > at, PATIENCE_S)
                check(held, reader * ROUNDS + step)
                epochs.append(epoch)
        return epochs

    def write(self, apply):
        """A change for every time that a reader has begun."""
        for version in range(2, 2 + READERS * ROUNDS):
            assert self._asked.acquire(timeout=PATIENCE_S)
            apply(version)
            with self._moved:
                self._moved.notify_all()


def run(turns, begun, check, apply):
    with ThreadPoolExecutor(READERS) as pool:
        readers = [pool.submit(turns.read, reader, begun, check) for reader in range(READERS)]
        turns.write(apply)
        for reader in readers:  # it went on after every round in which it waited
            assert len(set(reader.result(PATIENCE_S))) > ROUNDS // 2


def planes(version, count):
    rng = np.random.default_rng(version)
    return rng.integers(-3, 4, (count, 6)).astype(np.float32), rng.integers(-9, 10, (count, 16))


def test_searches_are_the_hosts_at_their_epoch_while_rows_come_and_go(device_backend):
    store = Store(page_rows=128, hold_ms=0, backend=device_backend)

    def apply(version):
        """A third of the rows gone, a third new versions in other slots; more pages as it goes on."""
        dense, sketches = planes(version, KEPT)
        changed = [
            gone(f"p{i}", version)
            if i % 3 == version % 3
            else upsert(
                f"p{i}", version, vector=vector(dense[i], sketches[i]), company=f"c{i % 7}", tenant=TENANTS[i % 5 == 0]
            )
            for i in range(KEPT)
            if i % 3 != (version + 1) % 3
        ]
        fresh = [upsert(f"n{version}-{i}", version, vector=vector(dense[i], sketches[i])) for i in range(20)]
        store.apply([*changed, *fresh], now_ms=version)
        store.reclaim(now_ms=version)

    trees = [None, negate(is_in("company", "c1", "c3")), is_in("company", "c2")]

    def check(pin, number):
        rng = np.random.default_rng(number)
        asks = [
            Ask(query(rng.integers(-3, 4, 6).astype(np.float32), [0.25] * 16), tree, 9, 0, tenant, pin.epoch)
            for tree in trees
            for tenant in TENANTS
        ]
        there = store.search_many(asks)
        here = reading.answers(store._rows, asks, [pin] * len(asks))
        assert [(shown(a), a.total, a.epoch) for a in there] == [(shown(b), b.total, b.epoch) for b in here]
        assert all("host" not in str(answer.plan) for answer in there)

    class Begun:
        def __enter__(self):
            self._pin = store.pin()
            pin = self._pin.__enter__()
            return pin.epoch, pin

        def __exit__(self, *error):
            self._pin.__exit__(*error)

    apply(1)
    run(Turns(lambda: store.epoch), Begun, check, apply)


def test_percolation_is_the_hosts_in_its_view_while_queries_come_and_go(device_backend):
    store = StandingQueries(block=8, backend=device_backend)

    def apply(version):
        """A third of the queries gone, a third of them other ones, tenants that come and go."""
        dense, sketches = planes(version, KEPT)
        vectors = [query(dense[i], np.abs(sketches[i]) / 8) if i % 4 else None for i in range(KEPT)]
        store.apply(
            [
                ended(f"s{i}", version)
                if i % 3 == version % 3
                else standing(
                    f"s{i}",
                    version,
                    vector=vectors[i],
                    filters=is_in("company", f"c{i % 3}") if i % 2 else None,
                    threshold=float(i % 5),
                    tenant=(*TENANTS, f"t{version}")[i % 3],
                )
                for i in range(KEPT)
                if i % 3 != (version + 1) % 3
            ],
            now_ms=version,
        )

    def check(view, number):
        dense, sketches = planes(1_000 + number, 6)
        batch = [
            upsert(f"p{i}", vector=vector(dense[i], sketches[i]) if i else None, company=f"c{i % 3}", tenant=tenant)
            for i, tenant in enumerate((*TENANTS, "t3", "t7", *TENANTS))
        ]
        there = percolate(view.blocks, batch, 0, pairs_on=store._scan)
        assert there == percolate(view.blocks, batch, 0) and there.on_host == {}
        assert any(one.matches for one in there.found)

    class Begun:
        def __enter__(self):
            view = store._view
            return view.epoch, view

        def __exit__(self, *error):
            pass

    apply(1)
    run(Turns(lambda: store.epoch), Begun, check, apply)
