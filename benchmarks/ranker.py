"""The ranker engine against transformers on the same weights, in the same run, interleaved; and its own invariants.

    python benchmarks/ranker.py --json build/ranker.json                 # about half an hour
    python benchmarks/ranker.py --cells errors,packed --repeats 2        # a trial
    python benchmarks/ranker.py --cells e2e,cache --requests 200 --rows 5000
    python benchmarks/ranker.py --soak --json build/ranker-soak.json     # an hour on one thread, and nothing else
    python benchmarks/ranker.py --device cuda --json build/ranker-cuda.json   # the engine's cells on a GPU, in bf16

    errors     logits against float64 throughout, prompt by prompt
    packed     one request of 50 items, 70 + 150 tokens; then one of real postings' lengths
    prefix     what sharing the prefix gains, of the 1 + Nq/Ni that tokens allow (the same engine, every prompt whole)
    small      16 requests of 2 items in one forward, against one request a forward
    embedding  items a second of 60 + 2 (a vector and a token) over those of 60 + 150
    invariance the largest change of a score over orders, packings, budgets and company
    true       a request of 70 + 150 at the shape of Qwen3-0.6B
    e2e        a search through the whole pipeline, 250 candidates (ranking/end_to_end.py)
    cache      what the score cache finds and saves over 20,000 searches (ranking/caching.py)

The shape is that of ranker/engine/untrained.py: 6 layers, hidden 384, vocabulary 30,000, weights random. Peers may
choose their batch; what they chose stands in the cell. Tokens are made beforehand, for everybody but CrossEncoder.
On a device ours and the peer's are in the device's usual dtype, and rows begin with cuda/ (with interpreter/, which
shows that they run and no more). The exit status is 1 when our logits and a peer's differ by more than SAME.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.ranker_kerneling.shapes import QWEN_0_6B  # noqa: E402  # found by the line above, wherever called from
from benchmarks.ranking.caching import REQUESTS, caching  # noqa: E402
from benchmarks.ranking.end_to_end import REQUESTS as E2E_REQUESTS  # noqa: E402
from benchmarks.ranking.end_to_end import end_to_end  # noqa: E402
from benchmarks.ranking.launching import score  # noqa: E402
from benchmarks.ranking.models import fixed, item_texts, queries, real  # noqa: E402
from benchmarks.ranking.peers import Transformers, cross_encoder, oracle  # noqa: E402
from benchmarks.ranking.soaking import POSTINGS, soak  # noqa: E402
from benchmarks.ranking.surroundings import ROWS, surroundings  # noqa: E402
from benchmarks.report import Report, computing, machine, table  # noqa: E402
from benchmarks.searching.timing import Timed, interleaved  # noqa: E402
from benchmarks.streaming.source import DATA, load  # noqa: E402
from penstock.ranker.backends.scorer import probability  # noqa: E402
from penstock.ranker.engine import devices, untrained  # noqa: E402
from penstock.ranker.engine.backend import Backend  # noqa: E402
from penstock.ranker.engine.forward import BOUND  # noqa: E402
from penstock.ranker.engine.plan import Request, Text, Vectors  # noqa: E402
from penstock.ranker.engine.tokens import Tokenizer  # noqa: E402
from penstock.ranker.engine.untrained import SMALL  # noqa: E402
from penstock.ranker.engine.weights import Weights  # noqa: E402

ALONE = ("errors", "packed", "prefix", "small", "embedding", "invariance", "true")  # cells of the engine
WHOLE = ("e2e", "cache")  # of the ranker with all that it needs
CELLS = (*ALONE, *WHOLE)
BUDGET = 16_384  # tokens a forward
ITEMS, QUERY_TOKENS, ITEM_TOKENS = 50, 70, 150
REAL_ITEMS = 64
TRUE_ITEMS = 10
SAME = {torch.float32: 1e-4, torch.bfloat16: 0.2}  # logits of two implementations of one model
DEFAULT_QUERY = "experienced registered nurse, night shift, near Columbus, Ohio"

Contender = Callable[[], Any]


@dataclass(slots=True)
class Run:
    directory: Path
    device: str  # as ranker.device
    dtype: torch.dtype  # ours and the peer's
    backend: Backend
    peer: Transformers
    answers: tuple[int, int]
    tokenizer: Tokenizer
    texts: Sequence[str]
    query: str
    repeats: int
    report: Report
    folder: Path
    wrong: int = 0  # requests whose logits are not the peer's

    def ours(self, requests: Sequence[Request], budget: int = BUDGET) -> npt.NDArray[np.float64]:
        return score(self.backend, list(requests), budget)

    def timed(self, name: str, contenders: Mapping[str, Contender], **stated: Any) -> dict[str, Timed]:
        found = interleaved(contenders, self.repeats)
        timed = {each: asdict(took) for each, took in found.items()}
        self.report.cells.append({"cell": name, **stated, "timed": timed})
        print(f"  {name}: " + ", ".join(f"{each} {took.wall_ms:.4g} ms" for each, took in found.items()), flush=True)
        return found


def made(directory: Path, dtype: torch.dtype, answers: tuple[int, int], device: str) -> Backend:
    weights = Weights.load(directory, dtype, answers)
    longest, threads = weights.shape.max_positions, torch.get_num_threads()
    return devices.made(weights, device, threads=threads, most_tokens=BUDGET, longest=longest)


def errors(run: Run) -> None:
    request = real(run.tokenizer, run.query, run.texts[:12])
    for name, dtype, target in (("fp32", torch.float32, 1e-5), ("bf16", torch.bfloat16, 2e-2)):
        backend = run.backend if dtype == run.dtype else made(run.directory, dtype, run.answers, run.device)
        found = score(backend, [request], BUDGET)
        right = oracle(run.directory, run.answers, dtype)(request)
        run.report.notes[f"logit_error_{name}"] = {
            "items": len(request.items),
            "tokens": [len(request.prefix), *(len(item) for item in request.items)],
            "logits_from": float(right.min()),
            "logits_to": float(right.max()),
            "to_unrounded_weights": float(
                np.abs(found - oracle(run.directory, run.answers, torch.float32)(request)).max()
            ),
        }
        run.report.add(f"logit_error_{name}", float(np.abs(found - right).max()), "logits", target)


def packed(run: Run) -> None:
    request = fixed(ITEMS, QUERY_TOKENS, ITEM_TOKENS)
    batch = run.peer.best_batch([request], ordered=True)
    found = run.timed(
        "packed/fixed",
        {
            "ours": lambda: run.ours([request]),
            "transformers, sorted": lambda: run.peer.logits([request], batch, ordered=True),
        },
        items=ITEMS,
        prefix_tokens=QUERY_TOKENS,
        item_tokens=ITEM_TOKENS,
        batch=batch,
        max_difference=difference(run, request),
    )
    ratio = found["transformers, sorted"].wall_ms / found["ours"].wall_ms
    run.report.add("packed/fixed/ratio", ratio, "ratio", 1.35, "higher", milliseconds(found))

    request = real(run.tokenizer, run.query, run.texts[:REAL_ITEMS])
    batches = {way: run.peer.best_batch([request], ordered=way == "sorted") for way in ("sorted", "unsorted")}
    contenders: dict[str, Contender] = {
        "ours": lambda: run.ours([request]),
        "transformers, sorted": lambda: run.peer.logits([request], batches["sorted"], ordered=True),
        "transformers, unsorted": lambda: run.peer.logits([request], batches["unsorted"], ordered=False),
    }
    encoder = cross_encoder(run.directory, run.folder / "cross-encoder", run.dtype, str(run.peer.model.device))
    if encoder is None:
        run.report.notes["absent"] = ["sentence-transformers"]
    else:
        pairs = [(run.query, text) for text in run.texts[:REAL_ITEMS]]
        contenders["sentence-transformers CrossEncoder"] = lambda: encoder(pairs)
    lengths = sorted(len(item) for item in request.items)
    found = run.timed(
        "packed/real",
        contenders,
        items=len(lengths),
        prefix_tokens=len(request.prefix),
        item_tokens={"least": lengths[0], "median": lengths[len(lengths) // 2], "most": lengths[-1]},
        batches=batches,
        max_difference=difference(run, request),
    )
    for way, target in (("sorted", 1.3), ("unsorted", 2.0)):
        ratio = found[f"transformers, {way}"].wall_ms / found["ours"].wall_ms
        run.report.add(f"packed/real/ratio_{way}", ratio, "ratio", target, "higher", milliseconds(found))


def prefix(run: Run) -> None:
    shared = fixed(ITEMS, QUERY_TOKENS, ITEM_TOKENS)
    found = run.timed("prefix", {"shared": lambda: run.ours([shared]), "whole": lambda: run.ours([whole(shared)])})
    gain = found["whole"].wall_ms / found["shared"].wall_ms
    allowed = ITEMS * (QUERY_TOKENS + ITEM_TOKENS) / (QUERY_TOKENS + ITEMS * ITEM_TOKENS)
    run.report.notes["prefix_gain"] = {"measured": gain, "tokens_allow": allowed}
    run.report.add("prefix_gain", gain / (1 + QUERY_TOKENS / ITEM_TOKENS), "share", 0.9, "higher", milliseconds(found))


def small(run: Run) -> None:
    """The row is of 16 different queries. What one query asked 16 times gains, and short items, stands in the notes."""
    notes: dict[str, Any] = {}
    for name, item, same in (
        ("70+150", ITEM_TOKENS, False),
        ("70+150, one prefix", ITEM_TOKENS, True),
        ("70+30", 30, False),
        ("70+30, one prefix", 30, True),
        ("70+2", 2, False),
    ):
        requests = [fixed(2, QUERY_TOKENS, item, seed) for seed in range(16)]
        if same:
            requests = [replace(request, prefix=requests[0].prefix) for request in requests]
        contenders: dict[str, Contender] = {
            "packed": lambda requests=requests: run.ours(requests),
            "one by one": lambda requests=requests: [run.ours([request]) for request in requests],
        }
        if name == "70+150":
            contenders["transformers, one by one"] = lambda requests=requests: [
                run.peer.logits([request], 2, ordered=True) for request in requests
            ]
        found = run.timed(f"small_requests/{name}", contenders)
        ratio = found["one by one"].wall_ms / found["packed"].wall_ms
        notes[name] = round(ratio, 3)
        if name == "70+150":
            run.report.add("small_requests/ratio", ratio, "ratio", 1.5, "higher", milliseconds(found))
    run.report.notes["small_requests"] = notes


def embedding(run: Run) -> None:
    rng = np.random.default_rng(9)
    text = fixed(ITEMS, 60, ITEM_TOKENS)
    vectors = tuple(
        Vectors(rng.standard_normal((1, SMALL.hidden_size), dtype=np.float32) * np.float32(0.02), np.ones(1, np.int32))
        for _ in range(ITEMS)
    )
    found = run.timed(
        "embedding_items",
        {
            "60+2": lambda: run.ours([Request(text.prefix, vectors)]),
            "60+150": lambda: run.ours([text]),
        },
        items=ITEMS,
    )
    ratio = found["60+150"].wall_ms / found["60+2"].wall_ms
    run.report.add("embedding_items/ratio_text", ratio, "ratio", 15, "higher", milliseconds(found))


def invariance(run: Run) -> None:
    """Probabilities of the same pairs: alone, whole, with others, in other orders, in forwards of other sizes."""
    mine = real(run.tokenizer, run.query, run.texts[:16])
    others = [fixed(4, 30 + 7 * seed, 20 * seed + 1, seed) for seed in range(4)]
    rng = np.random.default_rng(11)
    right = run.ours([mine])
    count = len(mine.items)
    worst: dict[str, float] = {}

    def saw(name: str, logits: npt.NDArray[np.float64]) -> None:
        worst[name] = max(worst.get(name, 0.0), float(np.abs(probability(logits) - probability(right)).max()))
        worst["logits"] = max(worst.get("logits", 0.0), float(np.abs(logits - right).max()))

    saw("alone", np.concatenate([run.ours([replace(mine, items=(item,))]) for item in mine.items]))
    saw("whole prompts", run.ours([whole(mine)]))
    for budget in (512, 1_024, 2_048):
        saw("budgets", run.ours([mine], budget))
    for _ in range(4):
        order = rng.permutation(count)
        logits = np.empty(count)
        logits[order] = run.ours([replace(mine, items=tuple(mine.items[at] for at in order))])
        saw("orders", logits)
    saw("company, before", run.ours([mine, *others])[:count])
    saw("company, after", run.ours([*others, mine])[-count:])
    run.report.notes["batch_invariance"] = worst
    largest = max(v for name, v in worst.items() if name != "logits")
    run.report.add("batch_invariance", largest, "probability", BOUND[run.dtype])


def true_shape(run: Run) -> None:
    """One row at the true shape; its own directory, and few repeats: a forward takes many seconds on a CPU."""
    shape = QWEN_0_6B
    directory = untrained.write(run.folder / "true", run.texts, shape)
    backend = made(directory, run.dtype, run.answers, run.device)
    peer = Transformers.load(directory, run.answers, run.dtype, run.peer.model.device)
    request = fixed(TRUE_ITEMS, QUERY_TOKENS, ITEM_TOKENS)
    found = interleaved(
        {
            "ours": lambda: score(backend, [request], BUDGET),
            "transformers, sorted": lambda: peer.logits([request], TRUE_ITEMS, ordered=True),
        },
        min(run.repeats, 2),
    )
    ratio = found["transformers, sorted"].wall_ms / found["ours"].wall_ms
    run.report.cells.append(
        {"cell": "true", "shape": asdict(shape), "items": TRUE_ITEMS, "timed": {n: asdict(t) for n, t in found.items()}}
    )
    run.report.notes["true_0_6b"] = {"items": TRUE_ITEMS, "ratio": ratio, **milliseconds(found)}
    print(f"  0.6B, {TRUE_ITEMS} items: ratio {ratio:.3g}, {milliseconds(found)}", flush=True)


def whole(request: Request) -> Request:
    """The same prompts with nothing shared."""
    prompts = [np.concatenate([request.prefix, item.tokens]) for item in request.items if isinstance(item, Text)]
    return Request(np.zeros(0, np.int32), tuple(Text(prompt) for prompt in prompts))


def difference(run: Run, request: Request) -> float:
    """The largest between our logits and the peer's, which says whether both do the same work."""
    found = float(np.abs(run.ours([request]) - run.peer.logits([request], 8, ordered=True)).max())
    run.wrong += not found <= SAME[run.dtype]
    return found


