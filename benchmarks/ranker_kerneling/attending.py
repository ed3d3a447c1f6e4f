"""One layer's attention over a packed forward: our tiles, two calls of variable length with a merge, flex attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.kerneling.timing import BUFFERS
from penstock.kernels.prefix_attention.triton import prefix_attention
from penstock.kernels.prefix_attention.two_calls import Spans, two_calls
from penstock.ranker.engine.plan import Forward

if TYPE_CHECKING:
    from benchmarks.ranker_kerneling.cells import Session

CLOSE = 3e-2  # two bfloat16 results over normal values


def attention(session: Session) -> dict[str, float]:
    """0.6B/text, one request a forward. Block masks and bounds are made, and kernels compiled, before the timing."""
    shape, device = session.shapes["0.6B"], session.device
    (forward,) = session.asked[0].forwards(shape, budget=session.budget)
    heads, kv_heads, size = shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim
    chance = torch.Generator(device).manual_seed(0)
    wide, narrow = heads * size, (heads + 2 * kv_heads) * size
    qkv = [torch.randn(len(forward), narrow, generator=chance, device=device).bfloat16() for _ in range(BUFFERS)]
    starts, tiles = (torch.from_numpy(each).to(device) for each in (forward.starts, forward.tiles))
    spans = Spans.of(forward.prefixes, forward.items, device)
    mine, theirs = (torch.empty(len(forward), wide, dtype=torch.bfloat16, device=device) for _ in range(2))
    flexed = flex(forward, heads, kv_heads, size, device)
    sizes = {"heads": heads, "kv_heads": kv_heads, "size": size}
    contenders: dict[str, Callable[[int], Any]] = {
        "ours": lambda buffer: prefix_attention(qkv[buffer], starts, tiles, mine, **sizes),
        "two calls": lambda buffer: two_calls(qkv[buffer], spans, theirs, **sizes),
        "flex": lambda buffer: flexed(qkv[buffer]),
    }
    right = contenders["ours"](0)
    for name in ("two calls", "flex"):
        worst = float((contenders[name](0).float() - right.float()).abs().max())
        if not worst <= CLOSE:
            raise RuntimeError(f"{name}: an attended value is {worst:g} from ours: expected {CLOSE:g} at most")
    spent = session.timed("attention", contenders, tokens=len(forward), tiles=len(forward.tiles))
    return {
        "attention/ratio_varlen": spent["two calls"].median / spent["ours"].median,
        "attention/ratio_flex": spent["flex"].median / spent["ours"].median,
    }


def flex(
    forward: Forward, heads: int, kv_heads: int, size: int, device: torch.device
) -> Callable[[torch.Tensor], torch.Tensor]:
    """torch's flex attention of qkv [T, (heads + 2 kv_heads) * size] under the forward's mask: [T, heads * size]."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    tokens = len(forward)
    of_token = torch.zeros(2, tokens, dtype=torch.int32)
    for first, end, prefix_first, prefix_end in forward.tiles.tolist():
        of_token[:, first:end] = torch.tensor([[prefix_first], [prefix_end]])
    prefix_first, prefix_end = of_token.to(device)
    starts = torch.from_numpy(forward.starts).to(device)

    def sees(b: Any, h: Any, query: Any, key: Any) -> Any:
        own = (key >= starts[query]) & (key <= query)
        return own | ((key >= prefix_first[query]) & (key < prefix_end[query]))

    mask = create_block_mask(sees, None, None, tokens, tokens, device=str(device))
    attend: Any = torch.compile(flex_attention, dynamic=False) if device.type == "cuda" else flex_attention

    def run(qkv: torch.Tensor) -> torch.Tensor:
        q = qkv[:, : heads * size].view(1, tokens, heads, size).transpose(1, 2)
        k, v = qkv[:, heads * size :].view(1, tokens, 2, kv_heads, size).transpose(1, 3).unbind(2)
        found: torch.Tensor = attend(q, k, v, block_mask=mask, enable_gqa=True)
        return found.transpose(1, 2).reshape(tokens, heads * size)

    return run
