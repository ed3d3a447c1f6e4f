"""Every schema evolves FULL_TRANSITIVE: each version ever committed can read, and be read by, each other one."""

import itertools
import json

import pytest
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType
from avro.schema import parse

from penstock.schemas import build
from penstock.schemas.records import avro_schema
from penstock.schemas.wire import fingerprint

RECORDS = build.EVENTS + build.STATES + build.CALLS


def incompatibilities(versions: list[dict]) -> list[str]:
    """Every ordered pair (reader, writer) of versions that does not resolve."""
    found = []
    for reader, writer in itertools.permutations(range(len(versions)), 2):
        outcome = ReaderWriterCompatibilityChecker().get_compatibility(
            parse(json.dumps(versions[reader])), parse(json.dumps(versions[writer]))
        )
        if outcome.compatibility is not SchemaCompatibilityType.compatible:
            found.append(f"version {reader + 1} cannot read version {writer + 1}: {outcome.messages}")
    return found


def test_the_committed_schemas_are_those_of_the_records():
    stale = sorted(str(path.name) for path in build.plan())
    assert not stale, f"run `python -m penstock.schemas.build` and commit: {stale}"


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: r.__name__)
def test_every_version_reads_every_other(record):
    # From the files: by fingerprint two versions that differ in a default alone would be one.
    versions = [json.loads(path.read_text()) for path in sorted((build.HERE / "history" / record.__name__).iterdir())]
    assert versions
    assert fingerprint(versions[-1]) == fingerprint(avro_schema(record))
    # The newest version against itself as well, so that a history of one is still checked for being a schema.
    assert not incompatibilities([*versions, avro_schema(record)])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda s: s["fields"].append({"name": "must", "type": "string"}), id="new field without default"),
        pytest.param(lambda s: s["fields"].pop(0), id="required field removed"),
        pytest.param(lambda s: s["fields"][1].update(type="string"), id="type changed"),
    ],
)
def test_the_check_refuses_a_breaking_change(change):
    first = avro_schema(build.EVENTS[0])
    second = json.loads(json.dumps(first))
    change(second)
    assert incompatibilities([first, second])


def test_the_check_accepts_a_field_with_a_default():
    first = avro_schema(build.EVENTS[0])
    second = json.loads(json.dumps(first))
    second["fields"].append({"name": "more", "type": ["null", "string"], "default": None})
    assert not incompatibilities([first, second])


def test_a_changed_schema_becomes_a_new_version(tmp_path):
    for path, text in build.plan(tmp_path).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert build.plan(tmp_path) == {}
    committed = tmp_path / "history" / "Posting" / "0001.avsc"
    schema = json.loads(committed.read_text())
    schema["fields"] = [field for field in schema["fields"] if field["name"] != "trace"]
    committed.write_text(json.dumps(schema))
    assert [path.name for path in build.plan(tmp_path)] == ["0002.avsc"]
