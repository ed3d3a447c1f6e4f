"""The retrieval's kernels: right in the interpreter, whole in machine code, quick by a model; on a GPU, against torch.

    python benchmarks/kernels.py --json build/kernels.json                     # anywhere, some minutes
    python benchmarks/kernels.py --json build/kernels.json --device cuda       # on a GPU, the device rows too
    python benchmarks/kernels.py --device cuda --cells batch --rows 1000000 --runs 20   # a trial

    interpreter  the operators' own cases against their oracles        benchmarks/kerneling/interpreting.py
    aot          every tuned form compiled for sm_90                   python -m penstock.kernels.aot
    model        the predicted share of an H200's read bandwidth       benchmarks/kerneling/model.py
    batch, clustered, int8, linr, percolate, churn                     benchmarks/kerneling/cells.py, with a GPU

Figures of aot are counted in machine code, those of model are predicted, those of cuda are measured; a row that nothing
here could measure is null and says what it needs. Needs torch, triton and numpy, and no installation of Penstock. The
exit status is 1 when an id is wrong, an expectation of the ahead-of-time suite fails, or a cell does.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.kerneling.importing import from_checkout  # noqa: E402  # found by the line above

from_checkout()

from benchmarks.kerneling.command import Benchmark  # noqa: E402
from benchmarks.kerneling.rows import DEVICE, KERNELS, OPERATORS  # noqa: E402

BENCHMARK = Benchmark(
    subject="kernels",
    folder="benchmarks.kerneling",
    operators=OPERATORS,
    rows=KERNELS,
    device_rows=DEVICE,
    cells=("batch", "clustered", "int8", "linr", "percolate", "churn"),
)


def main() -> int:
    parser = BENCHMARK.parser(__doc__ or "", runs=50)
    parser.add_argument("--rows", type=int, default=10_000_000, help="of the stores on the device")
    return BENCHMARK.main(parser)


if __name__ == "__main__":
    sys.exit(main())
