"""The plain yes/no scorer: any causal language model that transformers runs, by transformers' own forward.

p = sigmoid(logit of yes - logit of no) at the last position; prefill only. It packs nothing and shares nothing: the
engine (ranker/engine) does, for the architecture it knows, and is held against this one in its tests. Prompts are
tokenised as the engine's are. Batches are padded on the left with explicit positions: a score does not depend on the
padding. Nothing is fetched.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.ranker.backends.prompt import item_text
from penstock.ranker.backends.scorer import ANYONE, Caller, Health, Scores, ScoringItem, ScoringQuery, probability
from penstock.ranker.engine.tokens import Tokenizer, identity_of, notes
from penstock.ranker.errors import CallerLeft, DeadlinePassed, UnfitScorer
from penstock.schemas.events import IndexUpdate

LONGEST_WAIT_S = 30.0  # for other callers' forwards, of one without a deadline
FORWARD_TOKENS = 4_096  # padded tokens a forward, at most (one prompt always fits)


class YesNoScorer:
    """Loads once; forwards run one at a time under a lock, on `threads` CPU threads or on `device`."""

    part_names = ("yes_no_logit",)
    longest_s = math.inf
    tolerance = 1e-3  # a GPU's sums may differ in order between runs

    def __init__(self, directory: Path, *, threads: int = 1, device: str = "cpu") -> None:
        """Raises UnfitScorer when the directory is missing, damaged or has no yes and no."""
        import torch

        self._tokenizer = Tokenizer(directory, threads=threads)
        if device == "cpu":
            torch.set_num_threads(threads)
        self._torch = torch
        self._lock = threading.Lock()
        self._trouble = ""
        self._device = device
        self._model = _load(directory, device)
        computes_in = f"{self._model.dtype}-{torch.device(device).type}".removeprefix("torch.")
        self.model_id = f"yes-no-{computes_in}:{directory.name}:{identity_of(directory, self._tokenizer)}"

    def score(self, query: ScoringQuery, items: Sequence[ScoringItem], caller: Caller = ANYONE) -> Scores:
        """One score an item, in order. Whether the caller still waits is asked before each forward, never in one.

        Raises UnreadableText, NonFiniteScore, CallerLeft, DeadlinePassed.
        """
        prefix = self._tokenizer.prefix(query.text)
        encoded = self._tokenizer.items([item_text(item.update) for item in items])
        prompts = [np.concatenate([prefix.tokens, item.tokens]) for item in encoded]
        logits = np.zeros(len(items))
        for batch in batches([len(prompt) for prompt in prompts], FORWARD_TOKENS):
            caller.check("its forward")
            if not self._lock.acquire(timeout=min(caller.deadline_s - time.monotonic(), LONGEST_WAIT_S)):
                raise DeadlinePassed("its forward", late_ms=0)
            try:
                caller.check("its forward")
                logits[batch] = self._forward([prompts[at] for at in batch])
                self._trouble = ""
            except (CallerLeft, DeadlinePassed):
                raise
            except Exception as error:
                self._trouble = f"the last forward failed: {type(error).__name__}: {error}"
                raise
            finally:
                self._lock.release()
        return Scores(probability(logits), logits[:, None], tuple(notes(prefix, encoded)))

    def health(self) -> Health:
        """Not ready from a forward that fails to one that does not: a dead GPU fails them all."""
        return Health(not self._trouble, self._trouble)

    def ingest(self, updates: Sequence[IndexUpdate]) -> None:
        """Nothing: postings are tokenised with each query."""

    def close(self, timeout_s: float = 0.0) -> None:
        self._tokenizer.close()

    def _forward(self, prompts: Sequence[NDArray[np.int32]]) -> NDArray[np.float64]:
        """logit of yes - logit of no, float64 [len(prompts)]. The lock is held."""
        torch = self._torch
        longest = max(len(prompt) for prompt in prompts)
        ids = torch.zeros((len(prompts), longest), dtype=torch.long)
        mask = torch.zeros((len(prompts), longest), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.from_numpy(prompt)
            mask[row, longest - len(prompt) :] = 1
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        with torch.inference_mode():
            out = self._model(
                input_ids=ids.to(self._device),
                attention_mask=mask.to(self._device),
                position_ids=positions.to(self._device),
                use_cache=False,
                logits_to_keep=1,
            )
            last = out.logits[:, -1, :]
            difference = (last[:, self._tokenizer.yes] - last[:, self._tokenizer.no]).double().cpu().numpy()
        return np.asarray(difference, dtype=np.float64)


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Positions in batches of like lengths, each at most `budget` tokens when padded to its longest; all, once each."""
    batch: list[int] = []
    for at in sorted(range(len(lengths)), key=lambda at: lengths[at]):
        if batch and lengths[at] * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch


def _load(directory: Path, device: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        load: Any = AutoModelForCausalLM.from_pretrained  # its type does not know output_loading_info
        model, info = load(
            directory,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32 if device == "cpu" else "auto",
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises whatever the directory leads it to
        raise UnfitScorer(
            f"{directory} cannot be used as a yes/no scorer: {type(error).__name__}: {error}; expected a causal "
            "language model as transformers saves it, with safetensors and its tokenizer"
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise UnfitScorer(
            f"{directory}: {len(missing)} weights are not in its safetensors ({', '.join(missing[:3])}, …); "
            "they would be random: give the whole model"
        )
    return model.eval().to(device)
