"""`--scorer` and `--model`, which `up` and `demo` share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class ScorerName(StrEnum):
    fused = "fused"
    engine = "engine"
    transformers = "transformers"
    remote = "remote"


ScorerOption = Annotated[
    ScorerName | None,
    typer.Option(
        "--scorer",
        help="Who reads the best postings after the fused score: nobody, our engine, transformers, or a server that "
        "ranker.remote names.",
        show_default=False,
    ),
]
ModelOption = Annotated[
    Path | None,
    typer.Option(
        "--model",
        exists=True,
        file_okay=False,
        help="A language model's directory; without one the engine runs on random weights, to show itself.",
    ),
]
