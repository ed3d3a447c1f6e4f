"""What a request gets: how deep, which page of it, in which order. Pure decisions on plain values.

Paging. Candidates come in blocks of `depth` by retrieval's order; each block is ranked on its own and blocks follow one
another. So a page is stable at an epoch however far one pages, and no page scores more than one block. `depth` is a
multiple of the page's size, hence a page lies within a block (after a change of size it may end early, at the
block's end). The cursor carries the offset, the depth and the epoch, and belongs to its query.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.schemas import filters, validate
from penstock.schemas.errors import InvalidRecord
from penstock.schemas.events import Page, RankClass, RankQuery, RankRequest
from penstock.schemas.text import stable_hash
from penstock.schemas.wire import codec

_CURSOR = struct.Struct("<BIIIQ8s")  # form, offset, depth, language model's items, epoch, query digest
_CURSOR_FORM = 2
_ANEW = 0xFFFF_FFFF  # in the place of the language model's items: the next page begins a block


@dataclass(frozen=True, slots=True)
class DepthLimits:
    default: int  # candidates when the request does not say (ranker.depth)
    ceiling: int  # candidates at most, over all pages (ranker.max_depth)


@dataclass(frozen=True, slots=True)
class Window:
    """The part of retrieval's order that one request ranks, and the part of that it returns."""

    asked: int  # depth as the request (or the setting) asked
    depth: int  # candidates a block
    start: int  # first candidate of this block
    stop: int  # past its last: what retrieval is asked for
    first: int  # page within the ranked block
    last: int  # past its last
    epoch: int | None  # to be read again, None: the newest
    lm_items: int | None = None  # that the language model scored of this block for the page before; None: a new block


@dataclass(frozen=True, slots=True)
class Cursor:
    offset: int
    depth: int
    lm_items: int | None
    epoch: int


def check_request(request: RankRequest, limits: DepthLimits) -> None:
    """The rules of a rank request. Raises InvalidRecord naming the field."""
    validate.check_id("request_id", request.request_id)
    validate.check_id("tenant", request.tenant)
    if request.class_ is RankClass.UNKNOWN:
        raise InvalidRecord("class", request.class_, "INTERACTIVE, RECOMMENDATION or ALERT")
    query = request.query
    validate.check_text("query.text", query.text, validate.MAX_QUERY_BYTES)
    if not query.text.strip() and query.vector is None and query.filters is None and request.candidates is None:
        raise InvalidRecord("query", "nothing", "text, a vector, filters or candidates")
    if query.vector is not None:
        _check_floats("query.vector.dense", query.vector.dense)
        if query.vector.lexical is not None:
            _check_floats("query.vector.lexical", query.vector.lexical)
    if query.filters is not None:
        filters.check(query.filters, "query.filters")
    for position, understood in enumerate(query.understood):
        filters.check(understood.filter, f"query.understood[{position}].filter")
    if request.echo is not None and len(request.echo) > validate.MAX_ECHO_BYTES:
        raise InvalidRecord("echo", f"{len(request.echo)} bytes", f"at most {validate.MAX_ECHO_BYTES} to give back")
    if request.depth is not None and request.depth < 1:
        raise InvalidRecord("depth", request.depth, f"1 to {limits.ceiling} candidates, or none")
    if not 0 < request.page.size <= min(validate.MAX_PAGE, limits.ceiling):
        raise InvalidRecord("page.size", request.page.size, f"1 to {min(validate.MAX_PAGE, limits.ceiling)}")
    if request.candidates is not None:
        if not 0 < len(request.candidates) <= limits.ceiling:
            given = f"{len(request.candidates)} candidates"
            raise InvalidRecord("candidates", given, f"1 to {limits.ceiling} ids (ranker.max_depth)")
        for position, posting_id in enumerate(request.candidates):
            validate.check_id(f"candidates[{position}]", posting_id)
    if request.min_version is not None:
        validate.check_id("min_version.posting_id", request.min_version.posting_id)


