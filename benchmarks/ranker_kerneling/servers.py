"""Engines that others wrote, where they can be imported: the same prompts, tokens in, one token or its chances out.

    vllm     LLM.generate of one token among yes and no, with its prefix cache: as Qwen3-Reranker's own page asks it
    sglang   Engine.score, whose items share the query

Both read a directory, so the random model is written to one. Neither is imported unless it is installed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.ranker_kerneling.models import ANSWERS
from penstock.ranker.engine.plan import Request, Text

Scores = Callable[[Request], Any]  # of all items of a request, when all are there


def installed() -> list[str]:
    return [name for name in MAKERS if importlib.util.find_spec(name) is not None]


def written(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def _vllm(directory: Path, dtype: str) -> Scores:
    from vllm import LLM, SamplingParams

    llm: Any = LLM(
        str(directory),
        dtype=dtype,
        skip_tokenizer_init=True,
        enable_prefix_caching=True,
        gpu_memory_utilization=0.5,
        max_model_len=4_096,
    )
    asked = SamplingParams(temperature=0.0, max_tokens=1, allowed_token_ids=list(ANSWERS), logprobs=2, detokenize=False)

    def score(request: Request) -> Any:
        prompts = [{"prompt_token_ids": [*request.prefix.tolist(), *tokens]} for tokens in _items(request)]
        return llm.generate(prompts, asked, use_tqdm=False)

    return score


def _sglang(directory: Path, dtype: str) -> Scores:
    import sglang

    engine: Any = sglang.Engine(
        model_path=str(directory), dtype=dtype, skip_tokenizer_init=True, mem_fraction_static=0.5
    )

    def score(request: Request) -> Any:
        return engine.score(
            query=request.prefix.tolist(), items=_items(request), label_token_ids=list(ANSWERS), apply_softmax=True
        )

    return score


def _items(request: Request) -> list[list[int]]:
    return [item.tokens.tolist() for item in request.items if isinstance(item, Text)]


MAKERS: dict[str, Callable[[Path, str], Scores]] = {"vllm": _vllm, "sglang": _sglang}


def made(names: Sequence[str], directory: Path, dtype: str = "bfloat16") -> dict[str, Scores]:
    return {name: MAKERS[name](directory, dtype) for name in names}


def once_each(score: Scores, requests: Iterable[Request]) -> Callable[[int], Any]:
    """A contender that asks the next request whatever buffer is named: what a server was asked before it has in its
    cache, items too, and it would compute next to nothing."""
    ahead = iter(requests)
    return lambda _: score(next(ahead))
