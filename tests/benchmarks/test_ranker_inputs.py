"""What the ranker's benchmark times: the same work for every contender, on prompts as the ranker writes them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.ranker import BUDGET, whole
from benchmarks.ranking.launching import score
from benchmarks.ranking.models import item_texts, queries, real
from benchmarks.ranking.peers import Transformers, oracle
from benchmarks.streaming.source import load
from penstock.ranker.backends.prompt import TEMPLATE
from penstock.ranker.engine.forward import TorchBackend
from penstock.ranker.engine.tokens import Tokenizer
from penstock.ranker.engine.untrained import ModelShape, write
from penstock.ranker.engine.weights import Weights

TINY = ModelShape(2_000, 32, 64, 2, 4, 2, 8)


@pytest.fixture(scope="module")
def texts():
    return item_texts(load(Path("nowhere")), 40)


@pytest.fixture(scope="module")
def directory(tmp_path_factory, texts):
    return write(tmp_path_factory.mktemp("tiny"), texts, TINY)


@pytest.fixture(scope="module")
def tokenizer(directory):
    made = Tokenizer(directory)
    yield made
    made.close()


@pytest.fixture(scope="module")
def request_(tokenizer, texts):
    return real(tokenizer, "nurse in Ohio", texts[:9])


def test_prompts_are_the_template_around_query_and_posting(directory, request_, texts):
    from transformers import AutoTokenizer

    plain = AutoTokenizer.from_pretrained(directory)
    assert plain.decode(request_.prefix) == TEMPLATE.before + "nurse in Ohio" + TEMPLATE.between
    assert plain.decode(request_.items[3].tokens) == texts[3] + TEMPLATE.after
    assert len({len(item) for item in request_.items}) > 1


def test_contenders_agree(directory, tokenizer, request_):
    answers = tokenizer.yes, tokenizer.no
    peer = Transformers.load(directory, answers)
    backend = TorchBackend(Weights.load(directory, torch.float32, answers), 1)
    right = oracle(directory, answers, torch.float32)(request_)
    assert np.ptp(right) > 1e-3
    for found in (
        peer.logits([request_], 4, ordered=True),
        peer.logits([request_], 4, ordered=False),
        score(backend, [request_], BUDGET),
        score(backend, [whole(request_)], BUDGET),
        score(backend, [request_], 100),
    ):
        np.testing.assert_allclose(found, right, rtol=0, atol=1e-5)


def test_without_the_data_folder_there_are_no_judgement_queries(tmp_path):
    assert queries(tmp_path) == []
