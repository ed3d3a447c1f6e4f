"""What tests of the engine share."""

import pytest
from known_scores import KNOWN, PositionSum

from penstock.ranker.engine.engine import Engine


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
