"""What the dlq commands make of letters: groups, addresses, a readable dump. The topic itself is tested end to end."""

from dataclasses import replace

import pytest
from typer.testing import CliRunner

from penstock.infra import kafka_clients
from penstock.infra.cli import dlq
from penstock.infra.cli.dlq import Letter, NoSuchLetter, _decoded, _key, grouped, hex_dump, pick
from penstock.infra.cli.main import app
from penstock.infra.settings import Settings
from penstock.schemas.events import DeadLetter, Posting
from penstock.schemas.wire import codec

GOOD = codec(Posting).encode(Posting(posting_id="p", version=1, title="T"))


def letter(offset, topic="jobs.posting.v1", raw=b"\xff", error="MalformedRecord", at=0, key=None):
    given = DeadLetter(
        topic=topic, key=key, raw=raw, stage="decode", error_class=error, message=f"message {at}", failed_at=at
    )
    return Letter(0, offset, given)


def test_groups_count_and_show_the_newest_of_each():
    letters = [letter(0, at=5), letter(1, at=9), letter(2, at=7), letter(3, error="UnknownSchema")]
    groups = grouped(letters)
    assert [(g["error_class"], g["count"]) for g in groups] == [("MalformedRecord", 3), ("UnknownSchema", 1)]
    assert groups[0]["newest"]["place"] == "jobs.posting.v1/0:1"
    assert groups[0]["newest"]["message"] == "message 9"


def test_a_letter_is_found_by_its_place():
    letters = [letter(0), letter(1), letter(1, topic="search.query.v1")]
    assert pick(letters, ["0:0", "search.query.v1/0:1"]) == [letters[0], letters[2]]
    with pytest.raises(NoSuchLetter, match="2 topics"):
        pick(letters, ["0:1"])
    with pytest.raises(NoSuchLetter, match="0:77"):
        pick(letters, ["0:77"])


def test_readable_bytes_are_read_and_give_the_key_that_flink_does_not():
    readable, garbage, keyed = letter(0, raw=GOOD), letter(1), letter(2, raw=GOOD, key=b"k")
    settings = Settings()
    assert _decoded(settings, readable.letter)["posting_id"] == "p"
    assert _decoded(settings, garbage.letter) is None
    assert [_key(settings, item.letter) for item in (readable, garbage, keyed)] == [b"p", None, b"k"]


class Recorder:
    """Takes the place of the publisher: what it was asked to publish, since no broker runs in unit tests."""

    def __init__(self, settings):
        self.sent = SENT

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def publish_raw(self, topic, key, value, *, timestamp_ms=None):
        self.sent.append((topic, key, value, timestamp_ms))


SENT: list[tuple] = []


def test_a_replay_keeps_bytes_key_and_the_refused_records_own_timestamp(monkeypatch):
    too_old = replace(letter(0, raw=GOOD, error="TooOld", at=90).letter, stage="order", produced_at=7)
    timeless = letter(1, at=91, key=b"k").letter
    SENT.clear()
    monkeypatch.setattr(dlq, "read", lambda settings, topic: [Letter(0, 0, too_old), Letter(0, 1, timeless)])
    monkeypatch.setattr(kafka_clients, "check_broker", lambda *_: None)
    monkeypatch.setattr(kafka_clients, "Publisher", Recorder)
    result = CliRunner().invoke(app, ["dlq", "replay", "--all", "--yes"])
    assert result.exit_code == 0, result.output
    assert SENT == [("jobs.posting.v1", b"p", GOOD, 7), ("jobs.posting.v1", b"k", b"\xff", 91)]


def test_the_dump_has_offsets_hex_and_text():
    lines = hex_dump(bytes(range(60, 80))).splitlines()
    assert lines[0] == "00000000  3c 3d 3e 3f 40 41 42 43 44 45 46 47 48 49 4a 4b  <=>?@ABCDEFGHIJK"
    assert lines[1].startswith("00000010  4c 4d 4e 4f") and lines[1].endswith("LMNO")
    assert hex_dump(b"") == ""
