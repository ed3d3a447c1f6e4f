"""The scorers that settings name. Each brings what it needs only when it is named: torch, transformers, httpx2."""

from __future__ import annotations

import structlog

from penstock.infra.settings import RankerSettings, RemoteScorerSettings
from penstock.ranker.backends.fused import FusedScorer
from penstock.ranker.backends.prompt import Template
from penstock.ranker.backends.remote.options import RemoteOptions
from penstock.ranker.backends.scorer import LanguageModel
from penstock.ranker.engine.untrained import is_untrained
from penstock.ranker.scoring import Scorers
from penstock.ranker.shaping.limits import depths_from

log = structlog.get_logger(role="ranker")


def load_scorers(settings: RankerSettings) -> Scorers:
    """Warm and ready to score. Raises UnfitScorer."""
    fused = FusedScorer.shipped()
    ceiling = depths_from(settings.shaping, on_a_gpu=on_a_gpu(settings)).ceiling
    return Scorers(fused, _language_model(settings), ceiling)


def on_a_gpu(settings: RankerSettings) -> bool:
    """Whether the language model runs on one here."""
    return settings.scorer in ("engine", "transformers") and settings.device.startswith("cuda")


def described(settings: RankerSettings) -> dict[str, str]:
    """What the scorer is, for the role's status: `scorer`, `model` where there is one, `untrained` where it is."""
    if settings.scorer == "remote":
        return {"scorer": "remote", "model": settings.remote.url}
    if settings.scorer == "fused" or settings.model is None:
        return {"scorer": "fused"}
    told = {"scorer": settings.scorer, "model": str(settings.model.resolve())}
    return {**told, "untrained": "yes"} if is_untrained(settings.model) else told


def remote_options(settings: RemoteScorerSettings) -> RemoteOptions:
    """Raises UnfitScorer when they do not go together."""
    given = {name: getattr(settings, name) for name in type(settings).model_fields if name != "template"}
    template = settings.template
    wording = None if template is None else Template(template.before, template.between, template.after)
    return RemoteOptions(**given, template=wording)


def _language_model(settings: RankerSettings) -> LanguageModel | None:
    if settings.scorer == "remote":
        return _remote(settings.remote)
    if settings.scorer == "fused" or settings.model is None:  # the settings see to a directory where one is needed
        return None
    if is_untrained(settings.model):
        log.warning("the model is untrained: its scores mean nothing", model=str(settings.model))
    if settings.scorer == "transformers":
        from penstock.ranker.backends.yes_no import YesNoScorer

        return YesNoScorer(settings.model, threads=settings.threads, device=settings.device)
    from penstock.ranker.engine.engine import Limits
    from penstock.ranker.engine.scorer import EngineScorer

    return EngineScorer.load(
        settings.model,
        device=settings.device,
        dtype=settings.dtype,
        threads=settings.threads,
        limits=Limits(settings.forward_tokens, settings.interactive_tokens, settings.waiting_tokens),
        arena_bytes=settings.arena_bytes,
    )


def _remote(settings: RemoteScorerSettings) -> LanguageModel:
    from penstock.ranker.backends.remote.scorer import RemoteScorer

    return RemoteScorer(remote_options(settings))
