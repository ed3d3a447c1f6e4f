"""Hugging Face has a package called `kernels`, which transformers looks for: our folder must never pass for it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_transformers_imports_with_the_repository_on_the_path():
    code = "import sys; sys.path.insert(0, sys.argv[1]); from transformers import BertModel; print(BertModel.__name__)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT)], capture_output=True, text=True, cwd=ROOT, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "BertModel"


def test_our_kernels_are_not_a_top_level_package():
    assert not (ROOT / "kernels" / "__init__.py").exists()
