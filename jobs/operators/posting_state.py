"""What becomes of a posting: every decision of the postings job, as functions of plain values.

State of one id, the thing that happened, the time -> the next state and what leaves the operator. No Flink, no clock.

Invariants, for any order, repetition and interleaving of an id's events:
- the last update emitted belongs to the highest version that was accepted;
- (version, revision) strictly increases from one emitted update to the next;
- a (version, revision) says what it is by its revision, so that a replay after a crash cannot give the same pair to
  another kind of content: BARE before any vector, FAST with the fast lane's, 1 and on with refinements, EXPIRED last.

Where it stands: life-of-a-posting.md, steps 4 and 10.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from penstock.schemas.errors import InvalidRecord
from penstock.schemas.events import (
    Attributes,
    EnrichedPosting,
    Enrichment,
    EnrichRequest,
    IndexOp,
    IndexUpdate,
    Op,
    Posting,
    PostingText,
    Vector,
)
from penstock.schemas.records import from_plain, to_plain
from penstock.schemas.states import PostingState
from penstock.schemas.validate import material_class

BARE = -1
FAST = 0
EXPIRED = 1_000
LAST_REFINEMENT = EXPIRED - 1
HEAD_CHARS = 2_048  # of a description, in the text of a posting that no model has read


@dataclass(frozen=True, slots=True)
class Arrival:
    """A valid posting event on its way to the keyed operator, with what the fast lane could add."""

    posting: Posting
    raw: bytes  # the record as it came, for a dead letter
    produced_at: int  # its Kafka timestamp, epoch ms
    event_hash: bytes
    text: PostingText | None = None  # None on DELETE
    text_hash: str | None = None
    enrichment: Enrichment | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # As plain values, which pickle writes in C: it crosses between operators twice, and would otherwise cost more
        # there than everything that is done with it.
        text, made = self.text, self.enrichment
        return _arrival, (
            to_plain(self.posting),
            self.raw,
            self.produced_at,
            self.event_hash,
            None if text is None else to_plain(text),
            self.text_hash,
            None if made is None else to_plain(made),
        )


def _arrival(posting: Any, raw: bytes, produced_at: int, event_hash: bytes, text: Any, key: Any, made: Any) -> Arrival:
    """The inverse of `Arrival.__reduce__`."""
    return Arrival(
        from_plain(Posting, posting),
        raw,
        produced_at,
        event_hash,
        None if text is None else from_plain(PostingText, text),
        key,
        None if made is None else from_plain(Enrichment, made),
    )


@dataclass(frozen=True, slots=True)
class Refusal:
    """A well-formed posting that must not be applied."""

    arrival: Arrival
    error: InvalidRecord


@dataclass(frozen=True, slots=True)
class Transition:
    """The outcome of one event or timer. `counted` names what was dropped and why, for the metrics."""

    state: PostingState | None
    update: IndexUpdate | None = None
    request: EnrichRequest | None = None
    refusal: Refusal | None = None
    wake_at: int | None = None  # processing-time timer to arm, epoch ms
    counted: tuple[str, ...] = field(default=())


def on_posting(state: PostingState | None, arrival: Arrival, now_ms: int, window_ms: int) -> Transition:
    """A posting event reaches its key. `window_ms` is how long a tombstone keeps its version."""
    posting = arrival.posting
    if state is not None:
        held = state.update
        if posting.tenant != held.tenant:
            return _refused(
                state,
                arrival,
                InvalidRecord(
                    "tenant", posting.tenant, f"{held.tenant!r}, to whom posting {posting.posting_id} belongs"
                ),
            )
        if posting.version < held.version:
            return Transition(state, counted=("stale",))
        if posting.version == held.version:
            return _same_version(state, arrival)
    if posting.op is Op.DELETE:
        return _bury(arrival, IndexOp.DELETE, FAST, now_ms + window_ms)
    if posting.expires_at is not None and posting.expires_at <= now_ms:
        return _bury(arrival, IndexOp.EXPIRE, EXPIRED, now_ms + window_ms)
    return _publish(state, arrival)


def on_enriched(state: PostingState | None, answer: EnrichedPosting) -> Transition:
    """The slow lane's answer reaches its key. An answer to another text, or about what is gone, is void."""
    if state is None or state.update.op is not IndexOp.UPSERT:
        return Transition(state, counted=("void_answer",))
    held = state.update
    if (
        answer.tenant != held.tenant
        or answer.text_hash != state.text_hash
        or answer.version > held.version
        or held.revision >= LAST_REFINEMENT
    ):
        return Transition(state, counted=("void_answer",))
    if answer.heals and held.vector is not None:  # a late or repeated one must not undo a refinement
        return Transition(state, counted=("repeated_answer",))
    merged = _merge(_enrichment_of(held), answer.enrichment)
    if merged.vector is None:  # a refinement has a vector: only BARE, before all of them, has none
        return Transition(state, counted=("void_answer",))
    if state.refined and merged == _enrichment_of(held):
        return Transition(state, counted=("repeated_answer",))
    if answer.heals:
        update = _with(replace(held, revision=FAST, percolate=True, trace=answer.trace or held.trace), merged)
        return Transition(replace(state, update=update), update, counted=("healed",))
    refined = replace(
        held,
        revision=max(held.revision, FAST) + 1,
        percolate=held.vector is None,
        trace=answer.trace or held.trace,
    )
    update = _with(refined, merged)
    return Transition(replace(state, update=update, refined=True), update, counted=("refined",))


