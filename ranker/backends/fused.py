"""The embedded scorer: one logistic line over the features of a pair, calibrated; microseconds a pair, no model.

p = sigmoid(weights . features + intercept), which is monotone in the line, so order and probability agree. Where nobody
could compute the dense product, what the words let one expect stands in for it (expectation.py). The parts of a score
are the line's terms in log-odds, gathered by what they are about: they sum to the log-odds of p.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from penstock.ranker.backends import features, hints
from penstock.ranker.backends.expectation import DenseExpectation
from penstock.ranker.backends.features import FEATURES, ItemFeatures, Rarity, compute, query_features
from penstock.ranker.backends.scorer import ANYONE, Caller, Scores, ScoringItem, ScoringQuery, probability
from penstock.ranker.errors import UnfitScorer
from penstock.schemas import text
from penstock.schemas.events import EmploymentType, Location, Remote

log = structlog.get_logger(role="ranker")

# What each feature is about, by the start of its name; "base" is what belongs to the query or to nothing.
_ABOUT = {
    "query_": "base",
    "dense": "dense",
    "lexical": "lexical",
    "title_": "words",
    "head_": "words",
    "text_": "words",
    "rarest_": "words",
    "excluded": "excluded",
    "location_": "place",
    "region_": "place",
    "grade_": "grade",
    "lead_": "level",
    "junior_": "level",
    "remote_": "remote",
    "hours_": "hours",
}


class FusedScorer:
    """Immutable once made; safe to share between threads."""

    tolerance = 1e-6

    def __init__(self, source: bytes, name: str, expectation: DenseExpectation | None = None) -> None:
        """`source` is what training/fused_scorer.py writes. Raises UnfitScorer saying what is wrong with it.

        Without an `expectation` an unknown dense product counts as 0.
        """
        content = _parsed(source, name)
        self._weights = np.array(content["weights"], dtype=np.float64)
        self._intercept = float(content["intercept"])
        self._rarity = Rarity(content["rarity"]["idf"], float(content["rarity"]["unseen"]))
        self._space_id = content.get("space_id")
        self._other_spaces: set[str] = set()
        abouts = [_about(feature) for feature in FEATURES]
        self.part_names = tuple(dict.fromkeys(("base", *abouts)))
        self._gather = np.array([[about == part for part in self.part_names] for about in abouts], dtype=np.float64)
        self._expectation = expectation
        self.model_id = f"fused:{_digest(source, expectation.source if expectation is not None else b'')}"

    @classmethod
    def shipped(cls) -> FusedScorer:
        """The one in this package. Raises UnfitScorer."""
        file = resources.files("penstock.ranker.backends") / "fused_scorer.json"
        try:
            source = file.read_bytes()
        except OSError as error:
            raise UnfitScorer(f"{file} is missing: install the whole wheel, or run training/fused_scorer.py") from error
        return cls(source, str(file), DenseExpectation.shipped())

    def score(self, query: ScoringQuery, items: Sequence[ScoringItem], caller: Caller = ANYONE) -> Scores:
        """See Scorer; it is too quick for anybody to leave meanwhile."""
        if query.vector is not None and self._space_id not in (None, query.vector.space_id):
            self._warn(query.vector.space_id)
        values = compute(query_features(query.text, self._rarity), [item_features(item) for item in items])
        if self._expectation is not None:
            unknown = np.array([not item.has_dense for item in items], dtype=np.bool_)
            self._expectation.fill(values, unknown)
        terms = values * self._weights
        parts = terms @ self._gather
        parts[:, 0] += self._intercept
        return Scores(probability(terms.sum(axis=1) + self._intercept), parts)

    def _warn(self, space_id: str) -> None:
        """Once a space: the order still holds, the probability is only as good as the spaces are alike."""
        if space_id not in self._other_spaces:
            self._other_spaces.add(space_id)
            log.warning("fused scorer was fitted in another space", fitted=self._space_id, queries=space_id)


def item_features(item: ScoringItem) -> ItemFeatures:
    """The posting's side, as training saw it."""
    attributes = item.update.attributes
    if attributes is None:
        return ItemFeatures(title="", summary=item.update.summary, dense=item.dense, lexical=item.lexical)
    return ItemFeatures(
        title=attributes.title,
        company=attributes.company,
        location=_place(attributes.location),
        grade=attributes.grade,
        remote=None if attributes.remote is Remote.UNKNOWN else attributes.remote.value,
        employment_type=(
            None if attributes.employment_type is EmploymentType.UNKNOWN else attributes.employment_type.value
        ),
        summary=item.update.summary,
        dense=item.dense,
        lexical=item.lexical,
    )


def _place(place: Location | None) -> str | None:
    if place is None:
        return None
    return place.text or ", ".join(part for part in (place.city, place.region, place.country) if part) or None


def _about(feature: str) -> str:
    return next((about for start, about in _ABOUT.items() if feature.startswith(start)), "base")


def _parsed(source: bytes, name: str) -> Mapping[str, Any]:
    try:
        content = json.loads(source)
        given = tuple(content["features"])
        numbers = [*content["weights"], content["intercept"], content["rarity"]["unseen"]]
        numbers += content["rarity"]["idf"].values()
        finite = all(math.isfinite(number) for number in numbers)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnfitScorer(f"{name} is not a fused scorer: {type(error).__name__}: {error}; {_REMEDY}") from error
    if given != FEATURES:
        odd = sorted(set(given) ^ set(FEATURES)) or "the same names in another order"
        raise UnfitScorer(f"{name} was fitted on other features than this release computes ({odd}); {_REMEDY}")
    if len(content["weights"]) != len(FEATURES) or not finite:
        raise UnfitScorer(
            f"{name} has {len(content['weights'])} weights for {len(FEATURES)} features"
            f"{'' if finite else ', and some numbers are not finite'}; {_REMEDY}"
        )
    checked: Mapping[str, Any] = content
    return checked


_REMEDY = "install the whole wheel again, or make it with training/fused_scorer.py"


def _digest(*sources: bytes) -> str:
    """12 hex digits of the weights and of the code that computes the features: both make the score."""
    digest = hashlib.blake2b(b"".join(sources), digest_size=6)
    for module in (features, hints, text):
        if module.__file__ is not None:
            digest.update(Path(module.__file__).read_bytes())
    return digest.hexdigest()
