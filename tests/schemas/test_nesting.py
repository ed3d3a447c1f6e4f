"""Records that contain themselves: any depth of bytes is survived, and nothing else about the wire changes."""

import copy
import subprocess
import sys

import fastavro
import pytest

from penstock.schemas.errors import InvalidRecord, MalformedRecord
from penstock.schemas.events import Filter, FilterKind, SearchQuery
from penstock.schemas.filters import MAX_DEPTH
from penstock.schemas.nesting import MAX_NESTING, bounded
from penstock.schemas.records import avro_schema
from penstock.schemas.wire import Codec, codec

LEAF = Filter(kind=FilterKind.IN, field="remote", values=("REMOTE",))
OPENED = bytes([6, 2])  # kind NOT, a block of one child
CLOSED = bytes([0] * 8 + [2])  # no more children; field, values and the five numbers absent; missing EXCLUDE


def query(depth: int) -> SearchQuery:
    node = LEAF
    for _ in range(depth):
        node = Filter(kind=FilterKind.NOT, children=(node,))
    return SearchQuery(request_id="q", text="x", filters=node)


def nested(depth: int) -> bytes:
    """The bytes of `query(depth)`, put together by hand: an encoder of ours would refuse."""
    leaf = codec(Filter).encode(LEAF)[10:]
    before, _, after = codec(SearchQuery).encode(query(0)).partition(leaf)
    return before + OPENED * depth + leaf + CLOSED * depth + after


@pytest.mark.parametrize("depth", [0, 1, MAX_DEPTH, MAX_NESTING - 1])
def test_what_filters_may_be_goes_both_ways(depth):
    assert nested(depth) == codec(SearchQuery).encode(query(depth))
    assert codec(SearchQuery).decode(nested(depth)) == query(depth)


@pytest.mark.parametrize("depth", [MAX_NESTING + 1, 500])
def test_deeper_is_refused_and_says_so(depth):
    with pytest.raises(MalformedRecord, match=f"more than {MAX_NESTING} levels"):
        codec(SearchQuery).decode(nested(depth))


def test_no_depth_ends_the_process():
    script = "import sys; from penstock.schemas.events import SearchQuery; from penstock.schemas.wire import codec\n"
    script += "try: codec(SearchQuery).decode(sys.stdin.buffer.read())\nexcept Exception as e: print(type(e).__name__)"
    done = subprocess.run([sys.executable, "-c", script], input=nested(80_000), capture_output=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, b"MalformedRecord"), done.stderr


def test_too_deep_is_not_encoded():
    with pytest.raises(InvalidRecord):
        codec(SearchQuery).encode(query(MAX_NESTING + 1))


def test_levels_resolve_against_another_writer_s_schema():
    """A registry's schema whose Filter has a field more, and one symbol nobody here knows."""
    theirs = copy.deepcopy(avro_schema(SearchQuery, logical_types=False))
    [tree] = [field["type"][1] for field in theirs["fields"] if field["name"] == "filters"]
    tree["fields"].append({"name": "note", "type": "string", "default": ""})
    tree["fields"][0]["type"]["symbols"].append("SPELLS")

    class Registry:
        def schema_by_id(self, schema_id):
            return theirs

        def id_of(self, subject, schema):
            return 7

    import io

    out = io.BytesIO(b"\x00\x00\x00\x00\x07")
    out.seek(5)
    plain = {
        "request_id": "q",
        "text": "x",
        "filters": {"kind": "NOT", "note": "n", "children": [{"kind": "SPELLS", "note": "m"}]},
    }
    fastavro.schemaless_writer(out, fastavro.parse_schema(copy.deepcopy(theirs)), plain)
    read = Codec(SearchQuery, registry=Registry()).decode(out.getvalue())
    assert read.filters == Filter(kind=FilterKind.NOT, children=(Filter(kind=FilterKind.UNKNOWN),))


def test_a_schema_that_does_not_contain_itself_stays_as_it_is():
    from penstock.schemas.events import Posting

    plain = avro_schema(Posting, logical_types=False)
    canonical = fastavro.schema.to_parsing_canonical_form
    assert canonical(bounded(plain)) == canonical(plain)
