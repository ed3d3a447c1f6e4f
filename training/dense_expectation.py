"""Fits what the dense product of a pair is likely to be, from its words: ranker/backends/dense_expectation.json.

    python training/dense_expectation.py

For pairs that have none: a posting that no model has read yet, a query while the models role is away. Least squares of
the dense feature on the word features below, over the pairs of the shipped demo sample that somebody judged (which
pairs; their grades are not used). The fused scorer puts the expectation in the dense product's place, so that its
probability stays near what it would be, instead of taking an unknown product for none at all.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from fused_scorer import OUT as SCORER
from fused_scorer import SUMMARY_TOKENS, _item

from penstock.infra.demo.sample import shipped_postings, shipped_queries
from penstock.ranker.backends.features import FEATURES, Rarity, compute, query_features
from penstock.ranker.summarizer.extractive import ExtractiveSummarizer
from penstock.retrieval.encoder.embedded import EmbeddedEncoder
from penstock.retrieval.encoder.minilm import MiniLM
from penstock.retrieval.encoder.planes import dense_floats
from penstock.schemas.validate import text_of

ROOT = Path(__file__).resolve().parents[1]
OUT = SCORER.with_name("dense_expectation.json")
OF = ("lexical", "query_length", "title_coverage", "head_coverage", "text_coverage", "title_purity", "title_whole")


def main() -> None:
    shipped = json.loads(SCORER.read_text())["rarity"]
    rarity = Rarity(shipped["idf"], shipped["unseen"])
    pools: dict[str, list[str]] = defaultdict(list)
    with (ROOT / "tests" / "retrieval" / "data" / "grades.csv").open(newline="") as lines:
        for row in csv.DictReader(lines):
            pools[row["query_id"]].append(row["posting_id"])
    wanted = {name for pool in pools.values() for name in pool}
    texts = {p.posting_id: text_of(p) for p in shipped_postings(0).postings if p.posting_id in wanted}
    encoder = EmbeddedEncoder(minilm=MiniLM(small=True))
    vectors = dict(zip(texts, encoder.encode_postings(list(texts.values())), strict=True))
    summarise = ExtractiveSummarizer(SUMMARY_TOKENS)
    queries = [query for query in shipped_queries() if pools[query.query_id]]
    rows = []
    for query, asked in zip(queries, encoder.encode_queries([query.event.text for query in queries]), strict=True):
        items = [
            _item(
                texts[name], summarise.summarize(texts[name]), vectors[name], dense_floats(vectors[name].dense), asked
            )
            for name in pools[query.query_id]
        ]
        rows.append(compute(query_features(query.event.text, rarity), items))
    values = np.concatenate(rows)
    x = np.column_stack([values[:, [FEATURES.index(name) for name in OF]], np.ones(len(values))])
    dense = values[:, FEATURES.index("dense")]
    fitted = np.linalg.lstsq(x, dense, rcond=None)[0]
    left = float(np.sqrt(np.mean((x @ fitted - dense) ** 2)))
    content = {
        "made_by": "python training/dense_expectation.py",
        "data": f"{len(values)} pairs of the shipped demo sample, fast lane's vectors",
        "metrics": {
            "dense_mean": round(float(dense.mean()), 4),
            "dense_sd": round(float(dense.std()), 4),
            "rmse": round(left, 4),
        },
        "of": list(OF),
        "weights": [round(float(weight), 5) for weight in fitted[:-1]],
        "intercept": round(float(fitted[-1]), 5),
    }
    OUT.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
