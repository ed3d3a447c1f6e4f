"""The shipped weights: the token table and the sketch's parameters, checked against their manifest at load.

`tables/` holds token_table.safetensors, sketch.safetensors and MANIFEST.json (SHA-256 of each, the command that made
them, the seed, the metrics). Made by training/posting_encoder.py; nothing else writes there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from penstock.retrieval.encoder.planes import Floats
from penstock.retrieval.encoder.sketch import SKETCH_ID, WIDTH, SketchParameters
from penstock.retrieval.encoder.weights import EncoderWeightsError, check_sha256

DENSE_SPACE = "minilm-l6-v2"
DIMENSIONS = 384
SHIPPED_SPACE = f"{DENSE_SPACE}/{DIMENSIONS}+{SKETCH_ID}/{WIDTH}"  # of the token table, the transformer and the sketch
TABLES = Path(__file__).with_name("tables")
TOKEN_TABLE_FILE = "token_table.safetensors"
SKETCH_FILE = "sketch.safetensors"
MANIFEST_FILE = "MANIFEST.json"
_REMEDY = "Restore the folder from version control, or make it again with training/posting_encoder.py."


@dataclass(frozen=True, slots=True)
class TokenTableWeights:
    rows: npt.NDArray[np.int8]  # [vocabulary, D]
    scale: Floats  # [vocabulary]
    position_weight: Floats  # [POSITIONS]
    digest: str  # first 8 hex digits of the file's SHA-256


@dataclass(frozen=True, slots=True)
class SketchWeights:
    parameters: SketchParameters
    digest: str


def load_token_table(folder: Path = TABLES) -> TokenTableWeights:
    """The token table. Raises EncoderWeightsError when a file is absent or not the one the manifest names."""
    tensors, digest = _load(folder, TOKEN_TABLE_FILE, ("rows", "scale", "position_weight"))
    return TokenTableWeights(tensors["rows"], tensors["scale"], tensors["position_weight"], digest)


def load_sketch(folder: Path = TABLES) -> SketchWeights:
    """The sketch's idf table, mean length and hybrid weight. Raises EncoderWeightsError likewise."""
    tensors, digest = _load(folder, SKETCH_FILE, ("idf", "mean_terms", "weight"))
    parameters = SketchParameters(tensors["idf"], float(tensors["mean_terms"][0]), float(tensors["weight"][0]))
    return SketchWeights(parameters, digest)


def _load(folder: Path, name: str, wanted: tuple[str, ...]) -> tuple[dict[str, npt.NDArray[Any]], str]:
    manifest_path = folder / MANIFEST_FILE
    try:
        manifest = json.loads(manifest_path.read_text())
        expected = str(manifest["files"][name]["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EncoderWeightsError(
            manifest_path, f"{type(error).__name__}: {error}", f"a manifest with the sha256 of {name}", _REMEDY
        ) from error
    path = folder / name
    check_sha256(path, expected, _REMEDY)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise EncoderWeightsError(path, str(error), "a safetensors file", _REMEDY) from error
    missing = [tensor for tensor in wanted if tensor not in tensors]
    if missing:
        raise EncoderWeightsError(path, f"no tensor {', '.join(missing)}", ", ".join(wanted), _REMEDY)
    return tensors, expected[:8]
