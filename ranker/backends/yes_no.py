"""A decoder-only language model that answers yes or no: p = sigmoid(logit of yes - logit of no) at the last position.

Any Qwen3-style directory that transformers can load (config, tokenizer, safetensors); nothing is fetched. Prefill only.
A prompt is before + query + between + item + after; query and item are tokenised apart, so an item's tokens do not
depend on the query. Batches are padded on the left with explicit positions: a score does not depend on the padding.
A directory may bring the wording it was trained with in `penstock_template.json` ({"before", "between", "after"}).
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.ranker.backends.scorer import Scores, ScoringItem, ScoringQuery
from penstock.ranker.errors import UnfitScorer
from penstock.schemas.events import IndexUpdate

MAX_QUERY_TOKENS = 256
MAX_ITEM_TOKENS = 512
FORWARD_TOKENS = 4_096  # padded tokens a forward, at most (one prompt always fits)
TEMPLATE_FILE = "penstock_template.json"


@dataclass(frozen=True, slots=True)
class Template:
    before: str
    between: str
    after: str


TEMPLATE = Template(
    before=(
        "<|im_start|>system\nYou are given what a person looking for work typed, and one job posting. "
        "Say yes if this person would want to see the posting, no if not.<|im_end|>\n<|im_start|>user\nSearch: "
    ),
    between="\nPosting: ",
    after="<|im_end|>\n<|im_start|>assistant\n",
)


class YesNoScorer:
    """Loads once; forwards run one at a time under a lock, on `threads` CPU threads or on `device`."""

    part_names = ("yes_no_logit",)

    def __init__(self, directory: Path, *, threads: int = 1, device: str = "cpu") -> None:
        """Raises UnfitScorer when the directory is missing, damaged or has no yes and no."""
        import torch

        if not (directory / "config.json").is_file():
            raise UnfitScorer(
                f"ranker.scorer names {directory}, which has no config.json; expected 'fused' or the directory of a "
                "causal language model (config.json, tokenizer.json, model.safetensors)"
            )
        if device == "cpu":
            torch.set_num_threads(threads)
        self._torch = torch
        self._lock = threading.Lock()
        self._device = device
        self._template = _template(directory)
        self._tokenizer, self._model = _load(directory, device)
        self._yes, self._no = (_single_token(self._tokenizer, word, directory) for word in ("yes", "no"))
        self.model_id = f"yes-no:{directory.name}:{_digest(directory, self._template)}"

    def score(self, query: ScoringQuery, items: Sequence[ScoringItem]) -> Scores:
        head, tail, query_cut = self._frame(query.text)
        texts = [self._encode(item_text(item.update)) for item in items]
        prompts = [head + text[:MAX_ITEM_TOKENS] + tail for text in texts]
        logits = np.zeros(len(items))
        for batch in batches([len(prompt) for prompt in prompts], FORWARD_TOKENS):
            logits[batch] = self._forward([prompts[at] for at in batch])
        notes = []
        if query_cut:
            notes.append(f"language model: query cut to {MAX_QUERY_TOKENS} tokens")
        if cut := sum(len(text) > MAX_ITEM_TOKENS for text in texts):
            notes.append(f"language model: {cut} postings cut to {MAX_ITEM_TOKENS} tokens")
        with np.errstate(over="ignore"):
            p = 1.0 / (1.0 + np.exp(-logits))
        return Scores(p, logits[:, None], tuple(notes))

    def _frame(self, text: str) -> tuple[list[int], list[int], bool]:
        """(tokens before the item, tokens after it, whether the query was cut)."""
        query = self._encode(text)
        head = self._encode(self._template.before) + query[:MAX_QUERY_TOKENS] + self._encode(self._template.between)
        return head, self._encode(self._template.after), len(query) > MAX_QUERY_TOKENS

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False)) if text else []

    def _forward(self, prompts: Sequence[list[int]]) -> NDArray[np.float64]:
        """logit of yes - logit of no, float64 [len(prompts)]."""
        torch = self._torch
        longest = max(len(prompt) for prompt in prompts)
        ids = torch.zeros((len(prompts), longest), dtype=torch.long)
        mask = torch.zeros((len(prompts), longest), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        with self._lock, torch.inference_mode():
            out = self._model(
                input_ids=ids.to(self._device),
                attention_mask=mask.to(self._device),
                position_ids=positions.to(self._device),
                use_cache=False,
                logits_to_keep=1,
            )
            last = out.logits[:, -1, :]
            difference = (last[:, self._yes] - last[:, self._no]).double().cpu().numpy()
        return np.asarray(difference, dtype=np.float64)


def item_text(update: IndexUpdate) -> str:
    """What the model reads of a posting: its item text, else title and summary."""
    if update.item_text:
        return update.item_text
    title = update.attributes.title if update.attributes is not None else None
    return "\n".join(part for part in (title, update.summary) if part)


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


def _load(directory: Path, device: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
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
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > vocabulary:
        raise UnfitScorer(
            f"{directory}: the tokenizer has {len(tokenizer)} tokens, the model {vocabulary}: "
            "they do not belong together"
        )
    return tokenizer, model.eval().to(device)


def _single_token(tokenizer: Any, word: str, directory: Path) -> int:
    ids = tokenizer.encode(word, add_special_tokens=False)
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise UnfitScorer(
            f"{directory}: its tokenizer has no single token for {word!r} (got {ids}); "
            "a yes/no scorer needs one for each"
        )
    return int(ids[0])


def _template(directory: Path) -> Template:
    path = directory / TEMPLATE_FILE
    if not path.is_file():
        return TEMPLATE
    try:
        return Template(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UnfitScorer(f"{path}: {error}; expected an object with before, between, after") from error


def _digest(directory: Path, template: Template) -> str:
    """12 hex digits of weights, config, tokenizer, template and limits."""
    digest = hashlib.blake2b(digest_size=6)
    named = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
    files = [directory / name for name in named if (directory / name).is_file()]
    for path in [*files, *sorted(directory.glob("*.safetensors"))]:
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    form = [template.before, template.between, template.after, MAX_QUERY_TOKENS, MAX_ITEM_TOKENS]
    digest.update(json.dumps(form).encode())
    return digest.hexdigest()
