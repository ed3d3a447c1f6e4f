"""Killed at any step of applying or of writing a snapshot, a store comes back as what its log says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parents[2] / "support"


@pytest.mark.parametrize("seed", [1, 2])
def test_kill_9_anywhere_loses_nothing(tmp_path, seed):
    command = [sys.executable, str(SUPPORT / "killed_store.py"), str(tmp_path), str(seed), "20"]
    found = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert found.returncode == 0, found.stderr
    lives = [json.loads(line) for line in found.stdout.splitlines()]
    assert len(lives) == 20
    assert sum(life["killed"] for life in lives) >= 15  # a few come to their end first
    assert any(life["torn"] for life in lives)  # killed with a file half written
    assert len({life["offset"] for life in lives}) > 2  # and yet they get on
    for life in lives:
        assert life["same"], life
        assert life["problems"] == [], life
