"""Wires each role from settings. Imports stay inside the functions: no process carries another role's weight."""

from __future__ import annotations

import os
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
        encoder=make_encoder(settings, settings.models.device),
        understander=RuleUnderstander(),
        summarizer=ExtractiveSummarizer(settings.models.summary_tokens),
    )


def serve_enrich(settings: Settings, stop: threading.Event) -> None:
    """The slow lane's workers. Blocks until `stop`. Raises EncoderWeightsError, PortInUse, BadForward."""
    os.environ["OPENBLAS_NUM_THREADS"] = str(settings.enrich.threads)  # read when numpy is imported, below
    from penstock.ranker.summarizer.extractive import ExtractiveSummarizer
    from penstock.retrieval.enrichment import server

    server.serve(
        settings,
        stop,
        make_encoder=lambda: make_encoder(settings, settings.enrich.device, small=True),
        summarizer=ExtractiveSummarizer(settings.models.summary_tokens),
    )


def make_encoder(settings: Settings, device: str, *, small: bool = False) -> Encoder:
    """The encoder that `models.encoder` names, on `device`; `small`: without torch, where that can be.

    Raises EncoderWeightsError naming the file or directory at fault.
    """
    if settings.models.encoder == EMBEDDED:
        from penstock.retrieval.encoder.embedded import EmbeddedEncoder
        from penstock.retrieval.encoder.minilm import MiniLM

        return EmbeddedEncoder(minilm=MiniLM(device=device, small=small and device == "cpu"))
    from penstock.retrieval.encoder.transformer import TransformerEncoder

    return TransformerEncoder(settings.models.encoder, device=device)


def serve_retrieval(settings: Settings, stop: threading.Event) -> None:
    """One retrieval shard. Blocks until `stop`. Raises PortInUse."""
    from penstock.retrieval import server

    server.serve(settings, stop)


def serve_ranker(settings: Settings, stop: threading.Event) -> None:
    """One ranker. Blocks until `stop`. Raises PortInUse."""
    from penstock.ranker import server

    server.serve(settings, stop)


def serve_gateway(settings: Settings, stop: threading.Event) -> None:
    """HTTP for people and programs. Blocks until `stop`. Raises PortInUse."""
    from penstock.infra.gateway import server

    server.serve(settings, stop)
