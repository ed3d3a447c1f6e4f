"""Makes the shipped tables of retrieval/encoder: the posting encoder's token table and the lexical sketch.

    python training/posting_encoder.py [--data ../shared/data] [--seed 0] [--out retrieval/encoder/tables]

1. The teacher: all-MiniLM-L6-v2's vectors of every distinct posting, of its title and attributes alone, of a later
   piece of its description, and of O*NET occupations (cached outside version control).
2. The student: token vectors from the transformer's own outputs, fitted to the teacher (student.py).
3. The sketch: idf over the postings, then the hybrid weight, chosen on the train split's queries alone.
4. Measures on train, dev and private, printed and written to MANIFEST.json beside the tables.

Uses every posting's text without grades in 1 and 3's idf, SkillSpan's too; `--leave-out-skillspan` fits without them,
to see what the private split says of postings never read (prints, writes nothing).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from corpus import DEFAULT_CACHE, DEFAULT_DATA, Judged, load_judged, load_postings, occupation_texts
from measures import Measured, measure
from safetensors.numpy import save_file
from student import Bags, FitSettings, Student, fit, mean_cosine
from teacher import TOKENS, teacher_vectors

from penstock.retrieval.encoder.minilm import MiniLM, model_directory, tokenizer_file
from penstock.retrieval.encoder.planes import Floats, dense_bytes, dense_floats
from penstock.retrieval.encoder.shipped import MANIFEST_FILE, SKETCH_FILE, TABLES, TOKEN_TABLE_FILE
from penstock.retrieval.encoder.sketch import (
    HEAD_COUNT,
    IDF_BUCKETS,
    IDF_STEP,
    LexicalSketch,
    SketchParameters,
    idf_bucket,
)
from penstock.retrieval.encoder.template import TEMPLATE_ID, attribute_text, posting_text
from penstock.retrieval.encoder.token_table import TokenTable, posting_tokens
from penstock.retrieval.encoder.weights import file_sha256
from penstock.retrieval.encoder.wordpieces import WordPieces
from penstock.schemas.events import PostingText
from penstock.schemas.text import stable_hash, terms

HELD_OUT = 500  # postings whose whole text the student never sees as such
WEIGHTS = (0.02, 0.025, 0.03, 0.035, 0.04, 0.045, 0.05, 0.06)  # hybrid weights tried
FIT = FitSettings(epochs=8, batch=512, vector_rate=2e-3)
_SPLITS = ("train", "dev", "private")


@dataclass(frozen=True, slots=True)
class Texts:
    """What the student is fitted on: heads and bodies, and the teacher's vectors of them."""

    heads: list[str]
    bodies: list[str]
    teacher: Floats
    owners: list[str]  # the posting's id, empty for O*NET


