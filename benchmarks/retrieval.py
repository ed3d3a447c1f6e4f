"""The store's scans against what people would use instead, in the same run, and against a float64 oracle.

    python benchmarks/retrieval.py --json build/retrieval.json                       # about fifteen minutes
    python benchmarks/retrieval.py --rows 50000 --cells flat,filter --repeats 3      # a trial

    flat     the dense plane, every row                                            for B1, B16, B64 and k 100, 1000
    hybrid   both planes                                                           B16, k 250
    filter   16 queries, each with a filter of its own that passes a given share   B16, k 100
    uniform  flat and hybrid on values without structure
    isa      flat and hybrid once more, in a process in which oneDNN uses AVX2 and no more
    churn    searches beside a writer that applies 2,000 upserts a second          benchmarks/searching/churn.py
    million  a million rows: memory, restart, searches beside a snapshot           benchmarks/searching/million.py
    turnover a real week of openings and closings over and over                    benchmarks/searching/turnover.py
    percolate postings against standing queries                                    benchmarks/searching/percolating.py

What scans cost on a GPU is kernels.py's to say; `--device cuda` runs churn on a store that searches there.

"ratio" is the quickest peer's median over ours. Peers and ours begin with one mask a query; peers keep their own copies
of the planes and return float32 order; ours is exact, from the store's own pages. Every cell's answers are held against
the oracle; the exit status is 1 when one differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.report import Report, computing, machine, table  # noqa: E402
from benchmarks.searching.churn import churn  # noqa: E402
from benchmarks.searching.million import million  # noqa: E402
from benchmarks.searching.oracle import mismatches  # noqa: E402  # found by the line above, wherever this is called from
from benchmarks.searching.peers import Peer, Peers  # noqa: E402
from benchmarks.searching.timing import Timed, interleaved  # noqa: E402
from benchmarks.searching.turnover import turnover  # noqa: E402
from benchmarks.searching.vectors import Corpus, encoded, uniform  # noqa: E402
from benchmarks.streaming.source import DATA  # noqa: E402
from penstock.retrieval.search.scan import Ask, Passing, best_many  # noqa: E402
from penstock.retrieval.server import SWITCH_S  # noqa: E402

CELLS = ("flat", "hybrid", "filter", "uniform", "isa", "churn", "million", "turnover", "percolate")
ROWS = 200_000
CHURN_S = 3.0  # of a phase
UNFILTERED = "ours, unfiltered"
FLAT = ((1, 100, 1.0), (16, 100, 1.2), (64, 100, 1.2), (16, 1_000, 1.5))  # batch, k, target
RATES = ((0.001, 10.0), (0.01, 5.0), (0.05, None), (0.2, None), (0.5, None), (0.9, None))  # pass rate, target


@dataclass(slots=True)
class Run:
    corpus: Corpus
    peers: Peers
    repeats: int
    report: Report
    wrong: int = 0

    def cell(self, name: str, asks: list[Ask], peers: Mapping[str, Peer]) -> tuple[float, dict[str, float], Timed]:
        """(ratio, 0 without a peer; peers' milliseconds; ours)."""
        pages = self.corpus.pages
        wrong = mismatches(self.corpus, asks, best_many(pages, asks))
        self.wrong += wrong
        timed = interleaved({"ours": lambda: best_many(pages, asks), **peers}, self.repeats)
        ours = timed.pop("ours")
        found = {peer: round(each.wall_ms, 3) for peer, each in timed.items()}
        theirs = [ms for peer, ms in found.items() if peer != UNFILTERED]
        ratio = min(theirs) / ours.wall_ms if theirs else None
        self.report.cells.append(
            {
                "cell": name,
                "vectors": self.corpus.name,
                "rows": self.corpus.count,
                "mismatches": wrong,
                "ratio": ratio and round(ratio, 3),
                "ours": asdict(ours),
                "peers": {peer: asdict(each) for peer, each in timed.items()},
            }
        )
        shown = ", ".join(f"{peer} {ms:.3g}" for peer, ms in sorted(found.items(), key=lambda each: each[1]))
        print(f"  {name}: ours {ours.wall_ms:.3g} ms; {shown}; wrong {wrong}", flush=True)
        return ratio or 0.0, found, ours


def flat(run: Run, *, add: bool = True) -> None:
    for batch, k, target in FLAT:
        name = f"flat/d384/k{k}/B{batch}"
        asks = run.corpus.asks(batch, k, [run.corpus.everything])
        ratio, peers, _ = run.cell(name, asks, run.peers.flat(batch, k))
        if add:
            run.report.add(name, ratio, "ratio", target, "higher", peers)


def hybrid(run: Run, *, add: bool = True) -> None:
    asks = run.corpus.asks(16, 250, [run.corpus.everything], lexical=True)
    ratio, peers, _ = run.cell("hybrid/k250/B16", asks, run.peers.hybrid(16, 250))
    if add:
        run.report.add("hybrid/k250/B16", ratio, "ratio", 1.3, "higher", peers)


def filtered(run: Run) -> None:
    """Each query has a filter of its own. At the lowest rate fewer rows may pass than k."""
    batch, k = 16, 100
    rng = np.random.default_rng(7)
    everything = run.corpus.asks(batch, k, [run.corpus.everything])
    unfiltered: dict[str, Peer] = {UNFILTERED: lambda: best_many(run.corpus.pages, everything)}
    worst = 0.0
    for rate, target in RATES:
        masks: npt.NDArray[np.bool_] = rng.random((batch, run.corpus.count)) < rate
        passing: list[Passing] = [run.corpus.masks(mask) for mask in masks]
        name = f"filter/{rate * 100:g}pct/k{k}/B{batch}"
        peers = run.peers.filtered(masks, k) if target is not None else {}
        ratio, found, ours = run.cell(name, run.corpus.asks(batch, k, passing), {**unfiltered, **peers})
        worst = max(worst, ours.wall_ms / found.pop(UNFILTERED))
        if target is not None:
            run.report.add(name, ratio, "ratio", target, "higher", found)
    run.report.add("filter/worst_over_unfiltered", worst, "ratio", 1.05)


def narrow_isa(given: argparse.Namespace) -> tuple[object, int]:
    """The flat cells and the served row, and how many places were wrong, of a process in which oneDNN goes no further
    than AVX2."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "isa.json"
        command = [sys.executable, str(Path(__file__)), "--json", str(out), "--cells", "flat,hybrid"]
        command += ["--rows", str(given.rows), "--repeats", str(min(given.repeats, 5)), "--data", str(given.data)]
        subprocess.run(command, env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}, check=False)
        results = json.loads(out.read_text())["results"]  # absent when it failed otherwise than by wrong answers
        return results, sum(int(one["value"]) for one in results if one["name"].endswith("exact_mismatches"))


def changing(given: argparse.Namespace, chosen: Sequence[str], report: Report) -> int:
    """The cells of a store that changes. Returns how many answers were wrong."""
    build, wrong = ROOT / "build", 0
    build.mkdir(exist_ok=True)
    for name in ("churn", "million", "turnover", "percolate"):
        if name not in chosen:
            continue
        print(f"{name}, load average {os.getloadavg()[0]:.1f}", flush=True)
        if name == "churn":
            wrong += churn(report, given.rows, given.churn_turns, CHURN_S, given.data, build, given.device)
        elif name == "million":
            wrong += million(report, given.million_rows, given.data, build)
        elif name == "turnover":
            turnover(report, given.weeks, given.data, build)
        else:
            from benchmarks.searching.percolating import percolate

            wrong += percolate(report, given.repeats, given.data, build)
        torch.set_num_threads(given.threads)
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write machine, results and notes here")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder that holds usajobs_postings")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--cells", default=",".join(CELLS), help=f"some of {','.join(CELLS)}")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--million-rows", type=int, default=1_000_000, help="of the cell million")
    parser.add_argument("--churn-turns", type=int, default=8, help="phases with and without the writer, 3 s each")
    parser.add_argument("--weeks", type=int, default=8, help="of the cell turnover")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--device", default="cpu", help="where the store of the cell churn searches: cpu, cuda, interpreter"
    )
    given = parser.parse_args()
    chosen = given.cells.split(",")
    if unknown := set(chosen) - set(CELLS):
        parser.error(f"no cell {', '.join(sorted(unknown))}: there are {', '.join(CELLS)}")
    torch.set_num_threads(given.threads)
    sys.setswitchinterval(SWITCH_S)  # as the role does
    about, report, wrong = machine(**computing(given.threads)), Report("retrieval"), 0
    report.notes["device"] = given.device
    if set(chosen) & {"flat", "hybrid", "filter"}:
        corpus = encoded(given.data, given.rows, ROOT / "build")
        run = Run(corpus, Peers(corpus, given.threads), given.repeats, report)
        report.notes["absent"] = run.peers.absent
        for name, cell in (("flat", flat), ("hybrid", hybrid), ("filter", filtered)):
            if name in chosen:
                print(f"{name}, load average {os.getloadavg()[0]:.1f}", flush=True)
                cell(run)
        wrong += run.wrong
        del run, corpus
    if "uniform" in chosen:
        print(f"uniform, load average {os.getloadavg()[0]:.1f}", flush=True)
        corpus = uniform(given.rows)
        run = Run(corpus, Peers(corpus, given.threads), min(given.repeats, 5), report)
        flat(run, add=False)
        hybrid(run, add=False)
        wrong += run.wrong
        del run, corpus
    if "isa" in chosen:
        report.notes["onednn_max_cpu_isa_avx2"], mistaken = narrow_isa(given)
        wrong += mistaken
    wrong += changing(given, chosen, report)
    report.add("exact_mismatches", wrong, "places", 0)
    print("\n" + table(report.results))
    if given.json is not None:
        report.write(given.json, about, cells=report.cells)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
