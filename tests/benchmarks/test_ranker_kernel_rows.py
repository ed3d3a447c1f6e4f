"""The benchmark of the ranker's kernels: its rows by name, its model's sense, its device cells tried out on the CPU."""

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tried_cells import tried_cells

from benchmarks.kerneling import importing
from benchmarks.kerneling import rows as retrieval
from benchmarks.kerneling.gpu import BAD, LIKELY
from benchmarks.kerneling.timing import WARM
from benchmarks.ranker_kerneling import model
from benchmarks.ranker_kerneling.attention import Form, Program, attention, executed, pairs, programs
from benchmarks.ranker_kerneling.loading import Watch
from benchmarks.ranker_kerneling.products import BAD_CUBLAS, product
from benchmarks.ranker_kerneling.rows import DEVICE, KERNELS, OPERATORS
from benchmarks.ranker_kerneling.shapes import EMBEDDED, FEW, PACKED, PRUNED_375M, QWEN_0_6B, TEXT, Asked
from penstock.kernels.aot.registry import operators

ROOT = Path(__file__).resolve().parents[2]
ATTENDING = Form(8, 2, hot=400, outside=700, barriers=3, keys=32, tokens=64, rows=128, size=128, kv_heads=8)
SMALL = model.Form(warps=4, ctas=16, instructions=150)
FORMS = model.Forms(ATTENDING, *[SMALL] * 6)


def test_names_and_targets_are_those_of_the_issue():
    rows = [(f"ranker_kernels/{row.name}", row.target) for row in KERNELS]
    rows += [(f"cuda/{row.name}", row.target) for row in DEVICE]
    assert dict(rows) == {
        "ranker_kernels/interpreter/mismatches": 0,
        "ranker_kernels/aot/spilling_configs": 0,
        "ranker_kernels/aot/over_shared_memory": 0,
        "ranker_kernels/aot/configs": 20,
        "ranker_kernels/aot/attention/tensor_core": 1,
        "ranker_kernels/model/forward_share": 0.55,
        "cuda/ranker/0.6B/text": 3_300,
        "cuda/ranker/375M/text": 6_000,
        "cuda/ranker/0.6B/text_900": 600,
        "cuda/ranker/0.6B/embedding_items": 100_000,
        "cuda/ranker/0.6B/ratio_transformers": 3,
        "cuda/ranker/0.6B/ratio_best_server": 1.3,
        "cuda/ranker/p99_ms": 500,
        "cuda/attention/ratio_varlen": 1.2,
        "cuda/attention/ratio_flex": 1.2,
        "cuda/ranker/host_gap_share": 0.03,
    }
    assert len(rows) == 16


def test_every_operator_is_in_one_benchmark():
    assert Counter((*OPERATORS, *retrieval.OPERATORS)) == Counter(operators("configs"))


def test_what_is_only_said_with_a_library_is_silent_without_it(monkeypatch):
    name = "a_library_that_nobody_has"
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, name)
    importing.silent(name, "json")
    library = sys.modules[name]
    assert library.Counter("a", "b").labels("c").inc() is library
    assert not hasattr(library, "__file__")
    assert sys.modules["json"] is json
    importing.silent(name)  # again, as each module of a benchmark that stands alone does
    assert sys.modules[name] is library


def test_a_square_product_gets_what_such_products_have_been_seen_to_get():
    one = product("square", 8_192, 8_192, 8_192)
    assert one.flops / one.seconds == pytest.approx(790e12, rel=0.01)


def test_a_product_takes_longer_for_more_and_for_a_wave_begun():
    wave = product("out", 128 * 33, 1_024, 1_024).seconds  # 132 tiles of 128 by 256
    assert product("out", 128 * 34, 1_024, 1_024).seconds > 1.2 * wave
    assert product("out", 128 * 33, 1_024, 2_048).seconds > 1.6 * wave
    assert product("out", 128 * 33, 1_024, 1_024, got=BAD, library=BAD_CUBLAS).seconds > wave
    adding = product("out", 128 * 33, 1_024, 1_024, adds=True).seconds
    assert adding > wave + 128 * 33 * 1_024 * 4 / LIKELY.read  # what it adds to comes when its tiles are done
    few = product("few", 64, 6_144, 1_024)
    assert few.bound != "tiles" or few.seconds > 2 * 6_144 * 1_024 / LIKELY.read  # the weights have to come


