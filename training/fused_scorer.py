"""Fits the ranker's cheap scorer: ranker/backends/fused_scorer.json.

    python training/fused_scorer.py [--data ../shared/data] [--seed 0]

One weight a feature (ranker/backends/features.py) and four thresholds: a proportional-odds model of the grade
(McCullagh 1980) with a listwise term on the same score, so that one line both orders a pool and, at the third
threshold, gives P(grade >= 3). Fitted on the train split alone; strength of the penalty and of the listwise term
chosen by 5-fold cross-validation over its queries. Each pair is seen twice, with the fast lane's vector and with the
transformer's, because an index holds both. dev and private are measured at the end and choose nothing.

Remote and hours cannot be fitted (no graded posting says them): their weights are set by hand, PRIORS below.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from corpus import DEFAULT_CACHE, DEFAULT_DATA, Judged, load_judged, load_postings
from measures import ndcg
from teacher import teacher_vectors

from penstock.ranker.backends.features import FEATURES, ItemFeatures, Rarity, compute, query_features
from penstock.ranker.summarizer.extractive import ExtractiveSummarizer
from penstock.retrieval.encoder.embedded import EmbeddedEncoder
from penstock.retrieval.encoder.planes import Floats, dense_floats
from penstock.retrieval.encoder.template import attribute_text, posting_text
from penstock.schemas.events import PostingText, QueryVector, Vector
from penstock.schemas.text import terms

OUT = Path(__file__).resolve().parents[1] / "ranker" / "backends" / "fused_scorer.json"
PRIORS = {"remote_match": 0.5, "remote_conflict": -1.5, "hours_match": 0.5, "hours_conflict": -1.5}
COMMON_TERMS = 3_000  # whose idf the JSON ships; rarer ones share one value
VIEWS = ("fast_vectors", "refined_vectors")
SUMMARY_TOKENS = 96  # as the models role makes them (settings: models.summary_tokens)
PENALTIES = (1e-4, 1e-3, 1e-2)
LISTWISE = (0.0, 0.3, 1.0)
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Pools:
    """Features [queries, views, pool, F] and grades [queries, pool] of equally long pools."""

    features: Numbers
    grades: npt.NDArray[np.int64]

    def take(self, rows: npt.NDArray[np.int64]) -> Pools:
        return Pools(self.features[rows], self.grades[rows])


@dataclass(frozen=True, slots=True)
class Line:
    """The model: weights [F] on raw features, thresholds [4] (logit of P(grade >= g) is score - threshold[g - 1])."""

    weights: Numbers
    thresholds: Numbers

    def scores(self, features: Numbers) -> Numbers:
        return features @ self.weights

    def good(self, features: Numbers) -> Numbers:
        """P(grade >= 3)."""
        return 1 / (1 + np.exp(self.thresholds[2] - self.scores(features)))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder of the data sets")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="teacher vectors, outside version control")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)

    postings, judged = load_postings(args.data), load_judged(args.data)
    rarity = _rarity(list(postings.values()))
    encoder = EmbeddedEncoder()
    pools = _pools(postings, judged, rarity, encoder, args.cache)
    rows = {
        name: np.array([i for i, q in enumerate(judged) if q.split == name]) for name in ("train", "dev", "private")
    }
    train = pools.take(rows["train"])

    folds = np.random.default_rng(args.seed).permutation(len(rows["train"])) % 5
    tried = {
        (penalty, listwise): _cross_validated(train, folds, penalty, listwise)
        for penalty, listwise in product(PENALTIES, LISTWISE)
    }
    for (penalty, listwise), value in tried.items():
        print(f"penalty {penalty:g}, listwise {listwise:g}: cross-validated NDCG@10 {value:.4f}")
    penalty, listwise = max(tried, key=lambda key: tried[key])
    line = _fit(train, penalty, listwise)
    metrics = {
        name: {
            "fast_vectors": _metrics(line, pools.take(row), 0),
            "refined_vectors": _metrics(line, pools.take(row), 1),
        }
        for name, row in rows.items()
    }
    metrics["train"]["cross_validated_ndcg10"] = {"both_vectors": round(tried[penalty, listwise], 4)}
    print(json.dumps(metrics, indent=2))
    for name, weight in zip(FEATURES, line.weights, strict=True):
        print(f"{name:20s} {weight:+.3f}{' (set by hand)' if name in PRIORS else ''}")
    _write(args.out, line, rarity, encoder, metrics, {"penalty": penalty, "listwise": listwise, "seed": args.seed})


def _rarity(postings: list[PostingText]) -> Rarity:
    documents: Counter[str] = Counter()
    for posting in postings:
        documents.update({*terms(attribute_text(posting)), *terms(posting.description)})
    n = len(postings)
    common = sorted(documents.items(), key=lambda pair: (-pair[1], pair[0]))[:COMMON_TERMS]
    idf = {term: round(float(np.log1p((n - df + 0.5) / (df + 0.5))), 1) for term, df in common}
    return Rarity(idf, round(max(idf.values()) + 1.0, 1))


def _pools(
    postings: dict[str, PostingText], judged: list[Judged], rarity: Rarity, encoder: EmbeddedEncoder, cache: Path
) -> Pools:
    ids = sorted({key for query in judged for key in query.posting_ids})
    place = {key: index for index, key in enumerate(ids)}
    vectors = encoder.encode_postings([postings[key] for key in ids])
    every = list(postings)
    teacher = teacher_vectors([posting_text(posting) for posting in postings.values()], cache)
    refined = dict(zip(every, teacher, strict=True))
    summarise = ExtractiveSummarizer(SUMMARY_TOKENS)
    summaries = [summarise.summarize(postings[key]) for key in ids]
    made = []
    for query, vector in zip(judged, encoder.encode_queries([q.text for q in judged]), strict=True):
        asked = query_features(query.text, rarity)
        views = []
        for view in range(2):
            items = [
                _item(
                    postings[key],
                    summaries[place[key]],
                    vectors[place[key]],
                    dense_floats(vectors[place[key]].dense) if view == 0 else refined[key],
                    vector,
                )
                for key in query.posting_ids
            ]
            views.append(compute(asked, items))
        made.append(np.stack(views))
    return Pools(np.stack(made), np.array([query.grades for query in judged]))


def _item(posting: PostingText, summary: str, vector: Vector, dense: Floats, query: QueryVector) -> ItemFeatures:
    wanted = np.frombuffer(query.dense, dtype="<f4")
    lexical = np.frombuffer(query.lexical or b"", dtype="<f4")
    sketch = np.frombuffer(vector.sketch or b"", dtype=np.int8).astype(np.float32)
    return ItemFeatures(
        title=posting.title,
        company=posting.company,
        location=posting.location,
        grade=posting.grade,
        summary=summary,
        dense=float(dense @ wanted),
        lexical=float(sketch @ lexical),
    )


def _cross_validated(train: Pools, folds: npt.NDArray[np.int64], penalty: float, listwise: float) -> float:
    """Mean NDCG@10 over both views of every query, each scored by a line fitted without its fold."""
    values: list[float] = []
    for fold in range(5):
        line = _fit(train.take(np.flatnonzero(folds != fold)), penalty, listwise)
        left = train.take(np.flatnonzero(folds == fold))
        values += [
            ndcg(list(grades), line.scores(features[view]))
            for features, grades in zip(left.features, left.grades, strict=True)
            for view in range(2)
        ]
    return float(np.mean(values))


def _fit(pools: Pools, penalty: float, listwise: float) -> Line:
    """Deterministic: a convex loss by L-BFGS on standardised features, the priors' weights held."""
    free = np.array([name not in PRIORS for name in FEATURES])
    flat = pools.features.reshape(-1, len(FEATURES))[:, free]
    mean, spread = flat.mean(axis=0), flat.std(axis=0)
    spread = np.where(spread > 1e-9, spread, np.inf)  # a feature that never varies gets no weight
    x = torch.from_numpy((pools.features[..., free] - mean) / spread)
    grades = torch.from_numpy(pools.grades)[:, None, :].expand(x.shape[:3])
    reached = torch.stack([(grades >= g).double() for g in range(1, 5)], dim=-1)
    gains = torch.exp2(grades.double()) - 1
    wanted = gains / gains.sum(-1, keepdim=True).clamp(min=1e-9)
    weights = torch.zeros(int(free.sum()), dtype=torch.float64, requires_grad=True)
    thresholds = torch.tensor([0.0, 1.0, 1.5, 2.0], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights, thresholds], max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        score = x @ weights
        logits = score[..., None] - thresholds
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, reached)
        if listwise:
            loss = loss - listwise * (wanted * torch.log_softmax(score, -1)).sum(-1).mean() / x.shape[2]
        loss = loss + penalty * (weights**2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call, arg-type]
    fitted = weights.detach().numpy() / spread
    every = np.array([PRIORS.get(name, 0.0) for name in FEATURES])
    every[free] = fitted
    return Line(every, thresholds.detach().numpy() + float(fitted @ mean))


