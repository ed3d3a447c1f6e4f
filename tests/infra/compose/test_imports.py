"""What an image checks of itself while it is built: an image for GPUs has what Triton compiles with."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.infra.compose import imports

RECIPE = Path(imports.__file__).with_name("roles.Dockerfile")


def built(**environment):
    """The stub, by a process of its own: Triton looks for a compiler once."""
    known = {name: value for name, value in os.environ.items() if name != "CC"}
    script = f"from {imports.__name__} import build_stub; build_stub()"
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=known | environment)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler here")
def test_tritons_side_of_the_driver_is_compiled_where_there_is_a_compiler_and_headers():
    done = built()
    assert done.returncode == 0, done.stderr


def test_without_a_compiler_the_image_fails_with_its_reason(tmp_path):
    done = built(PATH=str(tmp_path))
    assert done.returncode != 0 and "Failed to find C compiler" in done.stderr


def test_without_headers_the_image_fails_too(tmp_path):
    """As gcc does where it finds no Python.h."""
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'Python.h: No such file or directory' >&2\nexit 1\n")
    compiler.chmod(0o755)
    done = built(CC=str(compiler))
    assert done.returncode != 0 and "CalledProcessError" in done.stderr


def test_an_image_for_gpus_imports_every_kernel():
    names = {name for folder in imports.FOLDERS["cuda"] for name in imports.modules(folder)}
    for operator in ("filtered_topk", "gather_topk", "percolate", "scatter_rows", "prefix_attention", "yes_no_head"):
        assert f"penstock.kernels.{operator}.triton" in names
    assert imports.BESIDE["cuda"] == imports.BESIDE["roles"]


def test_a_ranker_in_an_image_for_cpus_may_lack_its_kernels_and_nothing_else():
    """ranker/engine/devices.py, which chooses, is imported wherever the engine is."""
    lacking = [name for name in imports.modules("penstock.ranker") if imports.loads_kernels(name)]
    assert lacking == [f"penstock.ranker.engine.{name}" for name in ("device", "measuring", "products")]
    assert imports.loads_kernels("penstock.retrieval.device.backend")


def test_every_stage_that_asks_for_the_accelerator_declares_it():
    """An argument ends with its stage: not declared again it is empty, and an image for GPUs is one for CPUs."""
    stages = re.split(r"(?m)^FROM ", RECIPE.read_text())[1:]
    asking = [stage for stage in stages if "$ACCELERATOR" in stage]
    assert len(asking) == 2 and all("\nARG ACCELERATOR=cpu\n" in stage for stage in asking)
    assert "penstock.infra.compose.imports" in asking[1]
