"""One model with random weights for everybody: transformers' own on the device, and ours of the same numbers.

No file is read or written, so neither safetensors nor tokenizers is needed.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from penstock.ranker.engine.untrained import DEVIATION, ModelShape
from penstock.ranker.engine.weights import Layer, Shape, Weights

ANSWERS = (1, 2)  # tokens that stand for yes and no
IMPLEMENTATIONS = ("sdpa", "flash_attention_2")  # of attention, by transformers' names


def causal(shape: ModelShape, device: torch.device, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Any:
    """transformers' Qwen3ForCausalLM, initialised as it does, on the device."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    config = Qwen3Config(**asdict(shape), initializer_range=DEVIATION, pad_token_id=0, eos_token_id=0)
    torch.manual_seed(seed)
    make: Any = AutoModelForCausalLM.from_config
    with device:
        return make(config, dtype=dtype).eval()


def weights_of(model: Any, answers: tuple[int, int] = ANSWERS) -> Weights:
    """The same numbers as the engine has them; what need not be fused is shared with `model`."""
    config, state = model.config, model.state_dict()
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads

    def layer(number: int) -> Layer:
        def get(name: str) -> torch.Tensor:
            found: torch.Tensor = state[f"model.layers.{number}.{name}.weight"]
            return found

        norms = ((heads, "q"), (kv_heads, "k"))
        return Layer(
            norm_in=get("input_layernorm"),
            qkv=torch.cat([get(f"self_attn.{each}_proj") for each in "qkv"]),
            qkv_bias=None,
            qk_norm=torch.cat([get(f"self_attn.{each}_norm").expand(count, -1) for count, each in norms]),
            out=get("self_attn.o_proj"),
            out_bias=None,
            norm_mlp=get("post_attention_layernorm"),
            gate_up=torch.cat([get(f"mlp.{each}_proj") for each in ("gate", "up")]),
            down=get("mlp.down_proj"),
        )

    embedding, (yes, no) = state["model.embed_tokens.weight"], answers
    head = embedding if config.tie_word_embeddings else state["lm_head.weight"]
    rotary = model.model.rotary_emb
    return Weights(
        shape=Shape(
            hidden=config.hidden_size,
            layers=config.num_hidden_layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=config.head_dim,
            intermediate=config.intermediate_size,
            vocabulary=config.vocab_size,
            max_positions=config.max_position_embeddings,
            epsilon=config.rms_norm_eps,
        ),
        embedding=embedding,
        layers=tuple(layer(number) for number in range(config.num_hidden_layers)),
        norm=state["model.norm.weight"],
        answer=head[yes].float() - head[no].float(),
        inv_freq=rotary.inv_freq.float(),
        rope_scale=float(rotary.attention_scaling),
    )


def with_attention(model: Any, implementation: str) -> bool:
    """Whether transformers can attend that way here; then `model` does."""
    try:
        model.set_attn_implementation(implementation)
    except (ImportError, ValueError):
        return False
    return True
