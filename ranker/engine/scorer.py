"""The engine as a scorer: postings from the arena, the query tokenised, one request to the engine.

What a caller learns of its input is in the notes: what was cut, what had no text, what the tokenizer knows nothing of.
More items than a request may hold go as several requests, one after the other, so that others come in between.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import structlog

from penstock.infra.telemetry import STAGE_SECONDS
from penstock.ranker.backends.prompt import item_text
from penstock.ranker.backends.scorer import ANYONE, Caller, Health, Scores, ScoringItem, ScoringQuery, probability
from penstock.ranker.engine.arena import Arena, Filler, key_of
from penstock.ranker.engine.backend import Backend
from penstock.ranker.engine.engine import Engine, EngineStatus, Limits
from penstock.ranker.engine.keeper import TOLERANCE
from penstock.ranker.engine.plan import Request, Text
from penstock.ranker.engine.tokens import Encoded, Tokenizer, identity_of, notes
from penstock.ranker.errors import RankerError, UnfitScorer
from penstock.schemas.events import IndexUpdate

log = structlog.get_logger(role="ranker")

ARENA_BYTES = 64 << 20  # 100,000 postings of 160 tokens
_KNOWN = ("registered nurse in Ohio, night shift", "Registered Nurse, Columbus General Hospital. Night shifts.")


class EngineScorer:
    """Safe to share between threads. Owns the engine, the tokenizer and the arena."""

    part_names = ("yes_no_logit",)
    longest_s = math.inf

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, arena: Arena, model_id: str, tolerance: float = TOLERANCE
    ) -> None:
        """Raises UnfitScorer when the engine's forwards are too small for the longest prompt."""
        limits = engine.limits
        if tokenizer.longest > (room := min(limits.budget, limits.interactive, limits.waiting)):
            raise UnfitScorer(
                f"a prompt of this template has up to {tokenizer.longest} tokens, a forward takes {room}: "
                "raise the forward's budget (ranker.forward_tokens)"
            )
        self._engine = engine
        self._tokenizer = tokenizer
        self._arena = arena
        self._filler = Filler(arena, tokenizer)
        self._slice = max(tokenizer.longest, limits.waiting // 4)  # tokens a request, at most
        self.model_id = model_id
        self.tolerance = tolerance

    @classmethod
    def load(
        cls,
        directory: Path,
        *,
        device: str = "cpu",
        dtype: str = "auto",
        threads: int = 1,
        limits: Limits | None = None,
        arena_bytes: int = ARENA_BYTES,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> EngineScorer:
        """A warm engine on a Qwen3-architecture directory. `now_ms` gives epoch milliseconds. Raises UnfitScorer.

        `device` and `dtype` are as in ranker/engine/devices.py. The model id names the dtype and not the device: those
        of one dtype agree within its BOUND, which is what a cached score may be off by in any case.
        """
        from penstock.ranker.engine import devices
        from penstock.ranker.engine.forward import BOUND
        from penstock.ranker.engine.weights import Weights

        devices.checked(device)  # before anything is read
        dtype = devices.dtype_for(device, dtype)
        limits = limits or Limits()
        tokenizer = Tokenizer(directory, threads=threads)

        def make_backend() -> Backend:
            weights = Weights.load(directory, devices.DTYPES[dtype], (tokenizer.yes, tokenizer.no))
            if tokenizer.longest > weights.shape.max_positions:
                raise UnfitScorer(
                    f"{directory}: its positions end at {weights.shape.max_positions} (max_position_embeddings), a "
                    f"prompt of its template has up to {tokenizer.longest} tokens"
                )
            most_tokens = max(limits.budget, limits.interactive)
            return devices.made(weights, device, threads=threads, most_tokens=most_tokens, longest=tokenizer.longest)

        engine = Engine(
            make_backend, _request(tokenizer.prefix(_KNOWN[0]), tokenizer.items([_KNOWN[1]]), False), limits
        )
        model_id = f"engine-{dtype}:{directory.name}:{identity_of(directory, tokenizer)}"
        log.info("engine", device=device, dtype=dtype, model=directory.name)
        tolerance = max(TOLERANCE, BOUND[devices.DTYPES[dtype]])  # it may be asked in company
        scorer = cls(engine, tokenizer, Arena(arena_bytes, now_ms), model_id, tolerance)
        try:
            engine.start()
        except RankerError as error:
            raise error if isinstance(error, UnfitScorer) else UnfitScorer(f"{directory}: {error}") from error
        return scorer

    def score(self, query: ScoringQuery, items: Sequence[ScoringItem], caller: Caller = ANYONE) -> Scores:
        """One score an item, in order. Raises UnreadableText, NonFiniteScore and what Engine.ask raises."""
        began = time.monotonic()
        prefix = self._tokenizer.prefix(query.text)
        encoded = self._encoded(items)
        took = time.monotonic() - began
        STAGE_SECONDS.labels("engine", "tokenise").observe(took)
        timings = {"tokenise": took * 1000}
        logits = np.empty(0)
        for part in self._slices(prefix, encoded):
            request = _request(prefix, part, caller.interactive)
            answer = self._engine.ask(request, caller.deadline_s, caller.has_left)
            logits = np.concatenate([logits, answer.logits])
            for stage, spent in answer.timings.items():
                timings[stage] = timings.get(stage, 0.0) + spent
        tokens = len(prefix.tokens), sum(len(item.tokens) for item in encoded)
        return Scores(probability(logits), logits[:, None], tuple(notes(prefix, encoded)), timings, tokens)

    def ingest(self, updates: Sequence[IndexUpdate]) -> None:
        """Tokenise what is new, so that no query has to. Raises UnreadableText."""
        self._filler.fill(updates)

    def health(self) -> Health:
        """Not ready while the engine's known answer does not come."""
        status = self._engine.status()
        numbers = {
            "engine_waiting": float(status.waiting),
            "engine_waiting_tokens": float(status.waiting_tokens),
            "engine_forwards_total": float(status.forwards),
            "engine_restarts_total": float(status.restarts),
            "arena_items": float(len(self._arena)),
            "arena_bytes": float(self._arena.bytes_used),
        }
        return Health(status.ready, status.reason, numbers)

    def status(self) -> EngineStatus:
        return self._engine.status()

    def close(self, timeout_s: float) -> None:
        self._engine.close(timeout_s)
        self._tokenizer.close()

    def _encoded(self, items: Sequence[ScoringItem]) -> list[Encoded]:
        """From the arena; what it lacks is tokenised and kept there."""
        keys = [key_of(item.update) for item in items]
        found = self._arena.read(keys)
        missing = [at for at, item in enumerate(found) if item is None]
        fresh = dict(zip(missing, self._tokenizer.items([item_text(items[at].update) for at in missing]), strict=True))
        for at, item in fresh.items():
            self._arena.write(keys[at], item, items[at].update.expires_at)
        return [fresh[at] if item is None else item for at, item in enumerate(found)]

    def _slices(self, prefix: Encoded, items: Sequence[Encoded]) -> Iterator[Sequence[Encoded]]:
        first, tokens = 0, len(prefix.tokens)
        for at, item in enumerate(items):
            if tokens + len(item.tokens) > self._slice:
                yield items[first:at]
                first, tokens = at, len(prefix.tokens)
            tokens += len(item.tokens)
        if first < len(items):
            yield items[first:]


def _request(prefix: Encoded, items: Sequence[Encoded], interactive: bool) -> Request:
    return Request(prefix.tokens, tuple(Text(item.tokens) for item in items), interactive)