def _metrics(line: Line, pools: Pools, view: int) -> dict[str, float]:
    features = pools.features[:, view]
    p, good = line.good(features), pools.grades >= 3
    pairs = zip(pools.grades, line.scores(features), strict=True)
    return {
        "ndcg10": round(float(np.mean([ndcg(list(grades), scores) for grades, scores in pairs])), 4),
        "brier": round(float(((p - good) ** 2).mean()), 4),
        "mean_p": round(float(p.mean()), 4),
        "share_good": round(float(good.mean()), 4),
        "calibration_error": round(_calibration_error(p.ravel(), good.ravel()), 4),
    }


def _calibration_error(p: Numbers, good: npt.NDArray[np.bool_]) -> float:
    """Mean distance between predicted and observed shares over ten bins of equal width, weighted by size."""
    bins = np.minimum((p * 10).astype(int), 9)
    return float(sum(abs(p[bins == b].sum() - good[bins == b].sum()) for b in range(10)) / len(p))


def _write(
    out: Path, line: Line, rarity: Rarity, encoder: EmbeddedEncoder, metrics: object, chosen: dict[str, float]
) -> None:
    content = {
        "made_by": f"python training/fused_scorer.py --seed {int(chosen['seed'])}",
        "data": "relevance_judgements, train split; idf over usajobs_postings and skillspan_postings",
        "space_id": encoder.space_id,
        "encoder_ids": [encoder.encoder_id, encoder.refined_encoder_id],
        "chosen": chosen,
        "set_by_hand": PRIORS,
        "metrics": metrics,
        "features": list(FEATURES),
        "weights": [round(float(weight), 6) for weight in line.weights],
        "intercept": round(-float(line.thresholds[2]), 6),
        "rarity": {"unseen": rarity.unseen, "idf": dict(rarity.idf)},
    }
    text = json.dumps({**content, "rarity": None}, indent=1)
    rarity_text = json.dumps(content["rarity"], separators=(",", ":"))
    out.write_text(text.replace('"rarity": null', f'"rarity": {rarity_text}') + "\n")
    print(f"wrote {out.name}: {out.stat().st_size // 1024} kB")


if __name__ == "__main__":
    main()
