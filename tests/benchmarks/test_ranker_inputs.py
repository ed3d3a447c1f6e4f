"""What the ranker's benchmark times: the same work for every contender, on prompts as the ranker writes them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.ranker import score, whole
from benchmarks.ranking.models import ModelShape, item_texts, make_directory, queries, real
from benchmarks.ranking.peers import Transformers, oracle
from benchmarks.streaming.source import load
from penstock.ranker.backends.prompt import TEMPLATE
from penstock.ranker.engine import tokens
from penstock.ranker.engine.forward import TorchBackend
from penstock.ranker.engine.weights import Weights

TINY = ModelShape(2_000, 32, 64, 2, 4, 2, 8)


@pytest.fixture(scope="module")
def texts():
    return item_texts(load(Path("nowhere")), 40)


@pytest.fixture(scope="module")
def directory(tmp_path_factory, texts):
    return make_directory(tmp_path_factory.mktemp("tiny"), TINY, texts)


@pytest.fixture(scope="module")
def request_(directory, texts):
    return real(directory, "nurse in Ohio", texts[:9])


def test_prompts_are_the_template_around_query_and_posting(directory, request_, texts):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.decode(request_.prefix) == TEMPLATE.before + "nurse in Ohio" + TEMPLATE.between
    assert tokenizer.decode(request_.items[3].tokens) == texts[3] + TEMPLATE.after
    assert len({len(item) for item in request_.items}) > 1


def test_contenders_agree(directory, request_):
    answers = tokens.answers(directory)
    peer = Transformers(directory, answers)
    backend = TorchBackend(Weights.load(directory, torch.float32, answers), 1)
    right = oracle(directory, answers, torch.float32)(request_)
    assert np.ptp(right) > 1e-3
    for found in (
        peer.logits([request_], 4, ordered=True),
        peer.logits([request_], 4, ordered=False),
        score(backend, [request_]),
        score(backend, [whole(request_)]),
        score(backend, [request_], 100),
    ):
        np.testing.assert_allclose(found, right, rtol=0, atol=1e-5)


def test_without_the_data_folder_there_are_no_judgement_queries(tmp_path):
    assert queries(tmp_path) == []
