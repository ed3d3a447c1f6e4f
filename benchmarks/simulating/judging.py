"""What depth is worth: NDCG@10 by depth of real queries, and the margins that a ranker could expect of each candidate.

    python -m benchmarks.simulating.judging      # writes data/relevance.npz from ../shared/data, a minute

Source: 850 queries with 16 graded postings each (../shared/data/relevance_judgements) over the distinct US federal
postings. Retrieval's order is BM25 over titles and texts (k1 1.2, b 0.75). The language model reads the best `depth` of
it and orders them first; the others follow in BM25's order, as ranker/scoring.py does. It sees the grade with normal
noise, drawn once a pair, such that the whole judged pool re-ranked has the 0.823 of a cross-encoder fitted on train
(README of the judgements). Postings without a grade are left out of both orders ("condensed lists"), gain 2^grade - 1.

Margins are what the production code would know beforehand: the expected gain of the candidate at a rank, from its BM25
score alone (a Poisson regression on log rank and the score over the query's best), fitted on the train queries. Curves
are of the dev queries, which the fit has not seen.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

HERE = Path(__file__).resolve().parent / "data"
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
DEPTHS = 64  # the deepest that the language model's part reads on a CPU
CUT = 10
K1, B = 1.2, 0.75
POOL_NDCG = 0.823  # of the judged pool re-ranked: a MiniLM cross-encoder fitted on train
_WORD = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True, slots=True)
class Judged:
    """One query: BM25's best scores, and its judged postings in BM25's order."""

    split: str
    scores: Floats  # [DEPTHS], not rising
    ranks: NDArray[np.int64]  # [judged], 0 is the best
    grades: NDArray[np.int64]  # [judged]


def ndcg(gains: Sequence[float] | Floats, ideal: Sequence[float] | Floats) -> float:
    discount = 1 / np.log2(np.arange(2, CUT + 2))
    best = np.sort(np.asarray(ideal, np.float64))[::-1][:CUT]
    top = float(best @ discount[: len(best)])
    return float(np.asarray(gains, np.float64)[:CUT] @ discount[: min(CUT, len(gains))]) / top if top else math.nan


def curve(one: Judged, seen: Floats) -> Floats:
    """NDCG@10 after the best 0, 1, … DEPTHS were read; [DEPTHS + 1]. `seen`: what the model makes of each judged."""
    gains = 2.0**one.grades - 1
    out = np.empty(DEPTHS + 1)
    for depth in range(DEPTHS + 1):
        read = int((one.ranks < depth).sum())
        order = [*np.argsort(-seen[:read], kind="stable").tolist(), *range(read, len(gains))]
        out[depth] = ndcg(gains[order], gains)
    return out


def fit_margins(train: Sequence[Judged], curves: Sequence[Floats]) -> Floats:
    """Coefficients of log E[step of the curve at a rank] for `_features`. By Newton's method on the Poisson likelihood,
    steps below nothing counted as nothing."""
    x = np.concatenate([_features(one.scores) for one in train])
    y = np.concatenate([np.maximum(0.0, np.diff(each)) for each in curves])
    w = np.zeros(x.shape[1])
    w[0] = math.log(y.mean())
    for _ in range(50):
        mean = np.exp(x @ w)
        w = w + np.linalg.solve(x.T @ (x * mean[:, None]) + 1e-9 * np.eye(len(w)), x.T @ (y - mean))
    return w


def margins(scores: Floats, weights: Floats) -> Floats:
    """Expected gain of each candidate, not rising; [DEPTHS]."""
    return np.minimum.accumulate(np.exp(_features(scores) @ weights))


def _features(scores: Floats) -> Floats:
    """[DEPTHS, 4]: 1, log rank, the score over the best and over the last of the page."""
    ranks = np.arange(1, DEPTHS + 1)
    best, page = max(scores[0], 1e-9), max(scores[CUT - 1], 1e-9)
    return np.stack([np.ones(DEPTHS), np.log(ranks), scores / best, scores / page], axis=1)


def noise_for(queries: Sequence[Judged], unit: Sequence[Floats], target: float) -> float:
    """The deviation at which re-ranking the whole pool by grade + noise has this mean NDCG: by bisection."""
    low, high = 0.0, 8.0
    for _ in range(30):
        middle = (low + high) / 2
        found = np.nanmean([_pool(one, noise * middle) for one, noise in zip(queries, unit, strict=True)])
        low, high = (middle, high) if found > target else (low, middle)
    return (low + high) / 2


def _pool(one: Judged, noise: Floats) -> float:
    gains = 2.0**one.grades - 1
    return ndcg(gains[np.argsort(-(one.grades + noise), kind="stable")], gains)


def judged(shared: Path) -> Iterator[Judged]:
    """The train and dev queries that have anything of use among their judged."""
    postings = dict(_postings(shared / "usajobs_postings"))
    ids = {posting: at for at, posting in enumerate(postings)}
    bm25 = Bm25([_words(text) for text in postings.values()])
    graded: defaultdict[str, dict[int, int]] = defaultdict(dict)
    with (shared / "relevance_judgements" / "grades.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["posting_id"] in ids:
                graded[row["query_id"]][ids[row["posting_id"]]] = int(row["grade"])
    for line in (shared / "relevance_judgements" / "queries.jsonl").read_text(encoding="utf-8").splitlines():
        query = json.loads(line)
        grades = graded.get(query["query_id"], {})
        if query["split"] not in ("train", "dev") or max(grades.values(), default=0) == 0:
            continue
        scores = bm25.scores(_words(query["query"]))
        order = np.argsort(-scores, kind="stable")
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        pairs = sorted((int(place[at]), grade) for at, grade in grades.items())
        ranks, values = np.array(pairs, np.int64).T
        yield Judged(query["split"], scores[order[:DEPTHS]], ranks, values)


class Bm25:
    def __init__(self, texts: Sequence[Sequence[str]]) -> None:
        self._n = len(texts)
        lengths = np.array([len(text) for text in texts], np.float64)
        self._norm = K1 * (1 - B + B * lengths / lengths.mean())
        self._lists: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        for at, text in enumerate(texts):
            for word, count in Counter(text).items():
                self._lists[word].append((at, count))

    def scores(self, words: Sequence[str]) -> Floats:
        out = np.zeros(self._n)
        for word in set(words):
            if found := self._lists.get(word):
                at, count = np.array(found, np.int64).T
                out[at] += math.log(1 + (self._n - len(at) + 0.5) / (len(at) + 0.5)) * (
                    count * (K1 + 1) / (count + self._norm[at])
                )
        return out


def _postings(folder: Path) -> Iterator[tuple[str, str]]:
    for part in sorted(folder.glob("part-*.jsonl")):
        for line in part.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            yield row["id"], f"{row['title']} {row['agency'] or ''} {row['location'] or ''} {row['text']}"


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED, help="the shared data folder")
    queries = list(judged(parser.parse_args().data))
    rng = np.random.default_rng(0)
    unit = [rng.standard_normal(len(one.ranks)) for one in queries]
    noise = noise_for(queries, unit, POOL_NDCG)
    curves = [curve(one, one.grades + noise * each) for one, each in zip(queries, unit, strict=True)]
    split = {name: [at for at, one in enumerate(queries) if one.split == name] for name in ("train", "dev")}
    weights = fit_margins([queries[at] for at in split["train"]], [curves[at] for at in split["train"]])
    dev = split["dev"]
    path = HERE / "relevance.npz"
    np.savez_compressed(
        path,
        curves=np.array([curves[at] for at in dev], np.float16),
        margins=np.array([margins(queries[at].scores, weights) for at in dev], np.float16),
    )
    means = np.mean([curves[at] for at in dev], axis=0)
    print(
        f"noise {noise:.3f}, weights {weights.round(3).tolist()}, {len(dev)} dev queries, {path.stat().st_size} bytes"
    )
    print("mean NDCG@10 at depth", {depth: round(float(means[depth]), 4) for depth in (0, 8, 16, 24, 32, 48, 64)})


if __name__ == "__main__":
    main()
