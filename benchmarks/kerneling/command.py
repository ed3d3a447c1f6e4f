"""A benchmark of kernels as a command: rows that any machine can fill, rows of a device, one table and one JSON.

A benchmark's folder has compiled.py (`rows`, `predicted` and `model_notes` of what the ahead-of-time suite found) and
cells.py (`begun`, which makes the session on a device, and CELLS by name), imported when they are asked for.
"""

from __future__ import annotations

import argparse
import importlib
import os
import traceback
from dataclasses import dataclass
from pathlib import Path

from benchmarks.kerneling import interpreting
from benchmarks.kerneling.compiling import compile_all
from benchmarks.kerneling.rows import CUDA, Row, add
from benchmarks.report import Report, machine, table, written_as

ANYWHERE = ("interpreter", "aot", "model")


@dataclass(frozen=True, slots=True)
class Benchmark:
    subject: str  # of the rows that need no device
    folder: str  # the package
    operators: tuple[str, ...]  # of kernels/
    rows: tuple[Row, ...]
    device_rows: tuple[Row, ...]
    cells: tuple[str, ...]  # on a device

    def parser(self, about: str, runs: int) -> argparse.ArgumentParser:
        """The options of every benchmark. `about`: a docstring; `runs`: as many by default."""
        parser = argparse.ArgumentParser(description=about.splitlines()[0])
        parser.add_argument("--json", type=Path, help="write machine, results and notes here")
        parser.add_argument("--device", choices=("none", CUDA), default="none", help="also the rows that need a GPU")
        parser.add_argument("--cells", default=",".join((*ANYWHERE, *self.cells)), help="some of them")
        parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that compile at once")
        parser.add_argument("--runs", type=int, default=runs, help="of each contender on the device")
        return parser

    def main(self, parser: argparse.ArgumentParser) -> int:
        """1 when a value is wrong, an expectation of the ahead-of-time suite fails, or a cell does."""
        given = parser.parse_args()
        chosen = given.cells.split(",")
        if unknown := set(chosen) - {*ANYWHERE, *self.cells}:
            parser.error(f"no cell {', '.join(sorted(unknown))}: there are {', '.join((*ANYWHERE, *self.cells))}")
        about = machine()
        here, there = Report(self.subject), Report(CUDA)
        wrong = self._without_device(here, chosen, given.jobs)
        device, failed = self._with_device(there, chosen, given)
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

    def _without_device(self, report: Report, chosen: list[str], jobs: int) -> bool:
        """The rows that any machine can fill; whether something is wrong."""
        found: dict[str, float] = {}
        needs: dict[str, str] = {}
        wrong = False
        if "interpreter" in chosen:
            counts, needed = interpreting.judged(self.operators)
            report.notes["mismatches"] = counts
            wrong |= any(counts.values())
            if needed:
                needs["interpreter/mismatches"] = needed
            else:
                found["interpreter/mismatches"] = sum(counts.values())
        if {"aot", "model"} & set(chosen):
            compiled = importlib.import_module(f"{self.folder}.compiled")
            checked, report.notes["triton"] = compile_all(self.operators, jobs)
            wrong |= any(one.failures for one in checked)
            report.notes["aot"] = [one.as_json() for one in checked]
            if "aot" in chosen:
                found |= compiled.rows(checked)
            if "model" in chosen:
                found |= compiled.predicted(checked)
                report.notes["model"] = compiled.model_notes(checked)
        add(report, tuple(row for row in self.rows if row.name.split("/", 1)[0] in chosen), found, needs)
        return wrong

    def _with_device(
        self, report: Report, chosen: list[str], given: argparse.Namespace
    ) -> tuple[dict[str, object], bool]:
        """The rows of the device: what the report says of it, and whether a cell failed. Without one all are null."""
        wanted = [name for name in self.cells if name in chosen]
        if given.device != CUDA or not wanted:
            add(report, self.device_rows, {}, CUDA)
            return {}, False
        import torch

        from benchmarks.kerneling.session import Lacking

        if not torch.cuda.is_available():
            raise SystemExit(
                "--device cuda: torch sees no GPU here; leave the option out, and the device rows stay null"
            )
        cells = importlib.import_module(f"{self.folder}.cells")
        session = cells.begun(torch.device(CUDA), given)
        session.roofline()
        print(f"  {', '.join(f'{name} {value / 1e12:.2f}e12' for name, value in session.measured.items())}", flush=True)
        found: dict[str, float] = {}
        needs = {row.name: "its cell to be run and to succeed" for row in self.device_rows}
        failed: dict[str, str] = {}
        for name in wanted:
            print(f"{name}", flush=True)
            try:
                found |= cells.CELLS[name](session)
            except Lacking as error:
                needs |= error.rows
            except Exception as error:  # one cell that does not fit or is wrong leaves the others their figures
                traceback.print_exc()
                failed[name] = f"{type(error).__name__}: {error}"
            torch.cuda.empty_cache()
        add(report, self.device_rows, found, needs)
        report.notes |= {"failed": failed, **session.notes}
        report.cells = session.cells
        about = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, **session.measured}
        return about, bool(failed)