def test_pairs_are_those_that_see_each_other():
    (forward,) = Asked("any", 7, 5, 3, queries=2).forwards(QWEN_0_6B)
    sees = last = 0
    for first, end, prefix_first, prefix_end in forward.tiles.tolist():
        for token in range(first, end):
            seen = prefix_end - prefix_first + token - int(forward.starts[token]) + 1
            sees += seen
            last += seen * (token in forward.last)
    assert (pairs(forward), pairs(forward, last=True)) == (sees, last)


def test_programs_are_those_that_the_kernel_runs():
    (forward,) = TEXT.forwards(QWEN_0_6B)
    found = list(programs(forward, ATTENDING))
    assert len(found) == len(forward.tiles)
    assert sum(one.tokens for one in found) == len(forward)
    assert Program(tokens=64, keys=64) in found  # of the prefix itself
    assert Program(tokens=64, keys=70 + 64) in found  # of the first item: its prefix and itself
    assert sorted(found, key=lambda one: -one.keys) == found
    halves = list(programs(forward, replace(ATTENDING, tokens=32)))
    assert sum(one.tokens for one in halves) == len(forward)
    assert 1 < executed(forward, replace(ATTENDING, tokens=32)) < executed(forward, ATTENDING)


def test_attention_takes_no_less_than_its_instructions_and_its_tensor_cores():
    (forward,) = TEXT.forwards(QWEN_0_6B)
    one = attention(forward, ATTENDING, 16)
    assert one.seconds >= max(one.parts["of which issue"], one.parts["of which tensor cores"])
    assert attention(forward, replace(ATTENDING, hot=800), 16).seconds > one.seconds
    assert attention(forward, replace(ATTENDING, ctas=1), 16).seconds > one.seconds
    assert attention(forward, ATTENDING, 16, spare=136).seconds > one.seconds
    assert attention(forward, ATTENDING, 16, got=BAD).seconds > one.seconds


def test_a_tensor_is_in_the_cache_while_it_and_what_came_since_fit():
    cache = model.L2(100.0)
    assert not cache.touch("a", 40.0)
    assert not cache.touch("b", 50.0)
    assert cache.touch("a", 40.0)
    assert not cache.touch("c", 70.0)
    assert not cache.touch("a", 40.0)
    assert not cache.touch("large", 101.0)
    assert not cache.touch("large", 101.0)


def test_needed_flops_are_counted_by_hand():
    """One prefix of 2 and one item of 1: every matrix once a token; in the last layer what is scored needs."""
    shape = replace(QWEN_0_6B, num_hidden_layers=2)
    (forward,) = Asked("one", 2, 1, 1).forwards(shape)
    qkv, rest = 1_024 * 4_096, 2_048 * 1_024 + 3 * 1_024 * 3_072
    first = 3 * (qkv + rest) + 2 * 2_048 * 6  # 1 + 2 + 3 pairs
    last = 3 * 1_024 * 2_048 + 1_024 * 2_048 + rest + 2 * 2_048 * 3
    assert model.needed_flops(shape, forward) == 2 * (first + last)


def test_a_forward_is_the_launches_of_the_device():
    (forward,) = TEXT.forwards(QWEN_0_6B)
    found = model.predicted(QWEN_0_6B, forward, FORMS)
    assert len(found.launches) == 28 * model.A_LAYER + 4  # gather, two of the scored places, head
    assert sum(found.by_kind().values()) == pytest.approx(found.seconds)
    assert 0 < found.needed / found.seconds / model.PEAK == found.share < 1
    products = sum(one.seconds for one in found.launches if one.name.endswith("product"))
    assert found.needed / products < 790e12  # no product is quicker than the longest
    bad = model.predicted(QWEN_0_6B, forward, FORMS, got=BAD, library=BAD_CUBLAS)
    assert bad.share < found.share


