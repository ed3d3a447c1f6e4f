"""What tests of the ranker share."""

import time

import pytest


@pytest.fixture
def until():
    """Waits for a condition with a deadline and returns its value."""

    def wait(condition, seconds=20.0):
        give_up = time.monotonic() + seconds
        while not (value := condition()):
            if time.monotonic() > give_up:
                raise AssertionError(f"not within {seconds} s: {condition}")
            time.sleep(0.005)
        return value

    return wait
