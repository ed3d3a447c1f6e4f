"""One budget of tokens for all works of a batch, spent where the next candidate adds the most relevance for its
tokens.

Rule: relevance is a sum over works of a concave function of the depth, since margins do not rise. Its maximum under a
budget has one price λ for all: each work goes as deep as its margins per token are at least λ (Lagrange; the
water-filling of Cover and Thomas, Elements of Information Theory, section 9.4), within its floor and its ceiling.

That is `water_fill`. A batch of one or two works has nobody to share with. So the price is kept between batches: the
mean, lately, of what the last candidate at uniform depth was worth. A work with flat margins leaves tokens to the next
one with steep ones. What is spent is held to what uniform depth would spend by one factor on all that is above the
floors, and what was saved or lent is the carry. What cannot be saved is spent by `water_fill` on those that are there.

Bounds: what was spent over any stretch of batches exceeds what uniform depth would have spent by at most the loan and
what was saved before, each half a batch. It falls short by no more, where the batches had room for it; and a batch
of an idle engine, which saves nothing, falls short of its own by nothing.

Units: tokens, relevance. Owner: one shaper; not safe for threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from penstock.ranker.shaping.work import Why, Work

_FOLLOW = 0.2  # of the newest batch in the price
_GAIN = 0.2  # of the factor, in its logarithm
_FARTHEST = 4.0  # the factor from one
_LOAN = 0.5  # of a batch's budget, the most that is saved or lent
_PAY_BACK = 0.1  # of the carry, in each batch
_STEPS = 60  # of the search for a price, at most
_ALIKE = 1e-12  # logarithm of two prices that are one
_ROUND = 1e-9  # relative: what is short of a price, or of a candidate, by no more than rounding is not short of it


class Claim:
    """A work and the depths that it may get."""

    __slots__ = ("each", "least", "most", "rising", "work")

    def __init__(self, work: Work, least: int, most: int) -> None:
        """`most` is at least `least`."""
        self.work = work
        self.least = least
        self.most = most
        self.each = work.item * (1.0 - work.hits)  # tokens a candidate, on the mean
        self.rising: NDArray[np.float64] = work.margins[::-1]  # from the last

    def at(self, price: float) -> int:
        """The deepest at which each candidate past the least adds at least `price` a token."""
        if self.most <= self.least:
            return self.least
        deep = len(self.rising) - int(self.rising.searchsorted(price * self.each * (1 - _ROUND)))
        return self.least if deep < self.least else self.most if deep > self.most else deep

    def within(self, budget: float) -> int:
        """The deepest for so many tokens."""
        if self.each <= 0:
            return self.most
        deep = int((budget - self.work.fixed) / self.each + _ROUND)
        return self.least if deep < self.least else self.most if deep > self.most else deep

    def why(self, depth: int, otherwise: Why) -> Why:
        """What bound it at this depth; `otherwise`, where neither it nor its bounds did."""
        if depth >= self.work.wanted:
            return Why.SUPPLY
        if depth <= self.least:
            return Why.FLOOR
        return Why.CEILING if depth >= self.most else otherwise


class Purse:
    def __init__(self) -> None:
        self.carry = 0.0  # tokens saved; negative: lent
        self.price: float | None = None  # logarithm of relevance a token
        self._factor = 1.0  # on what is above the floors

    def spend(
        self, claims: Sequence[Claim], planned: float, most: float, uniform: float, *, idle: bool = False
    ) -> list[int]:
        """Depths. `planned`: tokens at the depth `uniform`; `most`: what the batch may take whatever was saved. `idle`:
        nobody waits behind it or goes deeper after it, so what it does not spend is lost.

        Both count the works' prefixes. The floors are given even where they pass `most`.
        """
        least = tokens(claims, [claim.least for claim in claims])
        loan = _LOAN * planned
        may = max(min(most, planned + self.carry + loan), least)
        self._follow(claims, uniform)
        price = 0.0 if self.price is None else math.exp(self.price)
        depths = _cut(claims, [claim.at(price) for claim in claims], self._factor)
        spent = tokens(claims, depths)
        if spent > may:
            depths = _cut(claims, depths, (may - least) / (spent - least))
            spent = tokens(claims, depths)
        aim = min(planned + _PAY_BACK * self.carry, may)
        if spent > least and aim > least:
            ratio = (aim - least) / (spent - least)
            self._factor = min(max(self._factor * min(max(ratio, 0.5), 2.0) ** _GAIN, 1 / _FARTHEST), _FARTHEST)
        owed = min(planned if idle else planned + self.carry - loan, may)
        if spent < owed:
            depths = water_fill(claims, owed)
            spent = tokens(claims, depths)
        # What could not have been spent is not saved.
        self.carry = min(max(self.carry + min(planned, max(most, least)) - spent, -loan), loan)
        return depths

    def _follow(self, claims: Sequence[Claim], uniform: float) -> None:
        total, count = 0.0, 0
        for claim in claims:
            least, most = claim.least, claim.most
            if most <= least or claim.each <= 0:
                continue
            at = least if uniform < least else most if uniform > most else int(uniform)
            margin = claim.work.margins.item(at - 1)
            if margin > 0:
                total += math.log(margin / claim.each)
                count += 1
        if count:
            mean = total / count
            self.price = mean if self.price is None else self.price + _FOLLOW * (mean - self.price)


def tokens(claims: Sequence[Claim], depths: Sequence[int]) -> float:
    total = 0.0
    for claim, depth in zip(claims, depths):  # noqa: B905  # of one length, and asked for several times a batch
        total += claim.work.fixed + claim.each * depth
    return total


def water_fill(claims: Sequence[Claim], budget: float) -> list[int]:
    """The depths of the most relevance within `budget` tokens, but for one candidate a work; floors at least."""
    if len(claims) == 1:
        return [claims[0].within(budget)]
    over = [claim.most for claim in claims]
    much = tokens(claims, over)
    if much <= budget:
        return over
    under = [claim.least for claim in claims]
    little = tokens(claims, under)
    enough = max(claim.each for claim in claims)
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


def _cut(claims: Sequence[Claim], depths: Sequence[int], share: float) -> list[int]:
    """The same share of what each has above its least, within its most."""
    return [
        min(one.least + int((depth - one.least) * share), one.most) for one, depth in zip(claims, depths, strict=True)
    ]


def _level(claims: Sequence[Claim], under: list[int], over: list[int], budget: float) -> list[int]:
    """What is left of the budget, to candidates of about the same worth between the two depths: the same share of them
    to each work, and what that leaves of whole candidates in turn."""
    little = tokens(claims, under)
    between = tokens(claims, over) - little
    share = max(0.0, budget - little) / between if between > 0 else 1.0
    depths = [low + int((high - low) * min(share, 1.0) + _ROUND) for low, high in zip(under, over, strict=True)]
    left = budget - tokens(claims, depths)
    for at, claim in enumerate(claims):
        each = claim.each
        more = over[at] - depths[at]
        if more > 0 and (more := more if each <= 0 else min(more, int(left / each + _ROUND))) > 0:
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
