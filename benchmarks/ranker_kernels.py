"""The ranker's kernels: right in the interpreter, whole in machine code, a forward by a model; on a GPU, items/s.

    python benchmarks/ranker_kernels.py --json build/ranker-kernels.json                 # anywhere, some minutes
    python benchmarks/ranker_kernels.py --json build/ranker-kernels.json --device cuda   # on a GPU, device rows too
    python benchmarks/ranker_kernels.py --device cuda --cells text,attention --runs 10   # a trial

    interpreter  the operators' own cases against their oracles        benchmarks/kerneling/interpreting.py
    aot          every tuned form compiled for sm_90                   python -m penstock.kernels.aot
    model        the predicted share of an H200's peak FLOPs           benchmarks/ranker_kerneling/model.py
    text, peers, servers, serving, attention                           benchmarks/ranker_kerneling/cells.py, with a GPU

Figures of aot are counted in machine code, those of model are predicted, those of cuda are measured; a row that nothing
here could measure is null and says what it needs. Needs torch, triton, numpy and transformers, and no installation of
Penstock. The exit status is 1 when a value is wrong, an expectation of the ahead-of-time suite fails, or a cell does.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.kerneling.importing import from_checkout, silent  # noqa: E402  # found by the line above

from_checkout()
silent("structlog", "prometheus_client")  # the engine logs and counts with them

from benchmarks.kerneling.command import Benchmark  # noqa: E402
from benchmarks.ranker_kerneling.rows import DEVICE, KERNELS, OPERATORS  # noqa: E402

BENCHMARK = Benchmark(
    subject="ranker_kernels",
    folder="benchmarks.ranker_kerneling",
    operators=OPERATORS,
    rows=KERNELS,
    device_rows=DEVICE,
    cells=("text", "peers", "servers", "serving", "attention"),
)


def main() -> int:
    parser = BENCHMARK.parser(__doc__ or "", runs=20)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each load on the engine")
    return BENCHMARK.main(parser)


if __name__ == "__main__":
    sys.exit(main())
