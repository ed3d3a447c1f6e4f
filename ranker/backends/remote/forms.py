"""The request and response forms of the servers that rerank: pure, no socket.

Read in the servers' sources (SGLang, vLLM, text-embeddings-inference, infinity) as of November 2026; the common form is
that of Jina and Cohere, which vLLM, infinity and others follow. Results come sorted by score: a score goes where its
index says. `/v1/score` of SGLang alone has no index: its rows are in the order asked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.ranker.backends.remote.errors import BadAnswer, NotAProbability

SLACK = 1e-6  # float32 sums of a softmax may pass 1 by this much
_SHOWN = 200  # characters of an answer in an error


def _fields(**given: Any) -> Mapping[str, Any]:
    return MappingProxyType(given)


@dataclass(frozen=True, slots=True)
class Form:
    """Where the parts of a request go and where the scores stand in an answer."""

    path: str  # behind the backend's URL
    rows: str | None  # the key of the list of results; None: the answer is the list
    score: str | None  # the key of a result's score beside "index"; None: rows of label probabilities, in order
    query: str = "query"
    texts: str = "documents"
    probabilities: Mapping[str, Any] = field(default_factory=_fields)  # sent to be given probabilities
    logits: Mapping[str, Any] | None = None  # sent to be given logits; None: it has none to give
    counted: bool = False  # top_n must be said, or not all results may come
    served: str | None = None  # the path that tells what is served

    @property
    def by_labels(self) -> bool:
        """Whether it reads the probabilities of two tokens, yes and no, after query + text as one prompt."""
        return self.score is None

    def own_keys(self) -> frozenset[str]:
        """What no extra field may replace."""
        keys = {"model", "top_n", "label_token_ids", self.query, self.texts, *self.probabilities, *(self.logits or ())}
        return frozenset(keys - {"truncate", "truncate_prompt_tokens"})

    def body(
        self,
        query: str,
        texts: Sequence[str],
        *,
        model: str = "",
        labels: tuple[int, int] | None = None,
        want_logits: bool = False,
        extra: Mapping[str, Any] = _fields(),
    ) -> dict[str, Any]:
        """The request's JSON object."""
        asked = self.logits if want_logits and self.logits is not None else self.probabilities
        body: dict[str, Any] = {**asked, **extra, self.query: query, self.texts: list(texts)}
        if model:
            body["model"] = model
        if self.counted:
            body["top_n"] = len(texts)
        if self.by_labels and labels is not None:
            body["label_token_ids"] = list(labels)
        return body

    def scores(self, answer: object, n: int) -> NDArray[np.float64]:
        """The answer's numbers in the order of the texts asked, float64 [n], finite. Raises BadAnswer."""
        rows = answer if self.rows is None else _get(answer, self.rows)
        if not isinstance(rows, list):
            where = "the answer" if self.rows is None else f"{self.rows!r}"
            raise BadAnswer(f"{where} is no list of results: {shown(answer)}; is this server of the form configured?")
        if len(rows) != n:
            raise BadAnswer(f"{len(rows)} results for {n} texts: expected one each")
        if self.score is None:
            return np.array([_of_labels(row) for row in rows], dtype=np.float64)
        out = np.full(n, np.nan)
        for row in rows:
            index = _get(row, "index")
            if type(index) is not int or not 0 <= index < n:
                raise BadAnswer(f"a result's index is {shown(index)}: expected an integer from 0 to {n - 1}")
            if not math.isnan(out[index]):
                raise BadAnswer(f"two results have index {index}: expected one for each of {n} texts")
            out[index] = _number(_get(row, self.score), f"{self.score!r} of index {index}")
        return out


def _vllm(path: str, rows: str, score: str, query: str) -> Form:
    """Truncation is the server's, in its own tokens: what is longer than its model it refuses otherwise."""
    return Form(
        path,
        rows=rows,
        score=score,
        query=query,
        probabilities=_fields(truncate_prompt_tokens=-1, use_activation=True),
        logits=_fields(truncate_prompt_tokens=-1, use_activation=False),
        served="/v1/models",
    )


