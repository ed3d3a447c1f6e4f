"""What a remote backend is given to read: cut, never blank, never with marks of the model's own. Pure.

The server tokenises, so that a text which spells a special token (the end of a turn, a separator) would be read as that
token: a posting could then close its prompt and answer for the model. Such marks are written apart.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from penstock.ranker.backends.prompt import Template
from penstock.ranker.backends.remote.options import RemoteOptions

NO_TEXT = "(no text)"  # in place of a text that is blank, which some servers refuse with the whole batch
# <|im_end|>, <think>, <s>, <bos>, [SEP]: Qwen and what looks like it, Llama, Gemma, BERT
MARKS = re.compile(r"<(?=\|)|<(?=/?(?:think|s|bos|eos|pad|unk|mask)>)|\[(?=(?:CLS|SEP|PAD|MASK|UNK)\])")


@dataclass(frozen=True, slots=True)
class Prepared:
    query: str
    items: list[str]
    notes: tuple[str, ...]  # what was done to them, for the result's `degraded`


def prepared(query: str, items: Sequence[str], options: RemoteOptions) -> Prepared:
    """Query and items as they are sent; as many items, in order."""
    notes = []
    if len(query) > options.max_query_chars:
        notes.append(f"remote scorer: query cut to {options.max_query_chars} characters")
    if not query.strip():
        notes.append(f"remote scorer: a query without words, sent as {NO_TEXT!r}")
    if cut := sum(len(item) > options.max_item_chars for item in items):
        notes.append(f"remote scorer: {cut} postings cut to {options.max_item_chars} characters")
    if blank := sum(not item.strip() for item in items):
        notes.append(f"remote scorer: {blank} postings without text, sent as {NO_TEXT!r}")
    wording = options.wording or Template("", "", "")
    return Prepared(
        wording.before + plain(query[: options.max_query_chars]) + wording.between,
        [plain(item[: options.max_item_chars]) + wording.after for item in items],
        tuple(notes),
    )


def plain(text: str) -> str:
    """Without special tokens, as far as their spelling is known, and never blank."""
    return MARKS.sub(lambda mark: f"{mark[0]} ", text) if text.strip() else NO_TEXT
