"""The cells that need a GPU: items a second of the true shapes, peers on the same weights, the engine under load.

    text       0.6B and 375M at 70 + 150, 0.6B at 60 + 840 and at 60 + 2 (64 queries a forward): plan, launch, read
    peers      0.6B/text one request at a time, against transformers in its best sorted batch
    servers    the same against vLLM and SGLang, where they are installed
    serving    250 candidates a request through the engine: p99 at 0.8 of its throughput, and the gaps between forwards
    attention  one layer's attention of 0.6B/text, against two variable-length calls with a merge, and flex attention

Weights and tokens are random, in bfloat16 everywhere. Planning is part of every figure; tokens are there beforehand, as
the arena has them. What peers need once (a block mask, a compiled kernel, their best batch) is made outside of the
timing. What transformers and the other attentions answer is held against ours before they are timed; what servers
answer is not.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.kerneling.session import DeviceSession, Lacking
from benchmarks.kerneling.timing import BUFFERS, WARM
from benchmarks.ranker_kerneling import attending, loading, models, servers, shapes
from benchmarks.ranker_kerneling.model import PEAK, needed_flops
from benchmarks.ranker_kerneling.shapes import BUDGET, EMBEDDED, TEXT, TEXT_900, Asked
from benchmarks.ranking.launching import computed, score
from benchmarks.ranking.peers import Transformers
from penstock.ranker.backends.scorer import probability
from penstock.ranker.engine.device import Captures, DeviceBackend
from penstock.ranker.engine.engine import Engine, Limits
from penstock.ranker.engine.plan import plan
from penstock.ranker.engine.untrained import ModelShape

CLOSE = 4e-2  # probabilities of two bfloat16 implementations: twice the engine's own bound
BATCHES = (16, 32, 64, 128)  # prompts a batch that transformers may choose from
REPEATS = 5  # of a throughput, whose median is reported
CANDIDATES = 250  # of a request under load
SHARE = 0.8  # of the throughput
URGENT = 8_192  # tokens a forward of interactive requests


@dataclass
class Session(DeviceSession):
    seconds: float = 30.0  # of each load
    shapes: Mapping[str, ModelShape] = field(default_factory=lambda: dict(shapes.MODELS))
    asked: tuple[Asked, Asked, Asked] = (TEXT, TEXT_900, EMBEDDED)
    candidates: int = CANDIDATES
    budget: int = BUDGET
    _models: dict[str, Any] = field(default_factory=dict)

    def model(self, name: str) -> Any:
        """transformers' model of that name. One is kept: the other's memory is needed."""
        if name not in self._models:
            self._models.clear()
            gc.collect()
            self._models[name] = models.causal(self.shapes[name], self.device)
        return self._models[name]

    def backend(self, name: str, capture: loading.Watch | None = None) -> DeviceBackend:
        longest = max(one.prefix + one.item for one in self.asked)
        weights = models.weights_of(self.model(name))
        return DeviceBackend(weights, self.device, self.budget, longest=longest, capture=capture)


def begun(device: torch.device, given: argparse.Namespace) -> Session:
    """As the command was asked."""
    return Session(device, given.runs, seconds=given.seconds)


def text(session: Session) -> dict[str, float]:
    words, long, embedded = session.asked
    return {
        **{f"ranker/{name}/text": items_per_s(session, name, words) for name in session.shapes},
        "ranker/0.6B/text_900": items_per_s(session, "0.6B", long),
        "ranker/0.6B/embedding_items": items_per_s(session, "0.6B", embedded),
    }


def items_per_s(session: Session, name: str, asked: Asked) -> float:
    """Forwards one after the other, as many in flight as the backend takes; as many requests each as fit the budget."""
    backend, shape = session.backend(name), session.shapes[name]
    asked = asked.filling(session.budget)
    buffers = [asked.requests(shape, seed) for seed in range(BUFFERS)]

    def run(times: int) -> float:
        began = time.perf_counter()
        turns = itertools.islice(itertools.cycle(buffers), times)
        found = computed(backend, (one for requests in turns for one in plan(requests, session.budget, session.budget)))
        spent = time.perf_counter() - began
        if not all(np.isfinite(logits).all() for logits in found):
            raise RuntimeError(f"{name}/{asked.name}: a logit is not finite")
        return spent

    run(len(buffers))  # graphs are captured
    spent = [run(session.runs) for _ in range(REPEATS)]
    rates = [asked.scored * session.runs / seconds for seconds in spent]
    rate = statistics.median(rates)
    needed = sum(needed_flops(shape, one) for one in plan(buffers[0], session.budget, session.budget)) / asked.scored
    session.cells.append(
        {
            "cell": f"{name}/{asked.name}",
            "requests_at_once": asked.queries,
            "items_per_s": rates,
            "share": rate * needed / PEAK,
            "share_of_measured_peak": rate * needed / session.flops,
        }
    )
    return rate


def peers(session: Session) -> dict[str, float]:
    words = session.asked[0]
    backend, model = session.backend("0.6B"), session.model("0.6B")
    requests = [words.requests(session.shapes["0.6B"], seed)[0] for seed in range(BUFFERS)]
    contenders: dict[str, Callable[[int], Any]] = {
        "ours": lambda buffer: score(backend, [requests[buffer]], session.budget)
    }
    peer, batches, absent = Transformers(model, models.ANSWERS), {}, []
    for way in models.IMPLEMENTATIONS:
        if not models.with_attention(model, way):
            absent.append(way)
            continue
        batch = batches[way] = peer.best_batch(requests[:1], ordered=True, batches=BATCHES)
        agrees(contenders["ours"](0), peer.logits(requests[:1], batch, ordered=True), way)

        def run(buffer: int, way: str = way, batch: int = batch) -> Any:
            models.with_attention(model, way)
            return peer.logits([requests[buffer]], batch, ordered=True)

        contenders[f"transformers, {way}"] = run
    spent = session.timed("peers", contenders, batches=batches, absent=absent, items=words.items)
    best = min(one.median for name, one in spent.items() if name != "ours")
    return {"ranker/0.6B/ratio_transformers": best / spent["ours"].median}


def agrees(mine: Any, theirs: Any, what: str) -> None:
    """RuntimeError where two implementations of one model differ by more than CLOSE."""
    worst = float(np.abs(probability(mine) - probability(theirs)).max())
    if not worst <= CLOSE:
        raise RuntimeError(f"{what}: a probability is {worst:g} from ours: expected {CLOSE:g} at most")


def with_servers(session: Session) -> dict[str, float]:
    names = servers.installed()
    if not names:
        raise Lacking({"ranker/0.6B/ratio_best_server": f"one of {', '.join(servers.MAKERS)} to be installed"})
    words = session.asked[0]
    backend = session.backend("0.6B")
    requests = [words.requests(session.shapes["0.6B"], seed)[0] for seed in range(max(BUFFERS, WARM + session.runs))]
    with tempfile.TemporaryDirectory() as folder:
        scores = servers.made(names, servers.written(session.model("0.6B"), Path(folder)))
        contenders = {name: servers.once_each(ask, requests) for name, ask in scores.items()}
        contenders["ours"] = lambda buffer: score(backend, [requests[buffer]], session.budget)
        spent = session.timed("servers", contenders, items=words.items)
    best = min(spent[name].median for name in names)
    return {"ranker/0.6B/ratio_best_server": best / spent["ours"].median}


def serving(session: Session) -> dict[str, float]:
    shape, words = session.shapes["0.6B"], session.asked[0]
    asked = replace(words, items=session.candidates)
    requests = [replace(one, interactive=True) for seed in range(2 * BUFFERS) for one in asked.requests(shape, seed)]
    cost = asked.prefix + asked.items * asked.item
    limits = Limits(session.budget, min(URGENT, session.budget), 64 * cost)
    on_device = session.device.type == "cuda"
    watch = loading.Watch(Captures().captured if on_device else lambda launch: launch, session.device)
    known = replace(words, items=1).requests(shape)[0]
    engine = Engine(lambda: session.backend("0.6B", watch), known, limits)
    engine.start()
    try:
        loading.saturate(engine, requests, session.seconds / 10)  # graphs are captured
        watch.spans.clear()
        rate = loading.saturate(engine, requests, session.seconds)
        gap = watch.gap_share()
        spent = sorted(loading.arrivals(engine, requests, SHARE * rate / asked.items, session.seconds))
    finally:
        engine.close(session.seconds)
    p99 = spent[math.ceil(0.99 * len(spent)) - 1]
    session.cells.append(
        {
            "cell": "serving",
            "candidates": asked.items,
            "items_per_s": rate,
            "requests": len(spent),
            "ms": {"median": statistics.median(spent), "p99": p99, "most": spent[-1]},
            "forwards": len(watch.spans),
        }
    )
    return {"ranker/p99_ms": p99, "ranker/host_gap_share": gap}


def attention(session: Session) -> dict[str, float]:
    return attending.attention(session)


CELLS: dict[str, Callable[[Session], dict[str, float]]] = {
    "text": text,
    "peers": peers,
    "servers": with_servers,
    "serving": serving,
    "attention": attention,
}