def milliseconds(found: Mapping[str, Timed]) -> dict[str, float]:
    return {name: round(each.wall_ms, 2) for name, each in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write machine, results and notes here")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder that holds usajobs_postings")
    parser.add_argument("--cells", default=",".join(CELLS), help=f"some of {','.join(CELLS)}")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--requests", type=int, default=REQUESTS, help="of the cache's cell, at most of e2e's")
    parser.add_argument("--rows", type=int, default=ROWS, help="postings in the index of e2e and cache")
    parser.add_argument("--threads", type=int, help="all there are by default, of a soak one")
    parser.add_argument(
        "--soak", type=float, nargs="?", const=3_600.0, metavar="SECONDS", help="this alone; see ranking/soaking.py"
    )
    parser.add_argument(
        "--device", default="cpu", help="as ranker.device: the engine's cells there, without e2e, cache"
    )
    given = parser.parse_args()
    if given.device != "cpu":
        if given.cells == ",".join(CELLS):
            given.cells = ",".join(ALONE)
        if given.soak or set(given.cells.split(",")) & set(WHOLE):
            parser.error(f"--device {given.device}: takes {', '.join(ALONE)}; the whole pipeline is timed on the CPU")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs beside ends too
    threads = given.threads or (1 if given.soak else os.cpu_count() or 1)
    chosen = given.cells.split(",")
    if unknown := set(chosen) - set(CELLS):
        parser.error(f"no cell {', '.join(sorted(unknown))}: there are {', '.join(CELLS)}")
    torch.set_num_threads(threads)
    place = devices.checked(given.device) or torch.device("cpu")
    dtype = devices.DTYPES[devices.dtype_for(given.device, devices.AUTO)]
    report = Report("ranker" if given.device == "cpu" else f"{given.device.partition(':')[0]}/ranker")
    about = machine(**computing(threads), device=given.device, dtype=str(dtype))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = load(given.data)
        texts = item_texts(source, POSTINGS if given.soak else 4_000)
        asked = queries(given.data) or [DEFAULT_QUERY]
        if given.soak:
            wrong = soak(report, folder, SMALL, texts, asked, given.soak, threads)
            return told(report, about, given.json, wrong)
        directory = untrained.write(folder / "small", texts)
        tokenizer = Tokenizer(directory, threads=threads)
        answers = tokenizer.yes, tokenizer.no
        typical = sorted(asked, key=len)[len(asked) // 2]
        run = Run(
            directory=directory,
            device=given.device,
            dtype=dtype,
            backend=made(directory, dtype, answers, given.device),
            peer=Transformers.load(directory, answers, dtype, place),
            answers=answers,
            tokenizer=tokenizer,
            texts=np.random.default_rng(3).permutation(texts).tolist(),
            query=typical,
            repeats=given.repeats,
            report=report,
            folder=folder,
        )
        report.notes |= {"shape": asdict(SMALL), "source": source.name, "query": typical, "budget": BUDGET}
        cells: dict[str, Callable[[Run], None]] = {
            "errors": errors,
            "packed": packed,
            "prefix": prefix,
            "small": small,
            "embedding": embedding,
            "invariance": invariance,
            "true": true_shape,
        }
        for each in ALONE:
            if each in chosen:
                say(each)
                cells[each](run)
        if set(chosen) & set(WHOLE):
            with surroundings(folder / "stack", given.data, ROOT / "build", directory, threads, given.rows) as around:
                if "e2e" in chosen:
                    say("e2e")
                    run.wrong += end_to_end(report, around, min(given.requests, E2E_REQUESTS))
                if "cache" in chosen:
                    say("cache")
                    run.wrong += caching(report, around, given.requests)
    return told(report, about, given.json, run.wrong)


def say(cell: str) -> None:
    print(f"{cell}, load average {os.getloadavg()[0]:.1f}", flush=True)


def told(report: Report, about: Mapping[str, Any], path: Path | None, wrong: int) -> int:
    """Prints and writes what was found; the exit status."""
    if report.results:
        print("\n" + table(report.results))
    if path is not None:
        report.write(path, about, cells=report.cells)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
