"""What the ahead-of-time suite says of the ranker's kernels, as rows; the model's forms; what it predicts of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.kerneling.compiling import all_multiply_well, counted
from benchmarks.kerneling.gpu import BAD, H200, LIKELY, Getting
from benchmarks.ranker_kerneling import attention, model, shapes
from benchmarks.ranker_kerneling.products import BAD_CUBLAS, CUBLAS, Library
from penstock.kernels.aot.check import Checked
from penstock.kernels.aot.registry import configs
from penstock.kernels.aot.sass import Figures
from penstock.ranker.engine.untrained import ModelShape

ATTENTION = "prefix_attention/h"  # how the configs that attend are called
ASSUMED: dict[str, tuple[Getting, Library]] = {"likely": (LIKELY, CUBLAS), "bad": (BAD, BAD_CUBLAS)}


def rows(checked: Sequence[Checked]) -> dict[str, float]:
    """Of aot/."""
    attending = [one for one in checked if one.name.startswith(ATTENTION)]
    return {**counted(checked), "aot/attention/tensor_core": float(all_multiply_well(attending))}


def forms(checked: Sequence[Checked], shape: ModelShape) -> model.Forms:
    """The compiled kernels that a forward of this model launches."""
    by_name = {one.name: one for one in checked}

    def figures(name: str) -> Figures:
        found = by_name[name].figures
        if found is None:
            raise ValueError(f"{name} did not compile: {'; '.join(by_name[name].failures)}")
        return found

    def form(name: str) -> model.Form:
        found = figures(name)
        return model.Form(found.warps, found.ctas_per_sm, found.whole.instructions)

    heads = f"h{shape.num_attention_heads}/kv{shape.num_key_value_heads}/d{shape.head_dim}"
    width = f"d{shape.hidden_size}"
    return model.Forms(
        attention=attending(f"prefix_attention/{heads}", figures(f"prefix_attention/{heads}"), shape),
        first_norm=form(f"add_rmsnorm/first/{width}"),
        norm=form(f"add_rmsnorm/{width}"),
        turn=form(f"qk_norm_rope/{heads}"),
        swiglu=form(f"swiglu/d{shape.intermediate_size}"),
        gather=form(f"gather_embeddings/{width}"),
        head=form(f"yes_no_head/{width}"),
    )


def attending(name: str, found: Figures, shape: ModelShape) -> attention.Form:
    """The constants are the kernel's own."""
    constants = next(one for one in configs("prefix_attention") if one.name == name).constexprs
    tokens, group = int(str(constants["TOKENS"])), int(str(constants["GROUP"]))
    return attention.Form(
        warps=found.warps,
        ctas=found.ctas_per_sm,
        hot=found.hot,
        outside=found.whole.instructions - found.main.instructions,
        barriers=found.main.barriers,
        keys=int(str(constants["KEYS"])),
        tokens=tokens,
        rows=tokens * group,
        size=shape.head_dim,
        kv_heads=shape.num_key_value_heads,
    )


def predicted(checked: Sequence[Checked]) -> dict[str, float]:
    """Of model/: 0.6B, requests of 50 items of 150, as many as a forward holds, which cells.py times for text."""
    shape = shapes.QWEN_0_6B
    (forward,) = shapes.PACKED.forwards(shape)
    return {"model/forward_share": model.predicted(shape, forward, forms(checked, shape)).share}


def model_notes(checked: Sequence[Checked]) -> dict[str, Any]:
    """Every model and shape, with the likely values and with the bad ones; where the time of one forward goes."""
    out: dict[str, Any] = {"predicted": {}}
    for name, shape in shapes.MODELS.items():
        compiled = forms(checked, shape)
        for asked in shapes.ALL:
            forwards = asked.forwards(shape)
            said: dict[str, Any] = {"forwards": len(forwards), "tokens": sum(map(len, forwards))}
            for how, (got, library) in ASSUMED.items():
                found = [model.predicted(shape, one, compiled, H200, got, library) for one in forwards]
                seconds = sum(one.seconds for one in found)
                said[how] = {
                    "items_per_s": round(asked.scored / seconds),
                    "share": round(sum(one.needed for one in found) / seconds / model.PEAK, 4),
                    "ms": round(seconds * 1e3, 3),
                    "ms_by_kind": _by_kind(found),
                }
            out["predicted"][f"{name}/{asked.name}"] = said
    out["a_layer"] = _a_layer(checked)
    out["if"] = _alternatives(checked)
    return out


def _by_kind(found: Sequence[model.Prediction]) -> dict[str, float]:
    kinds: dict[str, float] = {}
    for one in found:
        for kind, seconds in one.by_kind().items():
            kinds[kind] = kinds.get(kind, 0.0) + seconds * 1e3
    return {kind: round(spent, 3) for kind, spent in kinds.items()}


def _a_layer(checked: Sequence[Checked]) -> dict[str, Any]:
    """The second layer of 0.6B/text_packed, launch by launch: microseconds, bytes, what bounds it and what might
    have."""
    shape = shapes.QWEN_0_6B
    (forward,) = shapes.PACKED.forwards(shape)
    found = model.predicted(shape, forward, forms(checked, shape))
    layer: dict[str, Any] = {}
    for one in found.launches[1 + model.A_LAYER : 1 + 2 * model.A_LAYER]:
        name = one.name if one.name not in layer else f"{one.name}, second"
        layer[name] = {
            "us": round(one.seconds * 1e6, 2),
            "mbytes": round(one.bytes / 1e6, 1),
            "tflops": round(one.flops / one.seconds / 1e12),
            "bound": one.bound,
            **{part: round(seconds * 1e6, 2) for part, seconds in one.parts.items()},
        }
    executed = attention.executed(forward, forms(checked, shape).attention)
    return {**layer, "pairs computed for each that is needed": round(executed, 3)}


def _alternatives(checked: Sequence[Checked]) -> dict[str, float]:
    """The share of 0.6B/text_packed if one thing were otherwise: what is not known, and what could be changed."""
    shape = shapes.QWEN_0_6B
    compiled, (forward,) = forms(checked, shape), shapes.PACKED.forwards(shape)
    (alone,) = shapes.TEXT.forwards(shape)

    def share(**other: Any) -> float:
        return round(model.predicted(shape, **{"forward": forward, "forms": compiled, **other}).share, 4)

    return {
        "as it is": share(),
        "one request a forward": share(forward=alone),
        "the clock is not held down (1.98 GHz)": share(gpu=replace(H200, clock=1.98e9)),
        "1.3 us between launches": share(got=replace(LIKELY, launch=1.3e-6)),
        "all bad": share(got=BAD, library=BAD_CUBLAS),
        **{step: share(steps=frozenset({step})) for step in (*model.STEPS, model.GATED_BY_TRITON)},
        "all of these steps": share(steps=frozenset(model.STEPS)),
        "all of these steps, one request a forward": share(steps=frozenset(model.STEPS), forward=alone),
    }
