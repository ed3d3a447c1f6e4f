"""The student of training/posting_encoder.py: token weights, position weights and one linear layer over token vectors.

A text's vector is the unit-norm image under the linear layer of sum over tokens of
vector[token] * weight[token] * weight[position]. Fitted to the transformer's vectors by cosine plus a small in-batch
contrastive term (the student's own teacher against the batch's others).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from penstock.retrieval.encoder.planes import Floats
from penstock.retrieval.encoder.token_table import POSITIONS


@dataclass(frozen=True, slots=True)
class Bags:
    """Texts as tokens: `tokens` and `positions` int64 [total], `starts` int64 [texts + 1]."""

    tokens: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def take(self, rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, positions and offsets of some texts, as an embedding bag takes them."""
        lengths = self.starts[rows + 1] - self.starts[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        index = np.repeat(self.starts[rows] - offsets, lengths) + np.arange(int(lengths.sum()))
        return (
            torch.from_numpy(self.tokens[index]),
            torch.from_numpy(self.positions[index]),
            torch.from_numpy(offsets),
        )


@dataclass(frozen=True, slots=True)
class FitSettings:
    epochs: int = 12
    batch: int = 256
    learning_rate: float = 5e-3
    vector_rate: float = 0.0  # learning rate of the token vectors; 0 freezes them
    contrastive: float = 0.1
    temperature: float = 0.05
    seed: int = 0


class Student(nn.Module):
    """See the module's docstring. Token vectors float32 [V, D], starting weight float32 [V]."""

    def __init__(self, vectors: Floats, weight: Floats, train_vectors: bool) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.from_numpy(vectors.copy()), requires_grad=train_vectors)
        self.token = nn.Parameter(torch.from_numpy(np.log(weight).astype(np.float32)))
        self.position = nn.Parameter(torch.zeros(POSITIONS))
        self.linear = nn.Parameter(torch.eye(vectors.shape[1]))

    def forward(self, tokens: Tensor, positions: Tensor, offsets: Tensor) -> Tensor:
        weight = torch.exp(self.token[tokens] + self.position[positions])
        summed = nn.functional.embedding_bag(tokens, self.vectors, offsets, mode="sum", per_sample_weights=weight)
        return nn.functional.normalize(summed @ self.linear.T, dim=-1)

    @torch.no_grad()
    def table(self) -> tuple[npt.NDArray[np.int8], Floats, Floats]:
        """Rows int8 [V, D] with the linear layer folded in, scale float32 [V], position weight float32 [POSITIONS]."""
        rows = (self.vectors @ self.linear.T).numpy()
        step = np.maximum(np.abs(rows).max(axis=1), 1e-9) / 127
        scale = (step * torch.exp(self.token).numpy()).astype(np.float32)
        return np.rint(rows / step[:, None]).astype(np.int8), scale, torch.exp(self.position).numpy()


def fit(student: Student, bags: Bags, teacher: Floats, unread: npt.NDArray[np.int64], settings: FitSettings) -> None:
    """Fits in place on every text but the rows `unread`."""
    torch.manual_seed(settings.seed)
    order = np.random.default_rng(settings.seed)
    kept = np.setdiff1d(np.flatnonzero(np.diff(bags.starts) > 0), unread)
    groups = [{"params": [student.token, student.position], "lr": settings.learning_rate}]
    groups.append({"params": [student.linear], "lr": settings.learning_rate / 5})
    if settings.vector_rate > 0:
        groups.append({"params": [student.vectors], "lr": settings.vector_rate})
    optimiser = torch.optim.Adam(groups)
    steps = settings.epochs * -(-len(kept) // settings.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=[float(group["lr"]) for group in groups], total_steps=steps, pct_start=0.1
    )
    target = torch.from_numpy(teacher)
    started = time.monotonic()
    for epoch in range(settings.epochs):
        total = 0.0
        shuffled = order.permutation(kept)
        for first in range(0, len(shuffled), settings.batch):
            rows = shuffled[first : first + settings.batch]
            made, wanted = student(*bags.take(rows)), target[rows]
            cosine = (made * wanted).sum(-1).mean()
            likeness = made @ wanted.T / settings.temperature
            contrast = nn.functional.cross_entropy(likeness, torch.arange(len(rows)))
            loss = 1 - cosine + settings.contrastive * contrast
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            total += float(cosine.detach()) * len(rows)
        took = time.monotonic() - started
        print(f"epoch {epoch + 1}: cosine {total / len(kept):.4f}, {took:.0f} s", flush=True)


@torch.no_grad()
def mean_cosine(student: Student, bags: Bags, teacher: Floats, rows: npt.NDArray[np.int64]) -> float:
    """Mean cosine between the student and the teacher on some texts."""
    return float((student(*bags.take(rows)) * torch.from_numpy(teacher[rows])).sum(-1).mean())
