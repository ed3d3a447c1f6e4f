"""What a language model is asked of a query and a posting: the wording, and how much of each it reads.

A prompt is before + query + between + item + after. A directory may bring the wording it was trained with in
`penstock_template.json` ({"before", "between", "after"}).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from penstock.ranker.errors import UnfitScorer
from penstock.schemas.events import IndexUpdate

MAX_QUERY_TOKENS = 256
MAX_ITEM_TOKENS = 512
TEMPLATE_FILE = "penstock_template.json"


@dataclass(frozen=True, slots=True)
class Template:
    before: str
    between: str
    after: str


TEMPLATE = Template(
    before=(
        "<|im_start|>system\nYou are given what a person looking for work typed, and one job posting. "
        "Say yes if this person would want to see the posting, no if not.<|im_end|>\n<|im_start|>user\nSearch: "
    ),
    between="\nPosting: ",
    after="<|im_end|>\n<|im_start|>assistant\n",
)


def read_template(directory: Path) -> Template:
    """The wording the directory was trained with, else the shipped one. Raises UnfitScorer."""
    path = directory / TEMPLATE_FILE
    if not path.is_file():
        return TEMPLATE
    try:
        template = Template(**json.loads(path.read_text(encoding="utf-8")))
        if all(isinstance(piece, str) for piece in (template.before, template.between, template.after)):
            return template
        raise ValueError("a piece is not text")
    except (ValueError, TypeError) as error:
        raise UnfitScorer(f"{path}: {error}; expected an object with before, between, after") from error


def item_text(update: IndexUpdate) -> str:
    """What the model reads of a posting: its item text, else title and summary."""
    if update.item_text:
        return update.item_text
    title = update.attributes.title if update.attributes is not None else None
    return "\n".join(part for part in (title, update.summary) if part)