def test_shares_grow_with_forwards_and_with_every_step():
    (forward,), (few,) = TEXT.forwards(QWEN_0_6B), FEW.forwards(QWEN_0_6B)
    share = model.predicted(QWEN_0_6B, forward, FORMS).share
    assert model.predicted(QWEN_0_6B, few, FORMS).share < share
    for step in model.STEPS:
        assert model.predicted(QWEN_0_6B, forward, FORMS, steps=frozenset({step})).share > share, step


def test_the_row_is_of_as_many_requests_as_a_forward_holds():
    (packed,), (alone,) = PACKED.forwards(QWEN_0_6B), TEXT.forwards(QWEN_0_6B)
    assert (len(packed), len(packed.items)) == (2 * len(alone), 100)
    assert TEXT.filling(2 * len(alone) - 1).queries == 1
    assert EMBEDDED.filling().queries == 64


def test_a_product_by_triton_with_swiglu_is_bound_by_the_cache_and_gives_nothing():
    (forward,) = PACKED.forwards(QWEN_0_6B)
    found = model.predicted(QWEN_0_6B, forward, FORMS, steps=frozenset({model.GATED_BY_TRITON}))
    (bound,) = {one.bound for one in found.launches[:-9] if one.name == "gate and up product"}
    assert bound == "L2 cache"
    assert found.share < model.predicted(QWEN_0_6B, forward, FORMS).share


def test_a_pruned_model_and_embedded_items_score_more_a_second():
    def rate(shape, asked):
        (forward,) = asked.forwards(shape)
        return model.predicted(shape, forward, FORMS).items_per_s

    assert rate(PRUNED_375M, TEXT) > 1.5 * rate(QWEN_0_6B, TEXT)
    assert rate(QWEN_0_6B, EMBEDDED) > 20 * rate(QWEN_0_6B, TEXT)


def test_gaps_are_what_lies_between_forwards():
    watch = Watch(lambda launch: launch, device=type("Device", (), {"type": "cpu"})())
    watch.spans[:] = [(0.0, 1.0), (1.5, 3.0), (3.5, 4.0)]
    assert watch.gap_share() == pytest.approx(1 / 4)
    called = []
    watch(lambda: called.append(1))()
    assert called == [1] and len(watch.spans) == 4


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    return tried_cells("ranker_kernel_cells.py", tmp_path_factory.mktemp("cells"))


def test_every_device_cell_runs_and_finds_its_rows(tried):
    """In the interpreter: that the code of the device rows runs and peers agree; its times mean nothing."""
    assert tried["found"].keys() | tried["needs"].keys() == {row.name for row in DEVICE}
    assert tried["needs"].keys() <= {"ranker/0.6B/ratio_best_server"}
    assert all(value > 0 for value in tried["found"].values())


def test_a_server_is_asked_nothing_that_is_in_its_cache(monkeypatch):
    from benchmarks.ranker_kerneling import cells

    asked = []

    def made(names, _):
        return {
            name: lambda request: asked.append(np.concatenate([one.tokens for one in request.items]).tobytes())
            for name in names
        }

    monkeypatch.setattr(cells.servers, "installed", lambda: ["some server"])
    monkeypatch.setattr(cells.servers, "written", lambda _, folder: folder)
    monkeypatch.setattr(cells.servers, "made", made)
    monkeypatch.setattr(cells, "score", lambda *_: None)
    monkeypatch.setattr(cells.Session, "backend", lambda *_: None)
    monkeypatch.setattr(cells.Session, "model", lambda *_: None)
    session = cells.Session(torch.device("cpu"), runs=7)
    cells.with_servers(session)
    assert len(asked) == len(set(asked)) == WARM + session.runs


def test_cells_need_no_installation_and_say_what_was_timed(tried):
    assert tried["beside"] == ["prometheus_client", "structlog"]  # what stands for them, and nothing else
    cells = {cell["cell"]: cell for cell in tried["cells"]}
    assert {"0.6B/text", "375M/text", "0.6B/text_900", "0.6B/embedding_items"} <= cells.keys()
    assert {"ours", "transformers, sdpa"} <= cells["peers"]["ms"].keys()
    assert {"ours", "two calls", "flex"} == cells["attention"]["ms"].keys()
    assert cells["serving"]["requests"] > 0 and cells["serving"]["forwards"] > 0