def _check_floats(field: str, data: bytes) -> None:
    if not data or len(data) % 4:
        raise InvalidRecord(field, f"{len(data)} bytes", "float32 values, four bytes each")
    if not np.isfinite(np.frombuffer(data, "<f4")).all():
        raise InvalidRecord(field, "NaN or infinity among its values", "finite values")


def decide_window(request: RankRequest, limits: DepthLimits, depth: int | None = None) -> Window:
    """How deep this request goes and which page it gets. Raises InvalidRecord (page.cursor).

    `depth`: candidates that load leaves of what was asked; None: all. A block that was begun keeps its depth.
    """
    size = request.page.size
    if request.candidates is not None:  # all of them are one block, whatever the depth
        asked = len(set(request.candidates))
        if request.page.cursor is None:
            return Window(asked, asked, 0, asked, 0, size, None)
        cursor = read_cursor(request, asked)
        return Window(asked, asked, 0, asked, cursor.offset, cursor.offset + size, cursor.epoch, cursor.lm_items)
    asked = request.depth or limits.default
    if request.page.cursor is None:
        given = asked if depth is None else min(asked, depth)
        depth = min(-(-max(given, size) // size) * size, limits.ceiling)
        return Window(asked, depth, 0, depth, 0, min(size, depth), None)
    cursor = read_cursor(request, limits.ceiling)
    start = cursor.offset // cursor.depth * cursor.depth
    stop = min(start + cursor.depth, limits.ceiling)
    first = cursor.offset - start
    return Window(
        asked, cursor.depth, start, stop, first, min(first + size, cursor.depth), cursor.epoch, cursor.lm_items
    )


def next_cursor(
    request: RankRequest, window: Window, *, in_block: int, lm_items: int, epoch: int, limits: DepthLimits
) -> str | None:
    """The cursor of the page after `window`'s, None when there is none.

    `in_block` is how many candidates the block held: a short block is the last one. `lm_items` of them the language
    model was asked for; the block's next page is ordered alike.
    """
    offset = window.start + window.last
    more_here = window.last < in_block
    more_blocks = request.candidates is None and in_block == window.stop - window.start and window.stop < limits.ceiling
    if not more_here and not more_blocks:
        return None
    kept = lm_items if more_here else _ANEW
    body = _CURSOR.pack(_CURSOR_FORM, offset, window.depth, kept, epoch, _query_digest(request))
    return base64.urlsafe_b64encode(body).rstrip(b"=").decode()


def read_cursor(request: RankRequest, most: int) -> Cursor:
    """Raises InvalidRecord when the cursor is not ours, belongs to another query, or goes past `most` candidates."""
    text = request.page.cursor or ""
    expected = "the next_cursor of a previous page, unchanged"
    try:
        body = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        form, offset, depth, lm_items, epoch, digest = _CURSOR.unpack(body)
    except (binascii.Error, ValueError, struct.error):
        raise InvalidRecord("page.cursor", text, expected) from None
    if form != _CURSOR_FORM or depth < 1:
        raise InvalidRecord("page.cursor", text, expected)
    if digest != _query_digest(request):
        raise InvalidRecord("page.cursor", text, "a cursor of this very query: same text, filters and candidates")
    if offset >= most:
        raise InvalidRecord("page.cursor", text, f"a page within the first {most} candidates")
    return Cursor(offset, depth, None if lm_items == _ANEW else min(lm_items, most), epoch)


def _query_digest(request: RankRequest) -> bytes:
    asked = RankRequest(
        request_id="",
        tenant=request.tenant,
        deadline=0,
        query=RankQuery(text=request.query.text, filters=request.query.filters),
        candidates=request.candidates,
        page=Page(),
    )
    return hashlib.blake2b(codec(RankRequest).encode_unbounded(asked), digest_size=8).digest()


def order(scores: NDArray[np.float64], posting_ids: list[str]) -> list[int]:
    """Positions best first: by score, equal scores by the id's stable hash, smallest first.

    scores: float64 [n], finite. Independent of the order in which candidates came.
    """
    return sorted(range(len(posting_ids)), key=lambda at: (-scores[at], stable_hash(posting_ids[at]), posting_ids[at]))
