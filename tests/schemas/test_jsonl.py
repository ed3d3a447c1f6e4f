"""JSON Lines: the wire's field names in and out, and mistakes that name the field."""

import pytest
from any_record import any_record
from hypothesis import given
from hypothesis import strategies as st

from penstock.schemas import build, events, jsonl
from penstock.schemas.errors import InvalidRecord, MalformedRecord
from penstock.schemas.events import Posting, SearchQuery


def in_range(record) -> bool:
    """Times outside 1970..9999 are refused in JSON; the wire itself takes any long."""
    try:
        jsonl.loads(type(record), jsonl.dumps(record))
    except InvalidRecord as error:
        return "1970" not in error.expected
    return True


@pytest.mark.parametrize("record", build.EVENTS, ids=lambda r: r.__name__)
@given(data=st.data())
def test_every_event_survives_its_json(record, data):
    value = data.draw(any_record(record).filter(in_range))
    assert jsonl.loads(record, jsonl.dumps(value)) == value


def test_names_are_the_wire_s():
    line = jsonl.dumps(SearchQuery(request_id="q", text="nurse", class_=events.RankClass.ALERT))
    assert '"class":"ALERT"' in line
    assert "class_" not in line


@pytest.mark.parametrize(
    ("given_time", "millis"),
    [(1_763_718_000_000, 1_763_718_000_000), ("2025-11-21T09:40:00Z", 1_763_718_000_000),
     ("2025-11-21T10:40:00+01:00", 1_763_718_000_000), ("1763718000000", 1_763_718_000_000)],
)  # fmt: skip
def test_times_are_millis_or_iso_with_an_offset(given_time, millis):
    record = jsonl.from_json(Posting, {"posting_id": "p", "version": 1, "expires_at": given_time})
    assert record.expires_at == millis


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"version": "1"}, "version"),
        ({"version": True}, "version"),
        ({"version": 2**63}, "version"),
        ({"posting_id": None}, "posting_id"),
        ({"titel": "x"}, "titel"),
        ({"skills": "python"}, "skills"),
        ({"skills": ["python", 3]}, "skills[1]"),
        ({"salary": {"min": "lots"}}, "salary.min"),
        ({"salary": 30}, "salary"),
        ({"remote": 3}, "remote"),
        ({"expires_at": "2025-11-21T09:40:00"}, "expires_at"),
        ({"expires_at": "tomorrow"}, "expires_at"),
        ({"expires_at": -5}, "expires_at"),
        ({"title": "\ud800"}, "title"),
    ],
)
def test_a_mistake_names_its_field(change, field):
    with pytest.raises(InvalidRecord) as error:
        jsonl.from_json(Posting, {"posting_id": "p", "version": 1} | change)
    assert error.value.field == field


def test_an_unknown_symbol_becomes_unknown_and_is_told():
    told = []
    record = jsonl.loads(
        Posting, '{"posting_id":"p","version":1,"remote":"ORBITAL"}', lambda field, symbol: told.append((field, symbol))
    )
    assert record.remote is events.Remote.UNKNOWN
    assert told == [("remote", "ORBITAL")]


@pytest.mark.parametrize("line", ["", "{", "nul", '{"posting_id":', "[" * 100_000])
def test_what_is_not_json_is_malformed(line):
    with pytest.raises(MalformedRecord):
        jsonl.loads(Posting, line)


@pytest.mark.parametrize("line", ["[]", "3", '"x"', "null"])
def test_json_that_is_not_an_object_is_invalid(line):
    with pytest.raises(InvalidRecord, match="a JSON object"):
        jsonl.loads(Posting, line)


def test_a_file_gives_every_line_its_number(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 60)
    file = tmp_path / "postings.jsonl"
    long = '{"posting_id":"long","version":1,"title":"' + "x" * 200 + '"}'
    file.write_text(f'{{"posting_id":"a","version":1}}\n\nnot json\n{long}\n{{"posting_id":"b","version":2}}')
    read = list(jsonl.read_file(Posting, file))
    assert [number for number, _ in read] == [1, 3, 4, 5]
    assert read[0][1] == Posting(posting_id="a", version=1)
    assert isinstance(read[1][1], MalformedRecord)
    assert "longer than 60" in str(read[2][1])
    assert read[3][1] == Posting(posting_id="b", version=2)
