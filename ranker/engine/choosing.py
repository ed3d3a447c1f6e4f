"""Which products of a model multiply numbers of one byte on a device: as `ranker.weights` asks, or as was measured.

`auto` takes a scaled form where it is quicker and scores as the whole one does:

    quicker   of each product of a layer the whole and the scaled one are timed as the forward launches them, with what
              stands before them, by turns, over all layers' own weights; a product is scaled where that is MARGIN
              times as quick
    the same  the log-odds of a few known requests are no further than DRIFT from those of whole weights, so that no
              probability is further than what whole weights of their dtype may differ by in other company

Of two forms that are both, the one that saves more. What was found is kept beside the tunings of kernels, by device,
releases, source and model (kernels/tunings), is logged, and is not measured again. Without a CUDA device nothing is
measured, and `auto` is `plain`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import torch

from penstock.infra.telemetry import DEGRADED
from penstock.kernels.scaled_gemm.numbers import FORMS
from penstock.kernels.tunings import kept
from penstock.kernels.tunings.kept import Tunings
from penstock.ranker.engine.forward import BOUND
from penstock.ranker.engine.scaled import PRODUCTS, Choice
from penstock.ranker.errors import UnfitScorer

log = structlog.get_logger(role="ranker")

SETTING = "ranker.weights"
AUTO, PLAIN = "auto", "plain"
MARGIN = 1.05  # a whole product's time to a scaled one's, at least: less is not worth other scores
DRIFT = {dtype: 4 * bound for dtype, bound in BOUND.items()}  # of log-odds: a probability moves by a quarter at most
FP8_FROM = (8, 9)  # compute capability
SOURCES: tuple[str | Path, ...] = (
    *("scaled_gemm", "rowwise", "add_rmsnorm", "swiglu"),
    *(
        Path(__file__).with_name(f"{name}.py")
        for name in ("choosing", "device", "forward", "known_pairs", "measuring", "products", "scaled")
    ),
)


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one product, of all layers together."""

    whole: float
    scaled: float

    @property
    def quicker(self) -> bool:
        return self.whole >= MARGIN * self.scaled


@dataclass(frozen=True, slots=True)
class Trial:
    """What was measured of a form."""

    timings: Mapping[str, Timing]  # by product
    drift: float | None = None  # of the log-odds, at most; None: no product was quicker, or another form was taken

    def choice(self, form: str) -> Choice:
        return Choice(form, tuple(name for name in PRODUCTS if self.timings[name].quicker))

    @property
    def saved(self) -> float:
        """Seconds a forward."""
        return sum(one.whole - one.scaled for one in self.timings.values() if one.quicker)


@dataclass(frozen=True, slots=True)
class Decision:
    choice: Choice
    trials: Mapping[str, Trial]  # by form

    def as_json(self) -> dict[str, Any]:
        return {
            "form": self.choice.form,
            "products": list(self.choice.products),
            "trials": {
                form: {
                    "drift": trial.drift,
                    "ms": {name: [1e3 * one.whole, 1e3 * one.scaled] for name, one in trial.timings.items()},
                }
                for form, trial in self.trials.items()
            },
        }


def decide(
    timings: Mapping[str, Mapping[str, Timing]], drift_of: Callable[[Choice], float], most_drift: float
) -> Decision:
    """`timings` by form and product. `drift_of` computes the known requests, of what is quicker alone; `most_drift`:
    DRIFT of the whole weights' dtype."""
    trials = {form: Trial(found) for form, found in timings.items()}
    for form, trial in sorted(trials.items(), key=lambda one: one[1].saved, reverse=True):
        choice = trial.choice(form)
        if not choice:
            break
        drift = drift_of(choice)
        trials[form] = Trial(trial.timings, drift)
        if drift <= most_drift:  # and NaN is not
            return Decision(choice, trials)
    return Decision(Choice(), trials)


def asked(setting: str, device: str, place: torch.device | None) -> Choice | None:
    """What the setting says outright; None where it is to be measured. Raises UnfitScorer: it cannot be had there."""
    if setting == PLAIN or (setting == AUTO and (place is None or place.type != "cuda")):
        return Choice()
    if setting == AUTO:
        return None
    if setting not in FORMS:
        raise UnfitScorer(f"{SETTING} is {setting!r}: expected one of {', '.join((AUTO, PLAIN, *FORMS))}")
    if place is None:
        raise UnfitScorer(
            f"{SETTING} is {setting} and ranker.device {device}: such products are the kernels'; set it to auto or "
            "plain, or the device to cuda"
        )
    if setting not in forms_of(place):
        raise UnfitScorer(
            f"{SETTING} is fp8 and {device} has compute capability {_capability(place)}: expected {FP8_FROM} or more; "
            "set it to int8, auto or plain"
        )
    return Choice(setting, PRODUCTS)


def forms_of(place: torch.device) -> list[str]:
    """What its tensor cores multiply, or the interpreter."""
    return [form for form in FORMS if form != "fp8" or place.type != "cuda" or _capability(place) >= FP8_FROM]


def measured_once(
    tunings: Tunings, model: str, most_tokens: int, place: torch.device, measure: Callable[[], Decision]
) -> Choice:
    """What is kept of `model`, or what `measure` finds, which is kept, where that can be, and logged."""
    key = kept.key_of("ranker.weights", f"{model} t{most_tokens}", place, sources=SOURCES)
    choice = _read(tunings.entry(key))
    if choice is None:
        decision = measure()
        choice = decision.choice
        try:
            tunings.keep_entry(key, decision.as_json())
        except OSError as error:
            DEGRADED.labels("ranker", "weights not kept").inc()
            log.warning("weights not kept: the next start measures anew", path=str(tunings.path), error=str(error))
    log.info("weights", model=model, chosen=choice.name.removeprefix("-") or PLAIN, measured=tunings.entry(key))
    return choice


def forget(tunings: Tunings, model: str) -> None:
    """What was chosen for models of that name is measured anew: kernels have other tunings. Raises OSError."""
    tunings.drop(lambda key: f": {SETTING} {model} " in key)


def _read(entry: Mapping[str, Any] | None) -> Choice | None:
    """None where there is nothing, or no choice."""
    if entry is None:
        return None
    form, products = entry.get("form"), entry.get("products")
    if form == "" and products == []:
        return Choice()
    if form not in FORMS or not products or not isinstance(products, list):
        return None
    ordered = tuple(name for name in PRODUCTS if name in products)
    return Choice(str(form), ordered) if list(ordered) == products else None


def _capability(place: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(place)
