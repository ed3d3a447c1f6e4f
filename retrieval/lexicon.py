"""Words without a model: what a shard makes itself when nobody could make a vector, of a posting or of a query.

Only the lexical plane, which needs a table and no transformer; the dense one stays empty. The sketch belongs to the
space of the rows beside it, whose name ends in the sketch's own: any space that does can be searched by words. The
table is read when first needed, since a healthy system never needs it.
"""

from __future__ import annotations

import threading
from pathlib import Path

from penstock.retrieval.encoder.planes import float_bytes
from penstock.retrieval.encoder.shipped import SHIPPED_SPACE, TABLES, load_sketch
from penstock.retrieval.encoder.sketch import SKETCH_ID, WIDTH, LexicalSketch
from penstock.retrieval.encoder.weights import EncoderWeightsError
from penstock.schemas.errors import InvalidRecord
from penstock.schemas.events import Attributes, IndexUpdate, Location, PostingText, QueryVector, Vector
from penstock.schemas.grpc_avro import NotReady

_SUFFIX = f"+{SKETCH_ID}/{WIDTH}"


class Lexicon:
    """Safe to share between threads. Owns the table, once read."""

    def __init__(self, first_space: str | None = SHIPPED_SPACE, tables: Path = TABLES) -> None:
        """`first_space`: that of rows in a store which holds no vector yet; None: they wait for one."""
        self._first_space = first_space
        self._tables = tables
        self._lock = threading.Lock()
        self._loaded: tuple[LexicalSketch, str] | None = None

    def row(self, update: IndexUpdate, held_space: str) -> Vector | None:
        """The sketch of a live posting that came without a vector; None where the store could not compare it.

        `held_space` is the store's, empty while it holds no vector. Raises EncoderWeightsError.
        """
        space = held_space or self._first_space
        if space is None or not space.endswith(_SUFFIX) or update.attributes is None:
            return None
        sketch, encoder_id = self._sketch()
        plane = sketch.posting(_text_of(update.attributes, update.item_text or ""))
        if not plane.any():
            return None
        return Vector(space_id=space, encoder_id=encoder_id, dense=b"", sketch=plane.tobytes())

    def query(self, words: str, held_space: str) -> QueryVector:
        """The lexical part of a query. Raises InvalidRecord where the shard's rows have no such plane, NotReady."""
        if held_space and not held_space.endswith(_SUFFIX):
            expected = f"a vector: rows of this shard are of space {held_space!r}, which has no sketch {SKETCH_ID}"
            raise InvalidRecord("words", words[:80], expected)
        try:
            sketch, encoder_id = self._sketch()
        except EncoderWeightsError as error:
            raise NotReady(f"words cannot be searched without a vector: {error}") from error
        return QueryVector(
            space_id=held_space or SHIPPED_SPACE,
            encoder_id=encoder_id,
            dense=b"",
            lexical=float_bytes(sketch.query(words)),
        )

    def _sketch(self) -> tuple[LexicalSketch, str]:
        with self._lock:
            if self._loaded is None:
                weights = load_sketch(self._tables)
                self._loaded = LexicalSketch(weights.parameters), f"{SKETCH_ID}/{weights.digest}"
            return self._loaded


def _text_of(attributes: Attributes, item_text: str) -> PostingText:
    """As an encoder would see it: attributes, and what stands under the item text's first line."""
    place = attributes.location or Location()
    return PostingText(
        title=attributes.title,
        company=attributes.company,
        location=place.text or ", ".join(part for part in (place.city, place.region, place.country) if part) or None,
        grade=attributes.grade,
        category=attributes.category,
        skills=attributes.skills,
        description=item_text.partition("\n")[2],
    )
