"""The benchmark of the kernels: its rows by name, its model's sense, and its device cells tried out on the CPU."""

from dataclasses import replace
from pathlib import Path

import pytest
from tried_cells import tried_cells

from benchmarks.kerneling.gpu import BAD, H200, LIKELY
from benchmarks.kerneling.model import Form, Ranking, Work, filtered_topk, rank, scan, tensor_cycles
from benchmarks.kerneling.rows import DEVICE, KERNELS, Row, add
from benchmarks.report import Report, Result, table

ROOT = Path(__file__).resolve().parents[2]
WORK = Work(10_000_000, 256, 16)
# 128 rows of 256 values at a time by eight warps, two buffers; the gate takes 1,024 rows a step.
FORM = Form(warps=8, ctas=1, hot=400, barriers=6, gate=600, flight=65_536, tile_rows=128, run=16, gate_rows=1_024)
RANKING = Ranking(rows=32, others=32, warps=1, ctas=12, hot=120, exact=480)


def test_a_row_that_could_not_be_measured_is_null_and_says_what_it_needs():
    report = Report("cuda")
    add(report, DEVICE, {"linr_replica/B1_ms": 0.9}, "cuda")
    by_name = {one.name: one.as_json() for one in report.results}
    assert by_name["cuda/linr_replica/B1_ms"]["value"] == 0.9
    assert "needs" not in by_name["cuda/linr_replica/B1_ms"]
    missing = by_name.pop("cuda/churn/visible_p99_ms")
    assert (missing["value"], missing["needs"]) == (None, "cuda")
    assert len(report.results) == len(DEVICE)
    assert "not measured: needs cuda" in table(report.results)
    assert [one.met for one in report.results].count(None) == len(DEVICE) - 1


def test_results_of_other_benchmarks_are_written_as_before():
    result = Result("stream/lost", 0, "postings", 0, "lower")
    assert result.as_json() == {
        "name": "stream/lost",
        "value": 0,
        "unit": "postings",
        "target": 0,
        "better": "lower",
        "peers": {},
    }


def test_a_figure_without_a_row_is_an_error():
    with pytest.raises(ValueError, match="no row is called churn/strange"):
        add(Report("cuda"), DEVICE, {"churn/strange": 1.0}, "cuda")


def test_names_are_those_of_the_issue():
    names = {f"kernels/{row.name}" for row in KERNELS} | {f"cuda/{row.name}" for row in DEVICE}
    assert len(names) == len(KERNELS) + len(DEVICE)
    assert {
        "kernels/interpreter/mismatches",
        "kernels/aot/spilling_configs",
        "kernels/aot/over_shared_memory",
        "kernels/aot/configs",
        "kernels/aot/filtered_topk/tensor_core",
        "kernels/model/filtered_topk/B16",
        "kernels/model/filtered_topk/B64",
        "cuda/filtered_topk/d256/k1000/B1",
        "cuda/filtered_topk/k1000_over_k10",
        "cuda/churn/100k_p99_ratio",
        "cuda/churn/visible_p99_ms",
        "cuda/linr_replica/B1_ms",
        "cuda/percolate/1m_postings_per_s",
    } <= names
    assert all(row.better in ("lower", "higher") for row in (*KERNELS, *DEVICE))
    assert Row("a", "b", 1).better == "higher"


def test_a_scan_whose_gate_and_epilogue_are_hidden_takes_what_its_bytes_take():
    light = replace(FORM, ctas=4, hot=50, gate=20)
    launch = scan(WORK, light)
    bytes_of = WORK.rows * WORK.row_bytes
    assert launch.bytes == pytest.approx(bytes_of)
    assert launch.bound == "memory"
    at_full_rate = bytes_of / (LIKELY.read * LIKELY.scanning)
    assert at_full_rate <= launch.seconds < 1.1 * at_full_rate  # the last wave of runs is not full


