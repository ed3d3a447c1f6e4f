"""The device cells of a benchmark, tried in Triton's interpreter by a program beside this one, a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path


def tried_cells(program, folder):
    """What the program found. `folder`: for its file."""
    path = folder / "found.json"
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(program)), str(path)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text())
