"""`best_many` against a plain float64 sort of every passing row: whatever the planes, the filters and the batch."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.kernels.filtered_topk.reference import exact_dot
from penstock.retrieval.search import scan, scan_exact, scan_first
from penstock.retrieval.store.page import make_page
from penstock.retrieval.store.planes import QueryPlanes

torch.set_num_threads(1)

DENSE, SKETCH = 24, 40


def pages_of(dense, sketch, ties, rows=128):
    """Pages of `rows` rows that hold float [n, D] (rounded to bfloat16), int8 [n, L]."""
    pages = []
    for first in range(0, len(dense), rows):
        page = make_page(first, rows, dense.shape[1], sketch.shape[1])
        some = slice(first, first + rows)
        count = len(dense[some])
        page.dense[:count] = torch.from_numpy(np.asarray(dense[some], np.float32))
        page.sketch[:count] = torch.from_numpy(sketch[some])
        for part, plane in enumerate((page.dense, page.sketch)):
            page.norms[:, part] = np.linalg.norm(plane.double().numpy(), axis=1) * (1 + 1e-12)
        page.ties[:count] = ties[some]
        pages.append(page)
    return pages


def query_of(dense, lexical):
    terms = np.flatnonzero(lexical)
    return QueryPlanes(np.asarray(dense, np.float32), terms, np.asarray(lexical, np.float32)[terms])


def oracle(pages, ask):
    """Every passing row scored by math.fsum, sorted: (slot, dense, lexical)."""
    found = []
    masks = ask.passing if isinstance(ask.passing, tuple) else None
    for number, page in enumerate(pages):
        rows = np.flatnonzero(masks[number]) if masks else ask.passing[ask.passing // page.rows == number] - page.first
        dense, sketch = page.dense.double().numpy()[rows], page.sketch.double().numpy()[rows]
        wide = ask.query.dense.astype(np.float64)
        for row, x, s in zip(rows.tolist(), dense, sketch, strict=True):
            by_dense = math.fsum(x * wide) if len(x) else 0.0
            by_term = math.fsum(s[ask.query.terms] * ask.query.weights.astype(np.float64)) if len(s) else 0.0
            found.append((-(by_dense + by_term), int(page.ties[row]), page.first + row, by_dense, by_term))
    found.sort()
    return [each[2:] for each in found[: ask.k]]


def shown(best):
    return list(zip(best.rows.tolist(), best.dense.tolist(), best.lexical.tolist(), strict=True))


def check(pages, asks):
    for ask, found in zip(asks, scan.best_many(pages, asks), strict=True):
        assert shown(found) == oracle(pages, ask)


WAYS = ["as chosen", "gathered", "scanned", "scanned call by call", "scanned in bfloat16", "scanned by two threads"]


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """Every way of scanning, whatever the planner would choose, in chunks and samples that suit small pages."""
    monkeypatch.setattr(scan, "SAMPLED", 4)
    monkeypatch.setattr(scan, "DIRECT", 8)
    monkeypatch.setattr(scan, "DOUBT", 1.0)  # so that seeds are too high now and then
    scan._sample.cache_clear()
    if request.param == "gathered":
        monkeypatch.setattr(scan, "_chosen", lambda groups, rows: (groups, []))
    elif request.param != "as chosen":
        monkeypatch.setattr(scan, "_chosen", lambda groups, rows: ([], groups))
    if request.param == "scanned in bfloat16":
        monkeypatch.setattr(scan_first, "bfloat16_is_native", lambda width, queries: True)
    if request.param == "scanned call by call":  # as where torch has no TorchScript
        monkeypatch.setattr(scan_first, "_reaching", scan_first._reach)
    if request.param == "scanned by two threads":
        monkeypatch.setattr(scan, "RUN", 1)
        torch.set_num_threads(2)
    yield request.param
    torch.set_num_threads(1)
    scan._sample.cache_clear()


KINDS = ("random", "tied", "ascending", "descending", "huge and tiny", "one direction", "mostly empty")


def planes_of(kind, count, seed):
    rng = np.random.default_rng(seed)
    dense = rng.standard_normal((count, DENSE)).astype(np.float32)
    sketch = rng.integers(-127, 128, (count, SKETCH)).astype(np.int8)
    query, lexical = rng.standard_normal(DENSE).astype(np.float32), np.zeros(SKETCH, np.float32)
    lexical[rng.integers(0, SKETCH, 5)] = rng.standard_normal(5)
    if kind == "tied":
        some = rng.integers(0, 3, count) % count
        dense, sketch = np.sign(dense)[some], sketch[some // 2]
    elif kind in ("ascending", "descending"):
        dense = query * np.linspace(-1, 1, count)[:: 1 if kind == "ascending" else -1, None]
        sketch[:] = 0
    elif kind == "huge and tiny":
        dense *= 10.0 ** rng.uniform(-42, 38, (count, 1))
        query = query * np.float32(10.0 ** rng.uniform(-10, 36))
    elif kind == "one direction":  # scores that float32 cannot tell apart
        dense = query + dense * 1e-2
        dense[:, 0] += 3e3
        query[0] = 1e4
    elif kind == "mostly empty":
        gone = rng.random(count) < 0.9
        dense[gone], sketch[gone] = 0, 0
    with np.errstate(over="ignore"):
        dense = np.clip(dense, -3e38, 3e38)
    return dense, sketch, query, lexical


def batch_of(rng, pages, count, query, lexical):
    """Asks that share filters or have their own: masks and slots, all rows and none, any k."""
    total = sum(page.rows for page in pages)
    live = np.arange(count)
    everything = tuple(np.arange(page.first, page.first + page.rows) < count for page in pages)
    asks = []
    for number in range(int(rng.integers(1, 7))):
        some = np.sort(rng.choice(live, int(rng.integers(0, count + 1)), replace=False))
        chosen = np.zeros(total, np.bool_)
        chosen[some] = True
        masks = tuple(chosen[page.first : page.first + page.rows] for page in pages)
        passing = (everything, masks, some, some[:0], everything)[int(rng.integers(5))]
        turned = query if number == 0 else query * rng.standard_normal(DENSE).astype(np.float32)
        terms = lexical * (number % 3 > 0)
        asks.append(scan.Ask(query_of(turned, terms), passing, int(rng.choice([1, 3, 17, 100, count, 16_384]))))
    return asks


@pytest.mark.parametrize("kind", KINDS)
def test_best_many_is_the_oracle(way, kind):
    @settings(max_examples=12, deadline=None)
    @given(seed=st.integers(0, 2**32), count=st.integers(1, 700))
    def holds(seed, count):
        dense, sketch, query, lexical = planes_of(kind, count, seed)
        rng = np.random.default_rng(seed + 1)
        pages = pages_of(dense, sketch, rng.permutation(count).astype(np.uint64))
        check(pages, batch_of(rng, pages, count, query, lexical))

    holds()


@pytest.mark.parametrize("kind", KINDS)
def test_long_pages_in_many_chunks(kind, monkeypatch):
    """Seeds, thresholds that rise on the way and dropped rows, at sizes that tests can afford."""
    monkeypatch.setattr(scan, "CHUNK", 512)
    monkeypatch.setattr(scan_first, "CHUNK", 512)
    monkeypatch.setattr(scan, "_chosen", lambda groups, rows: ([], groups))
    count, rows = 20_000, 8_192
    dense, sketch, query, lexical = planes_of(kind, count, 5)
    pages = pages_of(dense, sketch, np.arange(count, dtype=np.uint64)[::-1].copy(), rows)
    passing = tuple(np.arange(page.first, page.first + rows) < count for page in pages)
    check(pages, [scan.Ask(query_of(query, lexical), passing, k) for k in (10, 300, 5_000)])


def test_a_seed_that_is_too_high_is_noticed(monkeypatch):
    count = 4_096
    dense, sketch, query, lexical = planes_of("random", count, 1)
    pages = pages_of(dense, sketch, np.arange(count, dtype=np.uint64), 2_048)
    asks = [scan.Ask(query_of(query, lexical), np.arange(count), k) for k in (5, 50)]
    monkeypatch.setattr(scan, "_chosen", lambda groups, rows: ([], groups))
    for seed in (1e30, 40.0):  # above every row, and above all but some
        monkeypatch.setattr(scan, "_seeds", lambda *_, seed=seed: np.full(2, seed))
        check(pages, asks)


def test_the_superset_stays_small():
    """Certified, but not by keeping everything."""
    count = 8_192
    dense, sketch, query, lexical = planes_of("random", count, 2)
    pages = pages_of(dense, sketch, np.arange(count, dtype=np.uint64), 2_048)
    for found in scan.best_many(pages, [scan.Ask(query_of(query, lexical), np.arange(count), 100)] * 2):
        assert 100 <= found.rescored <= 110


def test_rows_that_do_not_pass_may_hold_anything():
    """Free slots, and slots that the writer fills meanwhile."""
    count = 1_024
    dense, sketch, query, lexical = planes_of("random", count, 3)
    pages = pages_of(dense, sketch, np.arange(count, dtype=np.uint64), 512)
    passing = tuple(np.arange(page.rows) % 2 == 0 for page in pages)
    asks = [scan.Ask(query_of(query, lexical), passing, k) for k in (3, 600)]
    wanted = [oracle(pages, ask) for ask in asks]
    for page in pages:
        page.dense[1::2] = torch.tensor([float("inf"), float("nan"), 3e38, -3e38] * 6).bfloat16()
        page.norms[1::2] = 0
    assert [shown(found) for found in scan.best_many(pages, asks)] == wanted


def test_a_part_of_a_page_is_read_where_nothing_passes_behind_it():
    """What is gathered and what scanned is decided by what a scan would read, not by empty pages."""
    pages = pages_of(*planes_of("random", 1_024, 6)[:2], np.arange(1_024, dtype=np.uint64), 512)
    for count in (1, 300, 512, 513, 1_024):
        mask = np.arange(1_024) < count
        groups = scan._groups([scan.Ask(query_of(np.ones(DENSE), np.zeros(SKETCH)), (mask[:512], mask[512:]), 3)])
        assert scan._read(pages, groups) == (1_024 if count == 1 else count)


def test_off_grid_values_are_scored_to_the_bit():
    """Values far below their row's norm, which the rows' grid does not hold."""
    rng = np.random.default_rng(9)
    dense = rng.standard_normal((300, 384)) * np.where(rng.random((300, 384)) < 0.02, 2.0**-20, 1.0)
    query = query_of(rng.standard_normal(384), np.zeros(8))
    pages = pages_of(dense.astype(np.float32), np.zeros((300, 8), np.int8), np.arange(300, dtype=np.uint64))
    plane = torch.cat([page.dense for page in pages])
    by_dense, _ = scan_exact.exact(pages, np.arange(300), query)
    wide = query.dense.astype(np.float64)
    assert by_dense.tolist() == [math.fsum(row * wide) for row in plane[:300].double().numpy()]


def test_pages_from_before_the_first_vector():
    count = 256
    dense, sketch, query, lexical = planes_of("random", count, 4)
    pages = pages_of(dense, sketch, np.arange(count, dtype=np.uint64))
    early = make_page(256, 128)
    early.ties[:] = np.arange(1_000, 1_128)
    everything = (*(np.ones(128, np.bool_) for _ in range(3)),)
    check([*pages, early], [scan.Ask(query_of(query, lexical), everything, k) for k in (20, 384)])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), width=st.integers(1, 400), scale=st.floats(-30, 30), spread=st.floats(0, 8))
def test_exact_scores_are_the_references_to_the_bit(seed, width, scale, spread):
    rng = np.random.default_rng(seed)
    count = 256
    dense = rng.standard_normal((count, width)) * 10.0 ** (scale + rng.uniform(-spread, spread, (count, width)))
    dense[0], dense[1, ::2] = 0, 0
    sketch = rng.integers(-128, 128, (count, 32)).astype(np.int8)
    pages = pages_of(dense.astype(np.float32), sketch, np.arange(count, dtype=np.uint64))
    lexical = rng.standard_normal(32) * 10.0 ** rng.uniform(-spread, spread, 32) * (rng.random(32) < 0.5)
    query = query_of(rng.standard_normal(width) * 10.0 ** rng.uniform(-spread, spread, width), lexical)
    by_dense, by_term = scan_exact.exact(pages, np.arange(count), query)
    plane = torch.cat([page.dense for page in pages])
    columns = torch.from_numpy(sketch[:, query.terms])
    np.testing.assert_array_equal(by_dense, exact_dot(plane, torch.from_numpy(query.dense)).numpy())
    np.testing.assert_array_equal(by_term, exact_dot(columns, torch.from_numpy(query.weights)).numpy())
