"""Which hybrid score makes an alert: precision and recall of the judged queries, taken as subscriptions.

    python training/alert_threshold.py [--data ../shared/data] [--split train]

In: usajobs_postings, skillspan_postings and relevance_judgements. Out: a table on standard output. Vectors are the
shipped embedded encoder's, as stored (bfloat16, int8): the score is the one that percolation compares with
`alerts.threshold`. Filters, which an alert's query also has, are left out. Deterministic; about two minutes on a core.

For each threshold, over the queries of a split:

    precision   of judged pairs at or above it, the share of grade >= 2 and of grade >= 3
    recall      of judged pairs of grade >= 3, the share at or above it
    a day       postings of the whole corpus at or above it, per thousand published: median and 95th percentile
    silent      queries that no posting of the corpus reaches
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from corpus import DEFAULT_DATA, Judged, load_judged, load_postings

from penstock.retrieval.encoder.embedded import EmbeddedEncoder
from penstock.retrieval.encoder.planes import Floats, dense_floats

THRESHOLDS = (0.30, 0.35, 0.40, 0.45, 0.50, 0.525, 0.55, 0.575, 0.60, 0.65, 0.70, 0.75, 0.80)
BATCH = 256


@dataclass(frozen=True, slots=True)
class Line:
    """One threshold's row of the table."""

    threshold: float
    judged: int  # judged pairs at or above it
    fair: float  # their share of grade >= 2
    good: float  # their share of grade >= 3
    recall: float  # of all judged pairs of grade >= 3
    median: float  # postings of a thousand that reach it, over queries
    busiest: float  # the same at the 95th percentile of queries
    silent: float  # share of queries that nothing reaches


def line(
    threshold: float, scores: Floats, pools: Sequence[npt.NDArray[np.int64]], grades: Sequence[npt.NDArray[np.int64]]
) -> Line:
    """`scores` float32 [queries, corpus]; each query's pool as corpus rows, and its grades."""
    judged = np.concatenate([row[pool] for row, pool in zip(scores, pools, strict=True)])
    grade = np.concatenate(list(grades))
    above = judged >= threshold
    reached = (scores >= threshold).sum(axis=1)
    published = 1000 * reached / scores.shape[1]
    return Line(
        threshold=threshold,
        judged=int(above.sum()),
        fair=float((grade[above] >= 2).mean()) if above.any() else float("nan"),
        good=float((grade[above] >= 3).mean()) if above.any() else float("nan"),
        recall=float(above[grade >= 3].mean()),
        median=float(np.median(published)),
        busiest=float(np.percentile(published, 95)),
        silent=float((reached == 0).mean()),
    )


def corpus_scores(encoder: EmbeddedEncoder, queries: Sequence[Judged], data: Path) -> tuple[Floats, dict[str, int]]:
    """Hybrid scores, float32 [queries, corpus], and the corpus row of each posting id."""
    postings = load_postings(data)
    dense, sketch = [], []
    every = list(postings.values())
    for start in range(0, len(every), BATCH):
        for vector in encoder.encode_postings(every[start : start + BATCH]):
            dense.append(dense_floats(vector.dense))
            sketch.append(np.frombuffer(vector.sketch or b"", np.int8))
    asked = encoder.encode_queries([query.text for query in queries])
    q_dense = np.stack([np.frombuffer(vector.dense, "<f4") for vector in asked])
    q_words = np.stack([np.frombuffer(vector.lexical or b"", "<f4") for vector in asked])
    scores = q_dense @ np.stack(dense).T + q_words @ np.stack(sketch).astype(np.float32).T
    return scores, {posting_id: row for row, posting_id in enumerate(postings)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--split", action="append", choices=("train", "dev", "private"), help="default: all three")
    given = parser.parse_args()
    torch.set_num_threads(1)
    queries = load_judged(given.data)
    scores, rows = corpus_scores(EmbeddedEncoder(), queries, given.data)
    for split in given.split or ("train", "dev", "private"):
        chosen = [n for n, query in enumerate(queries) if query.split == split]
        pools = [np.asarray([rows[p] for p in queries[n].posting_ids if p in rows], np.int64) for n in chosen]
        grades = [
            np.asarray([g for p, g in zip(queries[n].posting_ids, queries[n].grades, strict=True) if p in rows])
            for n in chosen
        ]
        print(f"\n{split}: {len(chosen)} queries\n")
        print("| threshold | judged | grade >= 2 | grade >= 3 | recall | per 1,000: median | 95th | silent |")
        print("|---|---|---|---|---|---|---|---|")
        for threshold in THRESHOLDS:
            one = line(threshold, scores[chosen], pools, grades)
            print(
                f"| {threshold:.3f} | {one.judged} | {one.fair:.2f} | {one.good:.2f} | {one.recall:.2f} | "
                f"{one.median:.2f} | {one.busiest:.1f} | {one.silent:.2f} |"
            )


if __name__ == "__main__":
    main()
