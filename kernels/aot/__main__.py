"""python -m penstock.kernels.aot [--json FILE] [--operator NAME ...] [--jobs N] [--markdown]

Compiles every config for sm_90 and prints what its machine code holds; 1 where an expectation fails. No GPU is needed.
What was compiled before is in Triton's cache (TRITON_CACHE_DIR) and takes no time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.kernels.aot.check import Checked

HEAD = ("config", "regs", "spills", "shared", "CTAs/SM", "tensor", "async128", "loop", "hot", "s", "")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m penstock.kernels.aot", description=__doc__.split("\n\n")[1])
    parser.add_argument("--json", type=Path, help="write what was found there too")
    parser.add_argument("--operator", nargs="+", default=[None], help="configs of these operators alone")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that compile at once")
    parser.add_argument("--markdown", action="store_true", help="print the table as docs/kernels.md has it")
    asked = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET is set: kernels would be Python functions; unset it")

    import triton

    from penstock.kernels.aot.check import check_all
    from penstock.kernels.aot.registry import configs

    chosen = [config for operator in asked.operator for config in configs(operator)]
    checked = check_all(chosen, asked.jobs)
    rows = [row(one) for one in checked]
    print(markdown(rows) if asked.markdown else table(rows))
    for one in checked:
        for failure in one.failures:
            print(f"{one.name}: {failure}", file=sys.stderr)
    if asked.json:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        whole = {"triton": triton.__version__, "target": "sm_90a", "configs": [one.as_json() for one in checked]}
        asked.json.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return 1 if any(one.failures for one in checked) else 0


def row(one: Checked) -> tuple[str, ...]:
    verdict = "FAILS" if one.failures else "ok"
    if one.figures is None:
        return (one.name, *[""] * (len(HEAD) - 2), "NOT COMPILED")
    found, main = one.figures, one.figures.main
    spills = f"{main.spills}+{found.spills_outside}" if found.spills_outside else f"{main.spills}"
    wide = "TMA" if main.tma else str(main.async_copies.get(128, 0))
    return (
        one.name,
        str(found.registers),
        spills,
        f"{found.shared:,}",
        str(found.ctas_per_sm),
        str(main.tensor_core),
        wide,
        str(main.instructions) if found.looped else "-",
        str(found.hot),
        f"{one.seconds:.1f}",
        verdict,
    )


def table(rows: list[tuple[str, ...]]) -> str:
    lines = [HEAD, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        ).rstrip()
        for line in lines
    )


def markdown(rows: list[tuple[str, ...]]) -> str:
    """Without the time, which is the machine's, and the verdict, which the exit status is."""
    columns = [at for at, head in enumerate(HEAD) if head not in ("s", "")]
    lines = [[HEAD[at] for at in columns], ["---", *["---:"] * (len(columns) - 1)]]
    lines += [[f"`{line[0]}`", *(line[at] for at in columns[1:])] for line in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
