"""The ranker's answers to the alerts job: the echo comes back, and the match it was asked about has its score.

Where it stands: life-of-an-alert.md, step 6.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pyflink.datastream.functions import ProcessFunction, RuntimeContext

from penstock.infra.settings import Settings
from penstock.jobs.operators.alert_state import REQUEST_PREFIX
from penstock.jobs.operators.identity import person_key
from penstock.jobs.operators.intake import DEAD_LETTERS, REFUSED, dead_letter_row
from penstock.jobs.operators.metrics import counters
from penstock.jobs.operators.worker import begin
from penstock.schemas.dead_letters import dead_letter
from penstock.schemas.events import RankClass, RankResult
from penstock.schemas.framing import topic_codec
from penstock.schemas.states import Candidate
from penstock.schemas.topics import RANK_RESULTS
from penstock.schemas.wire import codec

COUNTED = ("answers_with_score", "answers_without_score", "withdrawn", "answers_refused")


def is_ours(result: RankResult) -> bool:
    """Whether it answers a question of the alerts job."""
    return result.class_ is RankClass.ALERT and result.request_id.startswith(REQUEST_PREFIX)


def scored(candidate: Candidate, result: RankResult) -> Candidate | None:
    """The candidate that was asked about, with what the ranker said; None when the posting is live no more.

    No score for another reason is noted in `degraded`: the alert goes without, as its match stands by itself.
    """
    about = candidate.asked or ""
    notes: tuple[str, ...] = result.degraded if result.error is None else (result.error,)
    item = next(iter(result.items), None) if result.error is None else None
    if item is None and not notes:
        return None
    matches = candidate.matches
    if item is not None:
        matches = tuple(replace(m, score=item.score) if m.subscription_id == about else m for m in matches)
    degraded = (*candidate.degraded, *(f"rank: {about}: {note}" for note in notes))
    return replace(candidate, matches=matches, asked=None, degraded=degraded)


class TakeScores(ProcessFunction):  # type: ignore[misc]  # pyflink carries no types
    """Bytes of a rank result -> (person's key, candidate), if it answers this job. Poison leaves by DEAD_LETTERS."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def open(self, runtime_context: RuntimeContext) -> None:
        self._codec = topic_codec(RANK_RESULTS, self._settings.kafka.schema_registry)
        self._echo = codec(Candidate)
        self._counters = counters(begin(runtime_context, self._settings), "alerts", COUNTED)

    def process_element(self, value: bytes, ctx: ProcessFunction.Context) -> Iterator[Any]:
        raw = bytes(value) if value is not None else b""
        try:
            result: RankResult = self._codec.decode(raw)
            if not is_ours(result) or result.echo is None:
                return
            asked = self._echo.decode(result.echo)
        except REFUSED as error:
            self._counters["answers_refused"].inc()
            letter = dead_letter(
                RANK_RESULTS,
                key=None,
                raw=raw,
                stage="decode",
                error=error,
                produced_at=ctx.timestamp(),
                failed_at=int(time.time() * 1000),
            )
            yield DEAD_LETTERS, dead_letter_row(letter)
            return
        candidate = scored(asked, result)
        if candidate is None:
            self._counters["withdrawn"].inc()
            return
        self._counters["answers_with_score" if result.error is None and result.items else "answers_without_score"].inc()
        yield person_key(candidate.tenant, candidate.person_id), self._echo.encode_unbounded(candidate)
