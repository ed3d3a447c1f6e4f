"""The retrieval's kernels: right in the interpreter, whole in machine code, quick by a model; on a GPU, against torch.

    python benchmarks/kernels.py --json build/kernels.json                     # anywhere, some minutes
    python benchmarks/kernels.py --json build/kernels.json --device cuda       # on a GPU, the device rows too
    python benchmarks/kernels.py --device cuda --cells batch --rows 1000000 --runs 20   # a trial

    interpreter  the operators' own cases against its oracle         benchmarks/kerneling/interpreting.py
    aot          every tuned form compiled for sm_90                   python -m penstock.kernels.aot
    model        the predicted share of an H200's read bandwidth       benchmarks/kerneling/model.py
    batch, clustered, int8, linr, percolate, churn                     benchmarks/kerneling/cells.py, with a GPU

Figures of aot are counted in machine code, those of model are predicted, those of cuda are measured; a row that nothing
here could measure is null and says what it needs. Needs torch, triton and numpy, and no installation of Penstock. The
exit status is 1 when an id is wrong, an expectation of the ahead-of-time suite fails, or a cell does.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.kerneling.importing import from_checkout  # noqa: E402  # found by the line above

from_checkout()

from benchmarks.kerneling.rows import CUDA, DEVICE, KERNELS, OPERATORS, add  # noqa: E402
from benchmarks.report import Report, machine, table, written_as  # noqa: E402

ANYWHERE = ("interpreter", "aot", "model")
ON_DEVICE = ("batch", "clustered", "int8", "linr", "percolate", "churn")


def without_device(report: Report, chosen: list[str], jobs: int) -> bool:
    """The rows that any machine can fill; whether something is wrong."""
    found: dict[str, float] = {}
    needs: dict[str, str] = {}
    wrong = False
    if "interpreter" in chosen:
        from benchmarks.kerneling import interpreting

        counts, needed = interpreting.judged(OPERATORS)
        report.notes["mismatches"] = counts
        wrong |= any(counts.values())
        if needed:
            needs["interpreter/mismatches"] = needed
        else:
            found["interpreter/mismatches"] = sum(counts.values())
    if {"aot", "model"} & set(chosen):
        from benchmarks.kerneling import compiled
        from benchmarks.kerneling.compiling import compile_all

        checked, report.notes["triton"] = compile_all(OPERATORS, jobs)
        wrong |= any(one.failures for one in checked)
        report.notes["aot"] = [one.as_json() for one in checked]
        if "aot" in chosen:
            found |= compiled.rows(checked)
        if "model" in chosen:
            found |= {
                f"model/filtered_topk/B{batch}": prediction.share
                for batch, prediction in compiled.predictions(checked).items()
            }
            report.notes["model"] = compiled.model_notes(checked)
    chosen_rows = tuple(row for row in KERNELS if row.name.split("/", 1)[0] in chosen)
    add(report, chosen_rows, found, needs)
    return wrong


def with_device(report: Report, chosen: list[str], given: argparse.Namespace) -> tuple[dict[str, object], bool]:
    """The rows of the device: what the report says of it, and whether a cell failed. Without one all are null."""
    wanted = [name for name in ON_DEVICE if name in chosen]
    if given.device != CUDA or not wanted:
        add(report, DEVICE, {}, CUDA)
        return {}, False
    import torch

    from benchmarks.kerneling import cells

    if not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no GPU here; leave the option out, and the device rows stay null")
    session = cells.Session(torch.device(CUDA), given.rows, given.runs)
    session.roofline()
    print(f"  read {session.bandwidth / 1e12:.2f} TB/s, bf16 {session.flops / 1e12:.0f} TFLOPS", flush=True)
    found: dict[str, float] = {}
    failed: dict[str, str] = {}
    for name in wanted:
        print(f"{name}", flush=True)
        try:
            found |= cells.CELLS[name](session)
        except Exception as error:  # one cell that does not fit or is wrong leaves the others their figures
            traceback.print_exc()
            failed[name] = f"{type(error).__name__}: {error}"
        torch.cuda.empty_cache()
    add(report, DEVICE, found, "its cell to be run and to succeed")
    report.notes["failed"] = failed
    report.cells = session.cells
    about = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "read_bytes_per_s": session.bandwidth,
        "bf16_flops": session.flops,
    }
    return about, bool(failed)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write machine, results and notes here")
    parser.add_argument("--device", choices=("none", CUDA), default="none", help="also the rows that need a GPU")
    parser.add_argument("--cells", default=",".join((*ANYWHERE, *ON_DEVICE)), help="some of them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that compile at once")
    parser.add_argument("--rows", type=int, default=10_000_000, help="of the stores on the device")
    parser.add_argument("--runs", type=int, default=50, help="of each contender on the device")
    given = parser.parse_args()
    chosen = given.cells.split(",")
    if unknown := set(chosen) - {*ANYWHERE, *ON_DEVICE}:
        parser.error(f"no cell {', '.join(sorted(unknown))}: there are {', '.join((*ANYWHERE, *ON_DEVICE))}")
    about = machine()
    here, there = Report("kernels"), Report(CUDA)
    wrong = without_device(here, chosen, given.jobs)
    device, failed = with_device(there, chosen, given)
    results = [*here.results, *there.results]
    print("\n" + table(results))
    if given.json:
        whole = {
            "machine": {**about, **device},
            "results": [result.as_json() for result in results],
            "cells": there.cells,
            "notes": {**here.notes, **there.notes},
        }
        written_as(given.json, whole)
    return 1 if wrong or failed else 0


if __name__ == "__main__":
    sys.exit(main())