def main(arguments: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(arguments)
    torch.set_num_threads(args.threads)
    started = time.monotonic()
    postings, judged = load_postings(args.data), load_judged(args.data)
    fitted = {key: p for key, p in postings.items() if not (args.leave_out_skillspan and _skillspan(key))}
    pieces = WordPieces(tokenizer_file())
    texts = _texts(postings, args.data, args.cache)
    bags = _bags(pieces, texts)
    usajobs = np.array([index for index, key in enumerate(postings) if not _skillspan(key)])
    held_out = np.random.default_rng(args.seed).choice(len(usajobs), HELD_OUT, replace=False)
    left_out = np.flatnonzero([args.leave_out_skillspan and _skillspan(owner) for owner in texts.owners])
    unread = np.union1d(held_out, left_out).astype(np.int64)
    print(f"{len(fitted):,} postings, {len(bags) - len(unread):,} texts to fit, {len(unread):,} kept back", flush=True)

    student = Student(
        _token_vectors(pieces, args.cache), _starting_weight(bags, pieces.vocabulary), args.vector_rate > 0
    )
    settings = replace(FIT, epochs=args.epochs, vector_rate=args.vector_rate, seed=args.seed)
    fit(student, bags, texts.teacher, unread, settings)
    whole = np.arange(len(postings))
    cosines = {
        "fitted": np.setdiff1d(whole, unread),
        "held_out_usajobs": held_out,
        "skillspan": np.setdiff1d(whole, usajobs),
    }
    rows, scale, position_weight = student.table()

    table = TokenTable(pieces, rows, scale, position_weight)
    queries = MiniLM().encode([query.text for query in judged])
    symmetric = queries @ teacher_vectors([posting_text(p) for p in postings.values()], args.cache).T
    stored = np.stack([dense_floats(dense_bytes(row)) for row in table.encode(list(postings.values()))])
    asymmetric = queries @ stored.T
    idf, mean_terms = _idf(fitted.values())
    lexical = _lexical(SketchParameters(idf, mean_terms, 1.0), list(postings.values()), judged)
    sums = {weight: _measure(asymmetric + weight * lexical, postings, judged, "train") for weight in WEIGHTS}
    weight = max(sums, key=lambda w: sums[w].ndcg10 + sums[w].recall50)

    stages = {
        "minilm_both_sides": symmetric,
        "asymmetric": asymmetric,
        "sketch": lexical,
        "asymmetric_and_sketch": asymmetric + weight * lexical,
        "minilm_both_sides_and_sketch": symmetric + weight * lexical,
    }
    measured = {
        name: {split: _measure(scores, postings, judged, split).row() for split in _SPLITS}
        for name, scores in stages.items()
    }
    metrics = {
        "cosine_to_teacher": {
            name: round(mean_cosine(student, bags, texts.teacher, chosen), 4) for name, chosen in cosines.items()
        },
        "hybrid_weight": weight,
        "first_stage": measured,
    }
    _show(metrics, measured)
    if not args.leave_out_skillspan:
        tables = {
            TOKEN_TABLE_FILE: {"rows": rows, "scale": scale, "position_weight": position_weight},
            SKETCH_FILE: {
                "idf": idf,
                "mean_terms": np.array([mean_terms], dtype=np.float32),
                "weight": np.array([weight], dtype=np.float32),
            },
        }
        _write(args.out, tables, metrics, args.seed, settings)
    print(f"{time.monotonic() - started:.0f} s in all")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder of the data sets")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="teacher vectors, outside version control")
    parser.add_argument("--out", type=Path, default=TABLES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=FIT.epochs)
    parser.add_argument("--vector-rate", type=float, default=FIT.vector_rate, help="0 freezes the token vectors")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--leave-out-skillspan", action="store_true", help="fit without them; writes nothing")
    return parser


def _texts(postings: dict[str, PostingText], data: Path, cache: Path) -> Texts:
    whole, ids = list(postings.values()), list(postings)
    long = [key for key, posting in postings.items() if len(posting.description) > 1600]
    later = [postings[key].description[1200:2400] for key in long]
    heads = [attribute_text(posting) for posting in whole]
    occupations = occupation_texts(data)
    titles, tasks = zip(*(text.split("\n", 1) for text in occupations), strict=True)
    groups = [
        (heads, [p.description for p in whole], [posting_text(posting) for posting in whole], ids),
        (list(titles), list(tasks), occupations, [""] * len(occupations)),
        (heads, [""] * len(heads), heads, ids),
        ([""] * len(later), later, later, long),
    ]
    return Texts(
        [head for group in groups for head in group[0]],
        [body for group in groups for body in group[1]],
        np.concatenate([teacher_vectors(group[2], cache) for group in groups]),
        [owner for group in groups for owner in group[3]],
    )


def _skillspan(posting_id: str) -> bool:
    return posting_id.startswith(("tech-", "house-"))


def _bags(pieces: WordPieces, texts: Texts) -> Bags:
    found = [posting_tokens(pieces, head, body) for head, body in zip(texts.heads, texts.bodies, strict=True)]
    lengths = [len(tokens) for tokens, _ in found]
    return Bags(
        np.fromiter((token for tokens, _ in found for token in tokens), dtype=np.int64),
        np.fromiter((position for _, positions in found for position in positions), dtype=np.int64),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


def _token_vectors(pieces: WordPieces, cache: Path) -> Floats:
    """The transformer's output for each token alone, averaged over [CLS] token [SEP]: float32 [V, 384]."""
    path = cache / "token-vectors.npy"
    if path.is_file():
        return np.asarray(np.load(path), dtype=np.float32)
    from transformers import AutoModel

    model = AutoModel.from_pretrained(str(model_directory()), local_files_only=True).eval()
    cls, sep = pieces.special("[CLS]"), pieces.special("[SEP]")
    made = []
    with torch.inference_mode():
        for ids in torch.arange(pieces.vocabulary).split(1024):
            framed = torch.stack([torch.full_like(ids, cls), ids, torch.full_like(ids, sep)], dim=1)
            made.append(model(input_ids=framed).last_hidden_state.mean(1).numpy())
    vectors = np.concatenate(made)
    np.save(path, vectors)
    return vectors


def _starting_weight(bags: Bags, vocabulary: int) -> Floats:
    """a / (a + frequency), the smooth inverse frequency of Arora et al. 2017: float32 [V]."""
    frequency = np.bincount(bags.tokens, minlength=vocabulary) / len(bags.tokens)
    return (1e-3 / (1e-3 + frequency)).astype(np.float32)


def _idf(postings: Iterable[PostingText]) -> tuple[npt.NDArray[np.uint8], float]:
    """idf by bucket, uint8 in steps of IDF_STEP, and the mean number of terms of a posting."""
    documents: Counter[str] = Counter()
    total = count = 0
    for posting in postings:
        head, body = terms(attribute_text(posting)), terms(posting.description)
        documents.update({*head, *body})
        total += HEAD_COUNT * len(head) + len(body)
        count += 1
    common = np.zeros(IDF_BUCKETS, dtype=np.int64)
    hashes = np.array([stable_hash(term) for term in documents], dtype=np.uint64)
    np.maximum.at(common, idf_bucket(hashes), np.fromiter(documents.values(), dtype=np.int64))
    idf = np.log1p((count - common + 0.5) / (common + 0.5))
    return np.clip(np.rint(idf / IDF_STEP), 0, 255).astype(np.uint8), total / count


def _lexical(parameters: SketchParameters, postings: list[PostingText], judged: list[Judged]) -> Floats:
    sketch = LexicalSketch(parameters)
    planes = np.stack([sketch.posting(posting) for posting in postings]).astype(np.float32)
    return np.stack([sketch.query(query.text) for query in judged]) @ planes.T


def _measure(scores: Floats, postings: dict[str, PostingText], judged: list[Judged], split: str) -> Measured:
    row = {key: index for index, key in enumerate(postings)}
    chosen = [index for index, query in enumerate(judged) if query.split == split]
    pools = [np.array([row[key] for key in judged[index].posting_ids]) for index in chosen]
    return measure(scores[chosen], pools, [judged[index].grades for index in chosen])


def _show(metrics: dict[str, object], measured: dict[str, dict[str, dict[str, float]]]) -> None:
    print(f"cosine {metrics['cosine_to_teacher']}, hybrid weight {metrics['hybrid_weight']}")
    for name, splits in measured.items():
        cells = (f"{s} {m['ndcg10']:.3f} {m['recall50']:.2f} {m['recall250']:.2f}" for s, m in splits.items())
        print(f"{name:30s} NDCG@10, r50, r250: {' | '.join(cells)}")


def _write(
    out: Path,
    tables: dict[str, dict[str, npt.NDArray[np.generic]]],
    metrics: dict[str, object],
    seed: int,
    settings: FitSettings,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name, tensors in tables.items():
        save_file({key: np.ascontiguousarray(tensor) for key, tensor in tensors.items()}, out / name)
        (out / name).chmod(0o644)  # safetensors writes for the owner alone; a wheel is read by others
    manifest = {
        "made_by": f"python training/posting_encoder.py --seed {seed}",
        "files": {
            name: {"sha256": file_sha256(out / name), "bytes": (out / name).stat().st_size} for name in sorted(tables)
        },
        "teacher": {"model": "all-MiniLM-L6-v2", "tokens": TOKENS},
        "template": TEMPLATE_ID,
        "tokenizer_sha256": file_sha256(tokenizer_file()),
        "fit": asdict(settings),
        "data": "usajobs_postings, skillspan_postings, onet_27_0; hybrid weight: train split of relevance_judgements",
        "metrics": metrics,
    }
    (out / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n")
    size = math.ceil(sum((out / name).stat().st_size for name in tables) / 2**20)
    print(f"wrote {', '.join(sorted(tables))} and {MANIFEST_FILE}: about {size} MB")


if __name__ == "__main__":
    main()
