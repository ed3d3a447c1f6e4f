"""Fixtures that every folder may use."""

import socket

import pytest
from hypothesis import HealthCheck, settings

# Shared machines stall: an example that takes long says nothing about the code.
settings.register_profile(
    "penstock", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.load_profile("penstock")


@pytest.fixture
def free_port():
    """A function that gives a loopback port nobody listens on at the moment of asking."""

    def choose() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            return port

    return choose