FORMS: Mapping[str, Form] = MappingProxyType(
    {
        "sglang-score": Form(
            "/v1/score",
            rows="scores",
            score=None,
            texts="items",
            probabilities=_fields(apply_softmax=True, item_first=False),
            served="/v1/models",
        ),
        "sglang-rerank": Form(
            "/v1/rerank",
            rows=None,
            score="score",
            probabilities=_fields(return_documents=False),
            logits=_fields(return_documents=False),
            served="/v1/models",
        ),
        "vllm-score": _vllm("/score", "data", "score", "queries"),
        "vllm-rerank": _vllm("/rerank", "results", "relevance_score", "query"),
        "tei": Form(
            "/rerank",
            rows=None,
            score="score",
            texts="texts",
            probabilities=_fields(truncate=True, raw_scores=False, return_text=False),
            logits=_fields(truncate=True, raw_scores=True, return_text=False),
            served="/info",
        ),
        "infinity": Form(
            "/rerank",
            rows="results",
            score="relevance_score",
            probabilities=_fields(return_documents=False, raw_scores=False),
            logits=_fields(return_documents=False, raw_scores=True),
            served="/models",
        ),
        "rerank": Form("/rerank", rows="results", score="relevance_score", logits=_fields(), counted=True),
    }
)


def probabilities(scores: NDArray[np.float64], *, logits: bool) -> NDArray[np.float64]:
    """p from what a server gave: through a sigmoid where it was asked for logits, as it is otherwise; [n] each.

    Raises NotAProbability.
    """
    if logits:
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * scores)))
    wrong = (scores < -SLACK) | (scores > 1.0 + SLACK)
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise NotAProbability(
            f"{int(wrong.sum())} of {len(scores)} scores are not in [0, 1] (text {first}: {scores[first]}): if this "
            "server gives logits, say so (scores = 'logits')"
        )
    return np.clip(scores, 0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Served:
    """What a server says that it serves."""

    models: tuple[str, ...] = ()
    max_batch: int | None = None  # texts in a request


def served(answer: object) -> Served:
    """From a list of models (SGLang, vLLM, infinity) or from text-embeddings-inference's /info; what is not there is
    left out."""
    if not isinstance(answer, dict):
        return Served()
    if isinstance(answer.get("data"), list):
        rows = [row for row in answer["data"] if isinstance(row, dict)]
        return Served(tuple(sorted(f"{row.get('id')} {row.get('root')}" for row in rows)))
    limit = answer.get("max_client_batch_size")
    named = [str(answer[key]) for key in ("model_id", "model_sha", "model_dtype", "version") if answer.get(key)]
    return Served(tuple(named), limit if type(limit) is int and limit > 0 else None)


def shown(value: object) -> str:
    """A value of somebody else's in an error, short."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _get(of: object, key: str) -> object:
    if not isinstance(of, dict) or key not in of:
        raise BadAnswer(f"there is no {key!r} in {shown(of)}; is this server of the form configured?")
    return of[key]


def _number(value: object, what: str) -> float:
    if type(value) is not float and type(value) is not int:
        raise BadAnswer(f"{what} is {shown(value)}: expected a number")
    if not abs(value) <= 1e300:  # not NaN, not infinite, and an integer of any length fits a float
        raise NotAProbability(f"{what} is {shown(value)}: expected a finite number")
    return float(value)


def _of_labels(row: object) -> float:
    """The first label's probability among both."""
    if not isinstance(row, list) or len(row) != 2:
        raise BadAnswer(f"a row of label probabilities is {shown(row)}: expected two, of yes and of no")
    yes, no = (_number(value, "a label's probability") for value in row)
    if abs(yes + no - 1.0) > 1e-2:  # bfloat16 carries three digits
        raise NotAProbability(f"the probabilities of yes and no are {yes} and {no}: expected a sum of 1 (softmax)")
    return yes
