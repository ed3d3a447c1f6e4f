"""The rows of the ranker's kernels by name, as kerneling/rows.py has the retrieval's; and their operators."""

from __future__ import annotations

from benchmarks.kerneling.rows import Row

OPERATORS = (
    "add_rmsnorm",
    "gather_embeddings",
    "prefix_attention",
    "qk_norm_rope",
    "scaled_gemm",
    "swiglu",
    "yes_no_head",
)
ITEMS = "items/s"

KERNELS = (
    Row("interpreter/mismatches", "values", 0, "lower"),
    Row("aot/spilling_configs", "configs", 0, "lower"),
    Row("aot/over_shared_memory", "configs", 0, "lower"),
    Row("aot/configs", "configs", 20),
    Row("aot/attention/tensor_core", "1 if all", 1),
    Row("model/forward_share", "of peak FLOPs, predicted", 0.55),
)
DEVICE = (
    Row("ranker/0.6B/text", ITEMS, 3_300),
    Row("ranker/375M/text", ITEMS, 6_000),
    Row("ranker/0.6B/text_900", ITEMS, 600),
    Row("ranker/0.6B/embedding_items", ITEMS, 100_000),
    Row("ranker/0.6B/ratio_transformers", "x the best of transformers", 3),
    Row("ranker/0.6B/ratio_best_server", "x the best server", 1.3),
    Row("ranker/p99_ms", "ms", 500, "lower"),
    Row("attention/ratio_varlen", "x two varlen calls and a merge", 1.2),
    Row("attention/ratio_flex", "x flex attention", 1.2),
    Row("ranker/host_gap_share", "of time", 0.03, "lower"),
)
