"""How a remote scorer is reached and read: plain values, checked when made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import SecretStr

from penstock.ranker.backends.prompt import TEMPLATE, Template
from penstock.ranker.backends.remote.forms import FORMS, Form
from penstock.ranker.backends.remote.guards import BreakerLimits
from penstock.ranker.errors import UnfitScorer


@dataclass(frozen=True, slots=True)
class RemoteOptions:
    """Raises UnfitScorer when made of values that do not go together."""

    url: str  # what stands before the form's path: http://10.0.0.5:8000, https://api.jina.ai/v1
    form: str  # a key of forms.FORMS
    model: str = ""  # sent as "model" where it is given
    scores: Literal["probabilities", "logits"] = "probabilities"  # what the server is asked for, or known to give
    labels: tuple[int, int] | None = None  # token ids of yes and no; for sglang-score (Qwen3: 9693 and 2152)
    template: Template | None = None  # wording around query and posting; a server with a template of its own needs none
    extra: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))  # sent along: {"instruct": "..."}
    api_key: SecretStr | None = None  # sent as a bearer token
    max_batch: int = 32  # postings in a request
    connections: int = 8  # requests at once
    timeout_s: float = 2.0  # for all requests of one call; a nearer deadline shortens it
    connect_s: float = 0.5  # of that, for a connection
    fair_s: float = 0.25  # a call that had less than this and ran out of time says nothing of the backend
    start_s: float = 30.0  # how long a backend that is away is waited for at the start
    max_query_chars: int = 1_024
    max_item_chars: int = 4_096
    retry_share: float = 0.1  # retries, as a share of requests
    breaker: BreakerLimits = field(default_factory=BreakerLimits)

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise UnfitScorer(f"remote scorer: form is {self.form!r}: expected one of {', '.join(FORMS)}")
        if not _is_base(self.url):
            raise UnfitScorer(f"remote scorer: url is {self.url!r}: expected such as http://127.0.0.1:8000")
        if self.scores not in ("probabilities", "logits"):
            raise UnfitScorer(f"remote scorer: scores is {self.scores!r}: expected 'probabilities' or 'logits'")
        if self.scores == "logits" and self.shape.logits is None:
            raise UnfitScorer(
                f"remote scorer: {self.form} gives probabilities alone: expected scores = 'probabilities'"
            )
        if self.shape.by_labels and self.labels is None:
            raise UnfitScorer(
                f"remote scorer: {self.form} needs the token ids of yes and no (labels); its server's /tokenize or the "
                "model's tokenizer.json has them"
            )
        if taken := sorted(self.extra.keys() & self.shape.own_keys()):
            raise UnfitScorer(f"remote scorer: extra holds {', '.join(taken)}, which {self.form} fills in itself")
        positive = ("max_batch", "connections", "timeout_s", "connect_s", "max_query_chars", "max_item_chars")
        for name in positive:
            if not getattr(self, name) > 0:
                raise UnfitScorer(f"remote scorer: {name} is {getattr(self, name)}: expected more than 0")
        if not 0.0 <= self.retry_share <= 1.0:
            raise UnfitScorer(f"remote scorer: retry_share is {self.retry_share}: expected 0 to 1")

    @property
    def shape(self) -> Form:
        return FORMS[self.form]

    @property
    def wording(self) -> Template | None:
        """What stands around query and posting; where labels are read, there must be a prompt: ours by default."""
        return TEMPLATE if self.template is None and self.shape.by_labels else self.template


def _is_base(url: str) -> bool:
    """Whether a path can stand behind it."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # ValueError when out of range
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query and not parts.fragment