def on_timer(state: PostingState | None, now_ms: int, window_ms: int) -> Transition:
    """A timer fires. It may be an old one, or early: only the state and the clock decide."""
    if state is None:
        return Transition(None)
    if state.clear_at is not None:
        if now_ms >= state.clear_at:
            return Transition(None, counted=("forgotten",))
        return Transition(state, wake_at=state.clear_at)
    held = state.update
    if held.expires_at is None:
        return Transition(state)
    if now_ms < held.expires_at:
        return Transition(state, wake_at=held.expires_at)
    update = _tombstone(held, IndexOp.EXPIRE, EXPIRED)
    clear_at = now_ms + window_ms
    return Transition(
        PostingState(update=update, event_hash=state.event_hash, clear_at=clear_at),
        update,
        wake_at=clear_at,
        counted=("expired",),
    )


# --- how ---------------------------------------------------------------------------------------------------------


def _same_version(state: PostingState, arrival: Arrival) -> Transition:
    if arrival.event_hash != state.event_hash:
        error = InvalidRecord(
            "version",
            arrival.posting.version,
            "a higher version: this one was published before with different content, which stands",
        )
        return _refused(state, arrival, error)
    heals = arrival.enrichment is not None and arrival.enrichment.vector is not None
    if not heals or state.update.op is not IndexOp.UPSERT or state.update.vector is not None:
        return Transition(state, counted=("repeat",))
    assert arrival.enrichment is not None
    update = _with(replace(state.update, revision=FAST, percolate=True), arrival.enrichment)
    return Transition(replace(state, update=update), update, counted=("repeat", "healed"))


