"""Directories that load, and every kind that does not."""

import json
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from random_qwen3 import NO, YES, random_qwen3

from penstock.ranker.engine.weights import Weights
from penstock.ranker.errors import UnfitScorer


@pytest.fixture
def directory(tmp_path):
    return random_qwen3(tmp_path)


def change(directory, **tensors):
    """Replaces tensors by what a function makes of them; None drops one. Underscores of a name stand for dots."""
    path = directory / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    for name, make in tensors.items():
        (found,) = [each for each in weights if each.replace(".", "_") == name]
        if make is None:
            del weights[found]
        else:
            weights[found] = make(weights[found]).contiguous()
    safetensors.torch.save_file(weights, path, {"format": "pt"})


def configure(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_fused_matrices_hold_the_parts_in_order(directory):
    saved = safetensors.torch.load_file(directory / "model.safetensors")
    weights = Weights.load(directory)
    for at, layer in enumerate(weights.layers):
        name = f"model.layers.{at}"
        q, k, v = (saved[f"{name}.self_attn.{each}_proj.weight"] for each in "qkv")
        assert torch.equal(layer.qkv, torch.cat([q, k, v]))
        gate, up = (saved[f"{name}.mlp.{each}_proj.weight"] for each in ("gate", "up"))
        assert torch.equal(layer.gate_up, torch.cat([gate, up]))
        assert torch.equal(layer.qk_norm[3], saved[f"{name}.self_attn.q_norm.weight"])
        assert torch.equal(layer.qk_norm[4], saved[f"{name}.self_attn.k_norm.weight"])
    assert torch.equal(weights.answer, saved["lm_head.weight"][YES] - saved["lm_head.weight"][NO])


def test_a_head_tied_to_the_embedding(tmp_path):
    directory = random_qwen3(tmp_path, tie_word_embeddings=True)
    saved = safetensors.torch.load_file(directory / "model.safetensors")
    embedding = saved["model.embed_tokens.weight"]
    assert torch.equal(Weights.load(directory).answer, embedding[YES] - embedding[NO])


def test_a_directory_in_parts(directory):
    whole = Weights.load(directory)
    path = directory / "model.safetensors"
    saved = safetensors.torch.load_file(path)
    index = {name: f"model-{at % 2}.safetensors" for at, name in enumerate(saved)}
    for part in set(index.values()):
        safetensors.torch.save_file({name: saved[name] for name in saved if index[name] == part}, directory / part)
    path.unlink()
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    parts = Weights.load(directory)
    assert torch.equal(parts.layers[1].down, whole.layers[1].down)
    assert torch.equal(parts.answer, whole.answer)
    (directory / "model-1.safetensors").unlink()
    with pytest.raises(UnfitScorer, match="cannot be read"):
        Weights.load(directory)


def test_the_dtype_asked_for(directory):
    weights = Weights.load(directory, torch.bfloat16)
    assert weights.embedding.dtype == weights.layers[0].qkv.dtype == torch.bfloat16
    assert weights.answer.dtype == torch.float32


def test_answers_given_need_no_tokenizer(directory):
    usual = Weights.load(directory).answer
    for path in directory.glob("tokenizer*"):
        path.unlink()
    assert torch.equal(Weights.load(directory, answers=(YES, NO)).answer, usual)
    with pytest.raises(UnfitScorer, match="tokenizer"):
        Weights.load(directory)


def test_no_such_directory(tmp_path):
    with pytest.raises(UnfitScorer, match=r"has no config\.json"):
        Weights.load(tmp_path / "missing")


def test_config_that_is_no_json(directory):
    (directory / "config.json").write_text("{")
    with pytest.raises(UnfitScorer, match=r"config\.json cannot be read"):
        Weights.load(directory)


def test_another_architecture(directory):
    configure(directory, model_type="llama", architectures=["LlamaForCausalLM"])
    with pytest.raises(UnfitScorer, match="architecture 'llama'; the engine runs 'qwen3'"):
        Weights.load(directory)


def test_a_sliding_window(directory):
    configure(directory, layer_types=["full_attention", "sliding_attention"], use_sliding_window=True, sliding_window=8)
    with pytest.raises(UnfitScorer, match="sliding window"):
        Weights.load(directory)


def test_another_activation(directory):
    configure(directory, hidden_act="gelu")
    with pytest.raises(UnfitScorer, match="'gelu'"):
        Weights.load(directory)


@pytest.mark.parametrize(
    "sizes",
    [
        {"num_key_value_heads": 0},
        {"num_key_value_heads": 3},
        {"num_attention_heads": 0, "head_dim": None},
        {"num_hidden_layers": 0, "layer_types": []},
        {"head_dim": 7},
        {"rms_norm_eps": float("nan")},
        {"max_position_embeddings": -1},
    ],
    ids=str,
)
def test_sizes_that_no_model_has(directory, sizes):
    configure(directory, **sizes)
    with pytest.raises(UnfitScorer, match=r"expected positive sizes|config\.json cannot be read"):
        Weights.load(directory)


@pytest.mark.parametrize(
    ("positions", "said"),
    [
        ({"rope_type": "nonsense"}, "'nonsense' cannot be computed"),
        ({"rope_type": "default", "rope_theta": "x"}, r"cannot be computed|config\.json cannot be read"),
        ({"rope_type": "default", "rope_theta": -5}, "not finite"),
        ({"rope_type": "default", "rope_theta": 0}, "not finite"),
    ],
    ids=str,
)
def test_positions_that_cannot_be_computed(directory, positions, said):
    configure(directory, rope_parameters=positions)
    with pytest.raises(UnfitScorer, match=said):
        Weights.load(directory)


def test_positions_that_depend_on_the_batch(directory):
    configure(directory, rope_parameters={"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0})
    with pytest.raises(UnfitScorer, match="longest prompt"):
        Weights.load(directory)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 1_000_000.0},
        {"rope_type": "default", "rope_theta": 12_345.6},
        {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
        {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 256},
    ],
    ids=str,
)
def test_positions_are_transformers_own_to_the_last_bit(tmp_path, rope):
    from transformers import AutoConfig
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

    directory = random_qwen3(tmp_path, rope_parameters=rope)
    own = Qwen3RotaryEmbedding(AutoConfig.from_pretrained(directory))
    weights = Weights.load(directory)
    assert torch.equal(weights.inv_freq, own.inv_freq)
    assert weights.rope_scale == own.attention_scaling


def test_a_ranker_starts_without_transformers_modelling(directory):
    script = (
        "import sys; from pathlib import Path; from penstock.ranker.engine.weights import Weights\n"
        "Weights.load(Path(sys.argv[1])); print('transformers.modeling_utils' in sys.modules)"
    )
    command = [sys.executable, "-c", script, str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", ["model_layers_1_self_attn_k_proj_weight", "lm_head_weight", "model_norm_weight"])
def test_missing_tensors(directory, name):
    change(directory, **{name: None})
    with pytest.raises(UnfitScorer, match="is not in its safetensors; it would be random"):
        Weights.load(directory)


@pytest.mark.parametrize("name", ["model_layers_0_mlp_down_proj_weight", "model_embed_tokens_weight"])
def test_tensors_of_another_shape(directory, name):
    change(directory, **{name: lambda weight: weight[:-1]})
    with pytest.raises(UnfitScorer, match=r"has shape \[\d+, \d+\], its config\.json says"):
        Weights.load(directory)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["lm_head_weight", "model_layers_1_input_layernorm_weight"])
def test_values_that_are_not_finite(directory, name, value):
    def damage(weight):
        weight[YES] = value
        return weight

    change(directory, **{name: damage})
    with pytest.raises(UnfitScorer, match="not finite"):
        Weights.load(directory)


def test_quantised_tensors(directory):
    change(directory, model_layers_0_mlp_down_proj_weight=lambda weight: weight.to(torch.int8))
    with pytest.raises(UnfitScorer, match=r"torch\.int8; quantised"):
        Weights.load(directory)


def test_damaged_safetensors(directory):
    (directory / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UnfitScorer, match="cannot be read"):
        Weights.load(directory)


def test_no_weights_at_all(directory):
    (directory / "model.safetensors").unlink()
    with pytest.raises(UnfitScorer, match="cannot be read"):
        Weights.load(directory)


def test_a_tokenizer_without_yes(tmp_path):
    with pytest.raises(UnfitScorer, match="no single token for 'yes'"):
        Weights.load(random_qwen3(tmp_path, words=["maybe", "no"]))


def test_answers_beyond_the_vocabulary(directory):
    with pytest.raises(UnfitScorer, match="do not belong together"):
        Weights.load(directory, answers=(1, 64))
