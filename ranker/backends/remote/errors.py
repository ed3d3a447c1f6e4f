"""What can go wrong with a scorer on the other end of a wire: each says what was asked, what came, and what to do.

Two properties decide what follows: `retryable` (the same call may well succeed at once) and `blames_backend` (it counts
against the backend in its circuit breaker; a request that was refused for what is in it does not).
"""

from __future__ import annotations

from penstock.ranker.errors import NonFiniteScore, NoScores

OF_THE_REQUEST = (400, 413, 422)  # refusals for what is in the request: another request may pass


class RemoteScorerError(NoScores):
    """Base of a remote scorer's errors."""

    retryable = False
    blames_backend = True


class RemoteAway(RemoteScorerError):
    """No connection, a connection that broke, or a 5xx."""

    retryable = True


class RemoteTimeout(RemoteScorerError, TimeoutError):
    """No answer in the time there was."""


class RemoteRefused(RemoteScorerError):
    """The backend answered that it will not: 3xx or 4xx. Never asked again with the same request."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        self.blames_backend = status not in OF_THE_REQUEST
        super().__init__(message)


class BadAnswer(RemoteScorerError):
    """A 200 that is not one score a text: the wrong form, not JSON, an index missing, doubled or out of range."""


class NotAProbability(BadAnswer, NonFiniteScore):
    """A score that is not a number, or not in [0, 1] where probabilities were asked for."""


class CircuitOpen(RemoteScorerError):
    """Not asked: the backend failed too often a moment ago."""
