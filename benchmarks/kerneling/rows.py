"""The rows of the report by name: what is said, in which unit, and what it should be. Nothing is measured here."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.report import Report

CUDA = "cuda"
OPERATORS = ("filtered_topk", "gather_topk", "int8_topk", "percolate", "scatter_rows")  # of kernels/: the retrieval's
BANDWIDTH = "of measured read bandwidth"


@dataclass(frozen=True, slots=True)
class Row:
    name: str  # without its subject
    unit: str
    target: float
    better: str = "higher"


KERNELS = (
    Row("interpreter/mismatches", "ids", 0, "lower"),
    Row("aot/spilling_configs", "configs", 0, "lower"),
    Row("aot/over_shared_memory", "configs", 0, "lower"),
    Row("aot/configs", "configs", 30),
    Row("aot/filtered_topk/tensor_core", "1 if all", 1),
    Row("model/filtered_topk/B16", "of read bandwidth, predicted", 0.85),
    Row("model/filtered_topk/B64", "of read bandwidth, predicted", 0.85),
)
DEVICE = (
    Row("filtered_topk/d256/k1000/B1", BANDWIDTH, 0.85),
    Row("filtered_topk/d256/k1000/B16", BANDWIDTH, 0.85),
    Row("filtered_topk/d256/k1000/B64", BANDWIDTH, 0.85),
    Row("filtered_topk/d256/k1000/B256", "of measured peak FLOPs", 0.6),
    Row("filtered_topk/d256/k1000/B64/ratio", "x the best torch", 4),
    Row("filtered_topk/k1000_over_k10", "ratio", 1.1, "lower"),
    Row("filtered/1pct_clustered/mask_topk", "x mask and topk", 20),
    Row("filtered/1pct_clustered/gather", "x gather, matmul and topk", 3),
    Row("int8_topk/ratio", "x bf16", 1.7),
    Row("int8_topk/id_differences", "ids", 0, "lower"),
    Row("churn/100k_p99_ratio", "ratio", 1.05, "lower"),
    Row("churn/visible_p99_ms", "ms", 50, "lower"),
    Row("linr_replica/B1_ms", "ms", 1.05, "lower"),
    Row("percolate/1m_postings_per_s", "postings/s", 100_000),
)


def add(report: Report, rows: tuple[Row, ...], found: dict[str, float], needs: dict[str, str] | str) -> None:
    """Every row in order: with its value, or null and what it needs (by name, or the same of all)."""
    strangers = found.keys() - {row.name for row in rows}
    if strangers:
        raise ValueError(f"no row is called {', '.join(sorted(strangers))}: what is found goes into rows.py first")
    for row in rows:
        if row.name in found:
            report.add(row.name, found[row.name], row.unit, row.target, row.better)
        else:
            wanted = needs if isinstance(needs, str) else needs.get(row.name, "")
            report.lacking(row.name, row.unit, row.target, row.better, wanted or "a cell that finds it")
