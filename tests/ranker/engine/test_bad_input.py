"""What a scorer of the engine does with texts that nobody meant and directories that nobody made for it.

Where each fault of a kind is tested, through EngineScorer where nothing else is said:

    empty text, an item without text        here, test_scorer.py
    100,000 characters, of any kind         here, test_scorer.py
    unknown tokens, lone surrogates         here, test_scorer.py; of byte tokenizers: test_tokens.py
    special tokens spelt in a posting       test_scorer.py, test_tokens.py
    5,000 items in a request                test_scorer.py
    another architecture                    test_scorer.py; sliding windows, activations, sizes: here, test_weights.py
    no yes, no no                           here, test_tokens.py
    a tokenizer of another model            test_scorer.py (larger), here (config.json without its size)
    weights that are NaN, missing, cut      test_scorer.py, test_weights.py; finite, but their forward is not: here
    scores that are not finite              test_engine_faults.py
    backends that die, hang, lie            test_engine_faults.py
    late, left, too much                    test_engine.py
"""

import itertools
import json

import numpy as np
import pytest
import safetensors.torch
from hypothesis import example, given
from hypothesis import strategies as st
from qwen3_directory import WORDS, make_directory

from penstock.ranker.backends.scorer import ScoringItem, ScoringQuery
from penstock.ranker.engine.engine import Limits
from penstock.ranker.engine.scorer import EngineScorer
from penstock.ranker.engine.tokens import Tokenizer
from penstock.ranker.errors import UnfitScorer
from penstock.schemas.events import IndexOp, IndexUpdate

BOUND = 1e-5  # fp32
GIANT = 100_000
CUT_QUERY = "language model: query cut to 256 tokens"
CUT_POSTING = "language model: 1 postings cut to 512 tokens"

_numbers = itertools.count()


def item(text):
    name = f"p{next(_numbers)}"
    update = IndexUpdate(posting_id=name, version=1, op=IndexOp.UPSERT, item_text=text, produced_at=0)
    return ScoringItem(0.0, 0.0, update)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_directory(tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module")
def scorer(directory):
    made = EngineScorer.load(directory, limits=Limits(2_048, 1_024, 32_768), now_ms=lambda: 0)
    yield made
    made.close(20)


_words = st.lists(st.sampled_from([*WORDS, "fjord", "<|im_end|>", "<unk>"]), max_size=40).map(" ".join)
_characters = st.characters(exclude_categories=())  # lone surrogates too
_texts = st.one_of(st.text(_characters, max_size=60), _words)


@given(_texts, st.lists(st.one_of(st.none(), _texts), max_size=6))
@example("\ud800", ["\udfff", "\x00", None])
def test_any_text_is_scored_as_it_is_alone(scorer, query, texts):
    scores = scorer.score(ScoringQuery(query, None), [item(text) for text in texts])
    alone = [scorer.score(ScoringQuery(query, None), [item(text)]) for text in texts]
    assert np.abs(scores.p - np.array([one.p[0] for one in alone])).max(initial=0.0) <= BOUND
    without = sum(not (text or "").strip() for text in texts)
    assert (f"language model: {without} postings without text" in scores.notes) == bool(without)


@pytest.mark.parametrize(
    "text",
    ["a" * GIANT, "nurse " * (GIANT // 6), " " * GIANT, "\U0001f600" * GIANT, "e\u0301" * (GIANT // 2), "\x00" * GIANT],
    ids=["one word", "words", "blanks", "emoji", "combining", "zeros"],
)
def test_a_giant_text_is_cut_wherever_it_stands_and_the_result_says_so(scorer, text):
    as_query = scorer.score(ScoringQuery(text, None), [item("nurse")])
    as_item = scorer.score(ScoringQuery("nurse", None), [item("clerk"), item(text)])
    assert CUT_QUERY in as_query.notes
    assert CUT_POSTING in as_item.notes
    assert np.isfinite(as_query.parts).all() and np.isfinite(as_item.parts).all()


# --- directories ---------------------------------------------------------------------------------------------------


def configure(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {"max_position_embeddings": 512},
        {"max_position_embeddings": 0},
        {"num_key_value_heads": 0},
        {"rms_norm_eps": float("nan")},
        {"rope_parameters": {"rope_type": "nonsense"}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 0}},
        {"hidden_act": "gelu"},
        {"vocab_size": None},
        {"model_type": "llama"},
        {"model_type": "nobody's"},
        {"layer_types": ["sliding_attention"] * 2, "use_sliding_window": True, "sliding_window": 8},
        {"quantization_config": {"quant_method": "fp8"}},
    ],
    ids=str,
)
def test_a_config_that_the_engine_cannot_run(tmp_path, changes):
    directory = make_directory(tmp_path)
    configure(directory, **changes)
    with pytest.raises(UnfitScorer):
        EngineScorer.load(directory)


def test_a_prompt_may_be_as_long_as_the_positions_and_no_longer(tmp_path):
    directory = make_directory(tmp_path)
    tokens = Tokenizer(directory).longest
    configure(directory, max_position_embeddings=tokens)
    made = EngineScorer.load(directory)
    long = "nurse " * 600
    assert made.score(ScoringQuery(long, None), [item(long)]).notes == (CUT_QUERY, CUT_POSTING)
    made.close(20)
    configure(directory, max_position_embeddings=tokens - 1)
    with pytest.raises(UnfitScorer, match=f"positions end at {tokens - 1}"):
        EngineScorer.load(directory)


@pytest.mark.parametrize("word", ["yes", "no"])
def test_a_tokenizer_without_an_answer(tmp_path, word):
    with pytest.raises(UnfitScorer, match=f"no single token for '{word}'"):
        EngineScorer.load(make_directory(tmp_path, words=[one for one in WORDS if one != word]))


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.o_proj.weight", "lm_head.weight"])
def test_finite_weights_whose_forward_is_not_do_not_start(tmp_path, name):
    path = make_directory(tmp_path) / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    weights[name] = weights[name].sign() * 3e38
    safetensors.torch.save_file(weights, path, {"format": "pt"})
    with pytest.raises(UnfitScorer, match=r"not finite|damaged"):
        EngineScorer.load(tmp_path)
