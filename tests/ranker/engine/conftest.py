"""What tests of the engine share."""

import pytest
from known_scores import KNOWN, PositionSum

from penstock.ranker.engine.engine import Engine


@pytest.fixture(scope="module", params=[1, 2], ids=["one in flight", "two in flight"])
def in_flight(request):
    """How many forwards these tests' backends take at once; a module's, for hypothesis runs a test many times."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(PositionSum, "in_flight", request.param)
        yield request.param


@pytest.fixture
def engines():
    made = []

    def make(backend=None, limits=None, start=True, **options):
        engine = Engine(backend if callable(backend) else lambda: backend or PositionSum(), KNOWN, limits, **options)
        made.append(engine)
        if start:
            engine.start()
        return engine

    yield make
    for engine in made:
        engine.close(20)
