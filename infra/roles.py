"""Wires each role from settings. Imports stay inside the functions: no process carries another role's weight."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from penstock.infra.settings import Settings

if TYPE_CHECKING:
    from penstock.retrieval.encoder.interface import Encoder

EMBEDDED = "embedded"


def serve_models(settings: Settings, stop: threading.Event) -> None:
    """The models role. Blocks until `stop`. Raises EncoderWeightsError, PortInUse, BadForward."""
    from penstock.ranker.summarizer.extractive import ExtractiveSummarizer
    from penstock.retrieval.encoder import server
    from penstock.retrieval.understanding.rules import RuleUnderstander

    server.serve(
        settings,
        stop,
        encoder=make_encoder(settings),
        understander=RuleUnderstander(),
        summarizer=ExtractiveSummarizer(settings.models.summary_tokens),
    )


def make_encoder(settings: Settings) -> Encoder:
    """The encoder that `models.encoder` names. Raises EncoderWeightsError naming the file or directory at fault."""
    if settings.models.encoder == EMBEDDED:
        from penstock.retrieval.encoder.embedded import EmbeddedEncoder

        return EmbeddedEncoder(device=settings.models.device)
    from penstock.retrieval.encoder.transformer import TransformerEncoder

    return TransformerEncoder(settings.models.encoder, device=settings.models.device)


def serve_retrieval(settings: Settings, stop: threading.Event) -> None:
    """One retrieval shard. Blocks until `stop`. Raises PortInUse."""
    from penstock.retrieval import server

    server.serve(settings, stop)


def serve_ranker(settings: Settings, stop: threading.Event) -> None:
    """One ranker. Blocks until `stop`. Raises PortInUse."""
    from penstock.ranker import server

    server.serve(settings, stop)
