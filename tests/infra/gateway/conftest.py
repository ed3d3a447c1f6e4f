"""A gateway and a client of it."""

import httpx
import pytest
from gateway_world import World


@pytest.fixture
def world(free_port):
    """Makes a gateway and a client of it; all end with the test."""
    made = []

    def make(*, start=True, kept=100, beat_s=15.0, stall_s=20.0, **settings):
        one = World(f"127.0.0.1:{free_port()}", kept, beat_s, stall_s, **settings)
        one.http = httpx.Client(base_url=one.url, timeout=20)
        made.append(one)
        return one.start() if start else one

    yield make
    for one in made:
        one.http.close()
        if one.thread.is_alive():
            one.close()
