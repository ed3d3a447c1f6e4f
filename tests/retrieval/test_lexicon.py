"""Words without a model: the same plane the encoder makes, for rows and queries, only where it can be compared."""

from dataclasses import replace

import numpy as np
import pytest
from index_log import LetterBox
from store_inputs import gone, upsert
from store_inputs import vector as small_vector

from penstock.retrieval.encoder.shipped import SHIPPED_SPACE, load_sketch
from penstock.retrieval.encoder.sketch import LexicalSketch
from penstock.retrieval.feed import Polled, Record
from penstock.retrieval.indexer import Indexer
from penstock.retrieval.lexicon import Lexicon
from penstock.retrieval.store.store import Store
from penstock.schemas.errors import InvalidRecord
from penstock.schemas.events import IndexUpdate, Location, PostingText, Vector
from penstock.schemas.grpc_avro import NotReady
from penstock.schemas.wire import codec

TEXT = "Veterinary nurse | Paws\nCares for animals. Assists in surgery."


def bare(name="p", item_text=TEXT, **attributes):
    return replace(upsert(name, revision=-1, **{"title": "Veterinary nurse", **attributes}), item_text=item_text)


def test_a_row_is_the_sketch_an_encoder_makes_of_the_same_text():
    update = bare(company="Paws", location=Location(city="Columbus", region="OH"), skills=("surgery",))
    made = Lexicon().row(update, "")
    expected = LexicalSketch(load_sketch().parameters).posting(
        PostingText(
            title="Veterinary nurse",
            company="Paws",
            location="Columbus, OH",
            skills=("surgery",),
            description="Cares for animals. Assists in surgery.",
        )
    )
    np.testing.assert_array_equal(np.frombuffer(made.sketch, np.int8), expected)
    assert (made.space_id, made.dense) == (SHIPPED_SPACE, b"")


@pytest.mark.parametrize(
    ("held", "first", "space"),
    [
        ("", SHIPPED_SPACE, SHIPPED_SPACE),
        ("", None, None),
        ("hf-1/768+lex1/1024", SHIPPED_SPACE, "hf-1/768+lex1/1024"),
        ("hf-1/768+lex2/1024", SHIPPED_SPACE, None),
    ],
)
def test_a_row_is_of_the_space_of_the_rows_beside_it_or_has_none(held, first, space):
    made = Lexicon(first).row(bare(), held)
    assert (made.space_id if made else None) == space


def test_a_posting_without_a_word_has_no_row():
    assert Lexicon().row(bare(title="", item_text=None), "") is None
    assert Lexicon().row(gone("p", 2), "") is None


def test_a_query_that_no_row_could_answer_is_refused_by_name(tmp_path):
    with pytest.raises(InvalidRecord, match=r"words.*lex2"):
        Lexicon().query("nurse", "hf-1/768+lex2/1024")
    with pytest.raises(NotReady, match="tables"):
        Lexicon(tables=tmp_path / "tables").query("nurse", "")


def take(indexer, *updates):
    raw = [codec(IndexUpdate).encode(update) for update in updates]
    start = indexer.offsets.get(0, 0)
    indexer.take(Polled([Record(0, start + n, 0, b"k", value) for n, value in enumerate(raw)]), now_ms=0)


def found(store, words, lexicon):
    result = store.search(lexicon.query(words, store.space_id), None, 10, now_ms=0)
    return [hit.posting_id for hit in result.hits if hit.score > 0.01]


def whole(name, title):
    sketch = LexicalSketch(load_sketch().parameters).posting(PostingText(title=title, description=""))
    dense = np.zeros(384, "<u2")
    dense[0] = 0x3F80  # bfloat16 of 1
    return upsert(
        name,
        title=title,
        vector=Vector(space_id=SHIPPED_SPACE, encoder_id="e", dense=dense.tobytes(), sketch=sketch.tobytes()),
    )


@pytest.mark.parametrize("bare_first", [True, False])
def test_a_posting_without_a_vector_is_found_by_words_before_and_after_it_is_healed(bare_first):
    store, lexicon = Store(capacity=4), Lexicon()
    indexer = Indexer(store, codec(IndexUpdate), LetterBox().send, lexicon)
    both = [bare(), whole("baker", "Baker")]
    for update in both if bare_first else reversed(both):
        take(indexer, update)
    assert found(store, "veterinary", lexicon) == ["p"]
    assert found(store, "surgery", lexicon) == ["p"]
    assert found(store, "baker", lexicon) == ["baker"]
    assert store.counts().without_vector == 1
    take(indexer, whole("p", "Veterinary nurse"))
    assert found(store, "veterinary", lexicon) == ["p"]
    assert store.counts().without_vector == 0
    assert store.get(["p"], now_ms=0)[0].update.vector.encoder_id == "e"


def test_the_table_is_read_only_once_it_is_needed(tmp_path):
    store, letters = Store(capacity=4), LetterBox()
    indexer = Indexer(store, codec(IndexUpdate), letters.send, Lexicon(tables=tmp_path))
    take(indexer, whole("p", "Baker"))
    take(indexer, gone("p", 2))
    take(indexer, bare("q"))  # and where it cannot be read, filters find the posting all the same
    assert store.get(["q"], now_ms=0)[0].update.vector is None
    assert letters.letters == []


def test_rows_of_a_space_without_our_sketch_stay_as_they_are():
    store = Store(capacity=4)
    indexer = Indexer(store, codec(IndexUpdate), LetterBox().send)
    take(indexer, bare("b"), upsert("a", vector=small_vector([1.0] * 6)))
    take(indexer, bare("c"))
    assert store.space_id == "space-1"
    assert store.get(["c"], now_ms=0)[0].update.vector is None
    assert store.get(["b"], now_ms=0)[0].update.vector is None
    assert store.counts().vectors_refused == 0
