"""Models loaded once for all encoder tests."""

from __future__ import annotations

import pytest
import torch

from penstock.retrieval.encoder.embedded import EmbeddedEncoder
from penstock.retrieval.encoder.minilm import MiniLM, tokenizer_file
from penstock.retrieval.encoder.wordpieces import WordPieces
from penstock.schemas.events import PostingText

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def minilm() -> MiniLM:
    return MiniLM()


@pytest.fixture(scope="session")
def embedded(minilm: MiniLM) -> EmbeddedEncoder:
    return EmbeddedEncoder(minilm=minilm)


@pytest.fixture(scope="session")
def pieces() -> WordPieces:
    return WordPieces(tokenizer_file())


@pytest.fixture(scope="session")
def postings() -> list[PostingText]:
    return [
        PostingText(
            title="Registered Nurse (Intensive Care)",
            company="Veterans Health Administration",
            location="Phoenix, Arizona",
            grade="VN-2",
            category="Nurse",
            description="Provides bedside care to critically ill patients, gives medication, monitors ventilators.",
        ),
        PostingText(
            title="Aircraft Mechanic",
            company="Air National Guard",
            location="Reno, Nevada",
            grade="WG-10",
            description="Repairs hydraulic systems and engines of transport aircraft on the flight line.",
        ),
        PostingText(
            title="Software Engineer",
            skills=("C++", "Kubernetes"),
            description="Builds services in C++ and Python, reviews code, and runs them on Kubernetes.",
        ),
    ]
