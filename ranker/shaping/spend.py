"""One budget of tokens for all works of a batch, spent where the next candidate adds the most relevance for its
tokens.

Rule: relevance is a sum over works of a concave function of the depth, since margins do not rise. Its maximum under a
budget has one price λ for all: each work goes as deep as its margins per token are at least λ (Lagrange; the
water-filling of Cover and Thomas, Elements of Information Theory, section 9.4), within its floor and its ceiling.

A batch of one or two works has nobody to share with. So the price is kept between batches and follows what they spend
(dual ascent): a work with flat margins leaves tokens to the next one with steep ones. What was saved or lent is the
carry. Bound: what was spent never exceeds what uniform depth would have spent by more than the loan, over any stretch
of batches; what was saved beyond the loan is forgotten, since an idle engine saves nothing.

Units: tokens, relevance. Owner: one shaper; not safe for threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from penstock.ranker.shaping.work import Work

_GAIN = 0.2  # of the logarithm of the price, for a batch that spent twice its budget
_PAY_BACK = 0.25  # of the carry, in each batch
_STEPS = 60  # of the search for a price, at most
_ALIKE = 1e-12  # logarithm of two prices that are one
_ABOUT = 0.02  # of a batch


@dataclass(slots=True, eq=False)
class Claim:
    """A work and the depths that it may get."""

    work: Work
    least: int
    most: int  # at least `least`
    each: float = field(init=False)  # tokens a candidate, on the mean

    def __post_init__(self) -> None:
        self.each = self.work.item * (1.0 - self.work.hits)

    def at(self, price: float) -> int:
        """The deepest at which each candidate past the least adds at least `price` a token."""
        margins = self.work.margins
        deep = len(margins) - int(margins[::-1].searchsorted(price * self.each))
        return self.least if deep < self.least else self.most if deep > self.most else deep

    def within(self, budget: float) -> int:
        """The deepest for so many tokens."""
        if self.each <= 0:
            return self.most
        deep = int((budget - self.work.fixed) / self.each)
        return self.least if deep < self.least else self.most if deep > self.most else deep


class Purse:
    def __init__(self, loan: float) -> None:
        """`loan`: tokens that may be spent before they were saved, or saved for later."""
        self.loan = loan
        self.carry = 0.0  # tokens saved; negative: lent
        self.price: float | None = None  # relevance a token

    def spend(self, claims: Sequence[Claim], planned: float, most: float) -> list[int]:
        """Depths. `planned`: tokens at uniform depth; `most`: what the batch may take whatever was saved.

        Both count the works' prefixes. The floors are given even where they pass `most`.
        """
        least = tokens(claims, [claim.least for claim in claims])
        may = max(min(most, planned + self.carry + self.loan), least)
        if self.price is None:
            depths = water_fill(claims, min(planned, may))
            self.price = _price_of(claims, depths)
        else:
            depths = [claim.at(self.price) for claim in claims]
        spent = tokens(claims, depths)
        asked = spent  # at the price, which no one moves who has no choice
        if spent > may:
            depths = water_fill(claims, may, may * _ABOUT)
            spent = tokens(claims, depths)
        aim = planned + _PAY_BACK * self.carry
        if self.price is not None and (asked > least if asked > aim else depths != [claim.most for claim in claims]):
            self.price *= math.exp(_GAIN * min(max((asked - aim) / max(planned, 1.0), -1.0), 1.0))
        self.carry = min(max(self.carry + planned - spent, -self.loan), self.loan)
        return depths


def tokens(claims: Sequence[Claim], depths: Sequence[int]) -> float:
    total = 0.0
    for claim, depth in zip(claims, depths, strict=True):
        total += claim.work.fixed + claim.each * depth
    return total


def water_fill(claims: Sequence[Claim], budget: float, about: float = 0.0) -> list[int]:
    """The depths of the most relevance within `budget` tokens, but for one candidate a work; floors at least.

    `about`: so many tokens may go to candidates that are not quite the best ones for them.
    """
    if len(claims) == 1:
        return [claims[0].within(budget)]
    over = [claim.most for claim in claims]
    much = tokens(claims, over)
    if much <= budget:
        return over
    under = [claim.least for claim in claims]
    little = tokens(claims, under)
    enough = max(about, max(claim.each for claim in claims))
    low, high = (math.log(price) for price in _bracket(claims))
    above, below = much - budget, little - budget  # of the two ends; regula falsi, every third step halves
    for step in range(_STEPS):
        if -below <= enough or over == under or high - low < _ALIKE:
            break
        price = (low + high) / 2 if step % 3 == 2 else (low * below - high * above) / (below - above)
        depths = [claim.at(math.exp(price)) for claim in claims]
        spent = tokens(claims, depths) - budget
        if spent > 0:
            low, over, above = price, depths, spent
        else:
            high, under, below = price, depths, spent
    return _level(claims, under, over, budget)


def _level(claims: Sequence[Claim], under: list[int], over: list[int], budget: float) -> list[int]:
    """What is left of the budget, to candidates of about the same worth between the two depths."""
    left = budget - tokens(claims, under)
    depths = list(under)
    for at, claim in enumerate(claims):
        each = claim.each
        more = over[at] - under[at] if each <= 0 else min(over[at] - under[at], int(left / each))
        if more > 0:
            depths[at] += more
            left -= more * each
    return depths


def _bracket(claims: Sequence[Claim]) -> tuple[float, float]:
    """Prices below which everyone has the most, and above which the least."""
    dearest, cheapest = 0.0, math.inf
    for claim in claims:
        each = claim.each
        if each > 0 and claim.most > claim.least:
            dearest = max(dearest, float(claim.work.margins[claim.least]) / each)
            cheapest = min(cheapest, float(claim.work.margins[claim.most - 1]) / each)
    dearest = max(dearest, 1e-30)
    return min(max(cheapest, dearest * 1e-12), dearest) / 2, dearest * 2


def _price_of(claims: Sequence[Claim], depths: Sequence[int]) -> float | None:
    """What the last candidates taken were worth; None where nobody had a choice."""
    prices = [
        float(claim.work.margins[depth - 1]) / claim.each
        for claim, depth in zip(claims, depths, strict=True)
        if claim.least < depth < claim.most and claim.each > 0
    ]
    return max(min(prices), 1e-30) if prices else None
