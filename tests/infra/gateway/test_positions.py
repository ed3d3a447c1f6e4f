"""Event ids: what is written is read back; what is not ours is refused; where a stream begins."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.infra.gateway import positions
from penstock.schemas.errors import InvalidRecord

places = st.dictionaries(st.integers(0, 10_000), st.integers(-1, 2**59), min_size=1, max_size=30)


@given(places)
def test_an_id_is_read_back(seen):
    assert positions.read(positions.write(seen)) == seen


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused_by_name(text):
    try:
        seen = positions.read(text)
    except InvalidRecord as error:
        assert error.field == "after"
    else:
        assert positions.read(positions.write(seen)) == seen


@pytest.mark.parametrize(
    "text", ["", "1", "1-", "-1-2", "1--2", "1-2.1-3", "01-2", "1-2.", "1-99999999999999999999", "١-٢"]
)
def test_what_is_no_id(text):
    with pytest.raises(InvalidRecord):
        positions.read(text)


@given(
    places.flatmap(
        lambda ends: st.tuples(st.just(ends), st.dictionaries(st.sampled_from(sorted(ends)), st.integers(-1, 99)))
    )
)
def test_a_stream_goes_on_behind_what_was_seen(given_):
    ends, seen = given_
    for one_person in (True, False):
        start = positions.starts(seen, ends, from_beginning=False, one_person=one_person, field="after")
        assert start.keys() == ends.keys()
        for partition, place in start.items():
            if partition in seen:
                assert place == seen[partition] + 1
            else:
                assert place == (ends[partition] if one_person else 0)


def test_without_an_id_it_is_now_or_the_beginning():
    ends = {0: 5, 1: 9}
    assert positions.starts(None, ends, from_beginning=False, one_person=True, field="after") == ends
    assert positions.starts(None, ends, from_beginning=True, one_person=True, field="after") == {0: 0, 1: 0}
    with pytest.raises(InvalidRecord, match="Last-Event-ID"):
        positions.starts({7: 1}, ends, from_beginning=False, one_person=True, field="Last-Event-ID")
