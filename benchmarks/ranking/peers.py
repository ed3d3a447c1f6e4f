"""What people would use instead: the same weights, prompt by prompt in padded batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from penstock.ranker.engine.plan import Request, Text

BATCHES = (4, 8, 16, 32)  # prompts a batch that a peer may choose from


class Transformers:
    """transformers' forward with `logits_to_keep=1`, padded on the left, on the model's device."""

    def __init__(self, model: Any, answers: tuple[int, int]) -> None:
        self.model = model.eval()
        self.answers = answers

    @classmethod
    def load(
        cls,
        directory: Path,
        answers: tuple[int, int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Transformers:
        """With sdpa attention."""
        from transformers import AutoModelForCausalLM

        load: Any = AutoModelForCausalLM.from_pretrained
        return cls(load(directory, dtype=dtype, local_files_only=True).to(device), answers)

    def logits(self, requests: Sequence[Request], batch: int, *, ordered: bool) -> npt.NDArray[np.float64]:
        """One an item, in the requests' order. `ordered`: batches of like lengths, instead of as they come."""
        prompts = [
            np.concatenate([request.prefix, item.tokens])
            for request in requests
            for item in request.items
            if isinstance(item, Text)
        ]
        order = sorted(range(len(prompts)), key=lambda at: len(prompts[at])) if ordered else [*range(len(prompts))]
        found = np.zeros(len(prompts))
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            found[chosen] = self._forward([prompts[at] for at in chosen])
        return found

    def best_batch(self, requests: Sequence[Request], *, ordered: bool, batches: Sequence[int] = BATCHES) -> int:
        """The quickest of these on these requests."""
        took: dict[int, float] = {}
        for batch in batches:
            begin = time.perf_counter()
            self.logits(requests, batch, ordered=ordered)
            took[batch] = time.perf_counter() - begin
        return min(took, key=took.__getitem__)

    def _forward(self, prompts: Sequence[npt.NDArray[np.int32]]) -> npt.NDArray[np.float64]:
        longest = max(len(prompt) for prompt in prompts)
        ids = torch.zeros((len(prompts), longest), dtype=torch.long)
        mask = torch.zeros((len(prompts), longest), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.from_numpy(prompt)
            mask[row, longest - len(prompt) :] = 1
        padding: dict[str, torch.Tensor] = {}
        if not mask.all():  # without a mask attention takes its quicker causal form
            padding = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
        device = self.model.device
        padding = {name: given.to(device) for name, given in padding.items()}
        with torch.inference_mode():
            last = self.model(input_ids=ids.to(device), use_cache=False, logits_to_keep=1, **padding).logits[:, -1]
        yes, no = self.answers
        difference: npt.NDArray[np.float64] = (last[:, yes] - last[:, no]).double().cpu().numpy()
        return difference


def oracle(directory: Path, answers: tuple[int, int], dtype: torch.dtype) -> Callable[[Request], Any]:
    """Logits of a request's texts in float64 throughout, from the weights rounded to `dtype`; float64 [items]."""
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

    class Norm(Qwen3RMSNorm):  # transformers' own computes in float32 whatever it is given
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    peer = Transformers.load(directory, answers, dtype)
    peer.model.double()
    for module in peer.model.modules():
        if type(module) is Qwen3RMSNorm:
            module.__class__ = Norm
    return lambda request: peer.logits([request], 1, ordered=False)


def cross_encoder(
    directory: Path, folder: Path, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Callable[[Sequence[tuple[str, str]]], Any] | None:
    """sentence-transformers' CrossEncoder with the directory's body and a head of one label; None where it is absent.

    It reads (query, item text) pairs, without the template, and tokenises as it goes.
    """
    try:
        from sentence_transformers import CrossEncoder
    except ImportError:
        return None
    from transformers import AutoTokenizer, Qwen3ForSequenceClassification

    classifier = Qwen3ForSequenceClassification.from_pretrained(directory, num_labels=1, dtype=dtype)
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    classifier.config.pad_token_id = tokenizer.pad_token_id
    classifier.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model = CrossEncoder(str(folder), device=device, model_kwargs={"dtype": dtype})
    return lambda pairs: model.predict(list(pairs), batch_size=32, show_progress_bar=False)
