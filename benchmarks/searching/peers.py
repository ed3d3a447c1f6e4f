"""Other ways to the same top k: torch, numpy, faiss and usearch, each as its users write it. None rescoring anything.

A peer is a function of nothing that answers the whole batch. What it needs of the corpus is made before the clock
starts, masks and lists of passing rows too. faiss and usearch take part when they can be imported.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.searching.vectors import Corpus

Peer = Callable[[], Any]


def optional(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


class Peers:
    """The peers' own copies of one corpus's planes, made when first wanted: their memory is not ours."""

    def __init__(self, corpus: Corpus, threads: int) -> None:
        self.corpus = corpus
        self.threads = threads
        self.half = corpus.dense()
        self.whole = self.half.float()
        self.faiss, self.usearch = optional("faiss"), optional("usearch.index")
        self.index: Any = None
        if self.faiss is not None:
            self.faiss.omp_set_num_threads(threads)
            self.index = self.faiss.IndexFlatIP(self.whole.shape[1])
            self.index.add(self.whole.numpy())

    @property
    def absent(self) -> list[str]:
        return [name for name, found in (("faiss-cpu", self.faiss), ("usearch", self.usearch)) if found is None]

    def flat(self, batch: int, k: int) -> dict[str, Peer]:
        """Dense plane, every row."""
        queries = torch.from_numpy(self.corpus.dense_queries[:batch])
        halves, whole, half = queries.bfloat16(), self.whole, self.half
        out: dict[str, Peer] = {
            "torch float32": lambda: torch.topk(queries @ whole.T, k),
            "torch bfloat16": lambda: torch.topk(halves @ half.T, k),
            "numpy": lambda: _numpy_top(queries.numpy() @ whole.numpy().T, k),
        }
        if self.index is not None:
            out["faiss IndexFlatIP"] = lambda: self.index.search(queries.numpy(), k)
        if self.usearch is not None:
            found = self.usearch
            out["usearch exact"] = lambda: found.search(
                whole.numpy(), queries.numpy(), k, found.MetricKind.IP, exact=True, threads=self.threads
            )
        return out

    def hybrid(self, batch: int, k: int) -> dict[str, Peer]:
        """Both planes, every row, side by side in one matrix: the quickest way for torch."""
        queries = torch.from_numpy(
            np.concatenate((self.corpus.dense_queries[:batch], self.corpus.lexical_queries[:batch]), axis=1)
        )
        both = torch.cat((self.whole, self.corpus.sketch().float()), dim=1)
        halves, half = queries.bfloat16(), both.bfloat16()
        return {
            "torch float32": lambda: torch.topk(queries @ both.T, k),
            "torch bfloat16": lambda: torch.topk(halves @ half.T, k),
        }

    def filtered(self, masks: npt.NDArray[np.bool_], k: int) -> dict[str, Peer]:
        """Dense plane; masks bool [batch, rows], of each query its own."""
        batch = len(masks)
        queries = torch.from_numpy(self.corpus.dense_queries[:batch])
        left_out = torch.from_numpy(~masks)
        passes = torch.from_numpy(masks)
        whole, half = self.whole, self.half

        def masked() -> list[torch.Tensor]:
            scores = (queries @ whole.T).masked_fill_(left_out, -torch.inf)
            return list(torch.topk(scores, k))

        def gathered(plane: torch.Tensor) -> list[torch.Tensor]:
            out = []
            for mask, query in zip(passes, queries, strict=True):
                some = torch.nonzero(mask).view(-1)
                scores = torch.index_select(plane, 0, some).float() @ query
                out.append(some[torch.topk(scores, min(k, len(some))).indices])
            return out

        out: dict[str, Peer] = {
            "torch mask, then topk": masked,
            "torch gather float32, then topk": lambda: gathered(whole),
            "torch gather bfloat16, then topk": lambda: gathered(half),
        }
        if self.faiss is not None:
            faiss, index = self.faiss, self.index
            bits = [np.packbits(mask, bitorder="little") for mask in masks]

            def selected() -> list[Any]:
                return [
                    index.search(
                        queries[one : one + 1].numpy(),
                        k,
                        params=faiss.SearchParameters(sel=faiss.IDSelectorBitmap(each)),
                    )
                    for one, each in enumerate(bits)
                ]

            out["faiss IDSelectorBitmap"] = selected
        return out


def _numpy_top(scores: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int64]:
    some = np.argpartition(scores, scores.shape[1] - k, axis=1)[:, -k:]
    order = np.argsort(-np.take_along_axis(scores, some, axis=1), axis=1)
    top: npt.NDArray[np.int64] = np.take_along_axis(some, order, axis=1)
    return top