def _publish(state: PostingState | None, arrival: Arrival) -> Transition:
    posting = arrival.posting
    same_text = (
        state is not None
        and state.text_hash is not None
        and state.text_hash == arrival.text_hash
        and _comparable(state.update.vector, arrival.enrichment)
    )
    refined = same_text and state is not None and state.refined
    enrichment = arrival.enrichment or Enrichment()
    if same_text and state is not None:
        old = _enrichment_of(state.update)
        enrichment = _merge(enrichment, old) if refined else _merge(old, enrichment)
    attributes = attributes_of(posting)
    material = material_class(attributes)
    held = state.update if same_text and state is not None else None
    bare = IndexUpdate(
        posting_id=posting.posting_id,
        version=posting.version,
        revision=FAST if enrichment.vector is not None else BARE,
        op=IndexOp.UPSERT,
        tenant=posting.tenant,
        attributes=attributes,
        material_class=material,
        percolate=held is None
        or held.material_class != material
        or (held.vector is None and enrichment.vector is not None),
        produced_at=arrival.produced_at,
        expires_at=posting.expires_at,
        trace=posting.trace,
    )
    assert arrival.text is not None
    assert arrival.text_hash is not None
    if enrichment.vector is None and enrichment.item_text is None:  # the words that it is found by until it is healed
        enrichment = replace(enrichment, item_text=plain_text(arrival.text))
    update = _with(bare, enrichment)
    request = None
    if not same_text:
        request = EnrichRequest(
            posting_id=posting.posting_id,
            version=posting.version,
            tenant=posting.tenant,
            text_hash=arrival.text_hash,
            text=arrival.text,
            bare=enrichment.vector is None,
            expires_at=posting.expires_at,
            trace=posting.trace,
        )
    return Transition(
        PostingState(update=update, event_hash=arrival.event_hash, text_hash=arrival.text_hash, refined=refined),
        update,
        request,
        wake_at=posting.expires_at,
        counted=("published",) if enrichment.vector is not None else ("published", "without_vector"),
    )


def _bury(arrival: Arrival, op: IndexOp, revision: int, clear_at: int) -> Transition:
    posting = arrival.posting
    update = IndexUpdate(
        posting_id=posting.posting_id,
        version=posting.version,
        revision=revision,
        op=op,
        tenant=posting.tenant,
        produced_at=arrival.produced_at,
        expires_at=posting.expires_at,
        trace=posting.trace,
    )
    state = PostingState(update=update, event_hash=arrival.event_hash, clear_at=clear_at)
    return Transition(state, update, wake_at=clear_at, counted=("deleted" if op is IndexOp.DELETE else "expired",))


def _tombstone(held: IndexUpdate, op: IndexOp, revision: int) -> IndexUpdate:
    return replace(
        held,
        op=op,
        revision=revision,
        attributes=None,
        summary=None,
        item_text=None,
        vector=None,
        material_class="",
        percolate=False,
    )


def _refused(state: PostingState, arrival: Arrival, error: InvalidRecord) -> Transition:
    return Transition(state, refusal=Refusal(arrival, error), counted=("refused",))


def _enrichment_of(update: IndexUpdate) -> Enrichment:
    return Enrichment(vector=update.vector, summary=update.summary, item_text=update.item_text)


def _comparable(held: Vector | None, made: Enrichment | None) -> bool:
    """Whether the encoder has not moved to another space since: then what is held cannot be used again."""
    vector = made.vector if made is not None else None
    return held is None or vector is None or held.space_id == vector.space_id


def _merge(base: Enrichment, over: Enrichment) -> Enrichment:
    """`over` where it says something, `base` elsewhere."""
    return Enrichment(
        vector=over.vector or base.vector,
        summary=over.summary or base.summary,
        item_text=over.item_text or base.item_text,
    )


def plain_text(text: PostingText) -> str:
    """What stands in for a model's item text: title, company and place on one line, the description's head below."""
    line = " | ".join(" ".join(part.split())[:200] for part in (text.title, text.company, text.location) if part)
    return f"{line}\n{text.description[:HEAD_CHARS]}"


def _with(update: IndexUpdate, enrichment: Enrichment) -> IndexUpdate:
    return replace(update, vector=enrichment.vector, summary=enrichment.summary, item_text=enrichment.item_text)


def attributes_of(posting: Posting) -> Attributes:
    """The attributes that filters and displays use."""
    return Attributes(
        title=posting.title or "",
        company=posting.company,
        location=posting.location,
        remote=posting.remote,
        employment_type=posting.employment_type,
        seniority=posting.seniority,
        salary=posting.salary,
        grade=posting.grade,
        category=posting.category,
        skills=posting.skills,
        posted_at=posting.posted_at,
        source=posting.source,
        url=posting.url,
        promotion=posting.promotion,
    )
