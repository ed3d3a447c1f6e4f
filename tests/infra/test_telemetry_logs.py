"""Log lines: one shape for every process, with the ids of the record they speak of."""

import json
import logging
import subprocess
import sys

import pytest
import structlog

from penstock.infra import telemetry
from penstock.schemas.events import Posting, RankQuery, RankRequest

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SCRIPT = """
import logging, structlog
from penstock.infra import telemetry
from penstock.schemas.events import Posting
early = structlog.get_logger()
telemetry.configure_logging("ranker")
with telemetry.about(Posting(posting_id="p 1", version=1, trace={trace!r})):
    early.warning("refused", reason="a \\"b\\" = c")
    logging.getLogger("library").error("what %s said", "it")
early.info("after")
early.debug("not asked for")
"""


def lines(**environment):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(trace=TRACE)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"PATH": "", **environment},
    )
    return done.stderr.splitlines(), done.returncode


def test_json_lines_carry_the_ids_also_those_of_libraries():
    out, status = lines(PENSTOCK_LOG_FORMAT="json")
    assert status == 0
    refused, library, after = (json.loads(line) for line in out)
    ids = {"posting_id": "p 1", "tenant": "default", "trace_id": TRACE.split("-")[1]}
    assert refused.items() >= {"event": "refused", "level": "warning", "role": "ranker", **ids}.items()
    assert library.items() >= {"event": "what it said", "level": "error", "role": "ranker", **ids}.items()
    assert after["event"] == "after"
    assert not ids.keys() & after.keys()


def test_logfmt_is_the_default():
    out, _ = lines()
    assert "role=ranker event=refused" in out[0]
    assert 'posting_id="p 1"' in out[0]
    assert len(out) == 3


@pytest.mark.parametrize(("variable", "value"), [("PENSTOCK_LOG_FORMAT", "xml"), ("PENSTOCK_LOG", "loud")])
def test_an_unknown_shape_or_level_is_named(variable, value):
    out, status = lines(**{variable: value})
    assert status != 0
    assert variable in out[-1]
    assert value in out[-1]


def test_ids_are_those_the_record_has():
    request = RankRequest(request_id="r", deadline=1, query=RankQuery(text="x"), trace="not a trace")
    assert telemetry.ids_of(request) == {"request_id": "r", "tenant": "default"}
    assert telemetry.ids_of(Posting(posting_id="p", version=1, tenant="t")) == {"posting_id": "p", "tenant": "t"}


def test_workers_of_flink_log_through_their_own_logging(caplog):
    before = structlog.get_config()
    try:
        telemetry.configure_worker_logging("jobs")
        with caplog.at_level(logging.INFO), telemetry.about(Posting(posting_id="p1", version=1)):
            structlog.get_logger().warning("record refused", topic="t")
    finally:
        structlog.configure(**before)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "role=jobs" in record.getMessage()
    assert "posting_id=p1" in record.getMessage()