def test_what_costs_more_takes_longer():
    base = scan(WORK, FORM).seconds
    assert scan(replace(WORK, rows=2 * WORK.rows), FORM).seconds > 1.9 * base
    assert scan(WORK, replace(FORM, hot=2_500)).seconds > base
    assert (
        scan(WORK, replace(FORM, gate_rows=128)).seconds > base
    )  # a block a step: trips to memory one after the other
    assert scan(WORK, replace(FORM, flight=8_192)).seconds > base  # Little's law
    assert scan(WORK, FORM, got=BAD).seconds > base
    assert scan(WORK, replace(FORM, hot=2_500, waits=True)).seconds > scan(WORK, replace(FORM, hot=2_500)).seconds


def test_a_rank_is_bound_by_what_it_compares_or_by_the_way_of_what_it_compares_with():
    work = replace(WORK, batch=64)
    base = rank(work, RANKING, 1_564)
    assert base.bound == "issue"
    for slower in (replace(RANKING, hot=240), replace(RANKING, exact=4_800), replace(RANKING, warps=4)):
        assert rank(work, slower, 1_564).seconds > base.seconds
    assert rank(work, replace(RANKING, ctas=4), 1_564).bound == "one CTA's turn"
    assert rank(replace(work, k=2_000), RANKING, 1_564).parts["issue"] == pytest.approx(
        4 * base.parts["issue"], rel=0.1
    )
    assert rank(work, RANKING, 8_192).seconds > base.seconds  # programs that find no rows


def test_a_gate_is_free_where_another_cta_fills_its_time():
    slow = replace(FORM, gate_rows=128)
    assert scan(WORK, replace(slow, ctas=2)).bound == "memory"
    assert scan(WORK, slow).bound == "one CTA's turn"


def test_small_query_tiles_are_bound_by_what_tensor_cores_read():
    few, _ = tensor_cycles(replace(WORK, batch=16), 128, H200)
    many, _ = tensor_cycles(replace(WORK, batch=128), 128, H200)
    assert few > 128 * 16 * 256 / H200.fmas
    assert many == pytest.approx(128 * 128 * 256 / H200.fmas)


def test_the_share_counts_every_launch_and_is_never_more_than_all():
    for batch in (16, 64):
        work = replace(WORK, batch=batch)
        likely, bad = (filtered_topk(work, FORM, FORM, RANKING, got=got) for got in (LIKELY, BAD))
        assert [launch.name for launch in likely.launches] == [
            "plan",
            "seed",
            "threshold",
            "scan",
            "select",
            "rescore",
            "rank",
        ]
        assert 0 < bad.share < likely.share < 1
        assert likely.seconds > sum(launch.seconds for launch in likely.launches)
        assert likely.work.needed == work.rows * (256 * 2 + 28)


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    return tried_cells("kernel_cells.py", tmp_path_factory.mktemp("cells"))


def test_every_device_cell_runs_and_finds_rows_that_there_are(tried):
    """In the interpreter: that the code of the device rows runs and its answers agree; its times mean nothing."""
    known = {row.name for row in DEVICE}
    assert tried["found"].keys() <= known
    left = known - tried["found"].keys()
    assert left == {"filtered_topk/d256/k1000/B16", "filtered_topk/d256/k1000/B256"}  # cells' other batches
    assert tried["found"]["int8_topk/id_differences"] == 0
    assert all(value >= 0 for value in tried["found"].values())


def test_cells_say_what_was_timed(tried):
    cells = {cell["cell"]: cell for cell in tried["cells"]}
    assert {"batch/B1", "batch/B2", "clustered", "int8", "linr", "percolate", "churn"} <= cells.keys()
    assert {"ours", "ours, eager", "torch eager", "torch chunked", "ours, k=10"} <= cells["batch/B2"]["ms"].keys()
    assert {"int8", "int8, eager", "bf16", "bf16, eager"} == cells["int8"]["ms"].keys()
    assert cells["churn"]["visible_ms"][0] > 0
