"""Roles are wired from settings, each process paying for its own role only."""

import subprocess
import sys

import pytest

from penstock.infra import roles
from penstock.infra.settings import ModelsSettings, Settings
from penstock.retrieval.encoder.weights import EncoderWeightsError


def test_naming_the_roles_loads_none_of_them():
    script = (
        "import sys, penstock.infra.roles;"
        "print(*sorted({'torch', 'transformers', 'grpc', 'pyflink', 'numpy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""


def test_a_directory_that_is_no_encoder_is_named(tmp_path):
    settings = Settings(models=ModelsSettings(encoder=str(tmp_path / "absent")))
    with pytest.raises(EncoderWeightsError, match="absent"):
        roles.make_encoder(settings, "cpu")
