"""What one packed forward on an H200 should take, launch by launch as ranker/engine/device.py makes them: a model.

Nothing here was measured. Sizes are those of the model's config and of a real plan (shapes.py), padded to the bucket;
registers, instructions and programs an SM are read in machine code; what the machine gives is in kerneling/gpu.py.

    products     products.py: tiles, waves, what stands before and after a tile's loop
    attention    attention.py: the plan's own tile descriptors, block by block of keys
    the rest     bytes over bandwidth; or, of programs that an SM holds at once, each one trip to memory and its
                 instructions, if that is longer. One trip is added: nothing of a launch overlaps the next one
    launches     `Getting.launch` each, in a graph; the copies in and out once a forward

**Where bytes come from.** A tensor is read from the L2 cache when it and all that was touched since it was last touched
fit into half of it (an H200 has 50 MB in two halves, and lines of one may be in both); from device memory otherwise.
What is written costs its way to device memory: it has to leave some day.

**The share** is of 989 TFLOP/s, the vendor's dense bf16:

    FLOPs that an answer cannot do without / time of everything / 989e12

Needed are each prefix once, pairs of query and key that see each other, and in the last layer keys and values of all
tokens and the rest of the scored places alone. Padding, masked blocks and queries that nobody reads are not needed.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from benchmarks.kerneling.gpu import H200, LIKELY, Getting, Gpu
from benchmarks.kerneling.model import Launch
from benchmarks.ranker_kerneling.attention import Form as AttentionForm
from benchmarks.ranker_kerneling.attention import attention, pairs
from benchmarks.ranker_kerneling.products import CUBLAS, Library, product
from penstock.ranker.engine.device import Bucket
from penstock.ranker.engine.plan import Forward
from penstock.ranker.engine.untrained import ModelShape

PEAK = 989e12  # FLOP/s
NARROW, WIDE = 2, 4  # bytes of a value: of the matrices, of the residual stream
PCIE = 50e9  # bytes/s, pinned, fifth generation
TRANSFER = 5e-6  # s of a copy beside its bytes


@dataclass(frozen=True, slots=True)
class Form:
    """What the model takes of any other compiled kernel."""

    warps: int
    ctas: int  # an SM
    instructions: int


@dataclass(frozen=True, slots=True)
class Forms:
    """The compiled kernels of one model."""

    attention: AttentionForm
    first_norm: Form
    norm: Form
    turn: Form  # norms and positions of queries and keys
    swiglu: Form
    gather: Form
    head: Form
    swiglu_block: int = 1_024  # values of a program; of the gather too


@dataclass(slots=True)
class Prediction:
    launches: list[Launch]
    needed: float  # FLOPs
    scored: int
    got: Getting
    copies: float = 0.0  # seconds

    @property
    def seconds(self) -> float:
        return sum(one.seconds + self.got.launch for one in self.launches) + self.copies

    @property
    def share(self) -> float:
        return self.needed / self.seconds / PEAK

    @property
    def items_per_s(self) -> float:
        return self.scored / self.seconds

    def by_kind(self) -> dict[str, float]:
        """Seconds of each kind of launch, all layers together; launching and copies apart."""
        found: dict[str, float] = {}
        for one in self.launches:
            found[one.name] = found.get(one.name, 0.0) + one.seconds
        found["launching"] = len(self.launches) * self.got.launch
        found["copies"] = self.copies
        return found


@dataclass(slots=True)
class L2:
    """Which tensors lie in the cache: those touched last, up to half of it."""

    room: float
    _held: OrderedDict[str, float] = field(default_factory=OrderedDict)

    def touch(self, name: str, size: float) -> bool:
        """Whether it was there; now it is the newest."""
        since = size
        for other, held in reversed(self._held.items()):
            if other == name:
                break
            since += held
        near = name in self._held and since <= self.room
        self._held.pop(name, None)
        self._held[name] = size
        return near


def needed_flops(model: ModelShape, forward: Forward) -> float:
    tokens, scored, hidden = len(forward), len(forward.items), model.hidden_size
    q_width, kv_width = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    after = hidden * (q_width + 3 * model.intermediate_size)
    layers = model.num_hidden_layers - 1
    products = layers * tokens * (hidden * (q_width + 2 * kv_width) + after)
    products += tokens * hidden * 2 * kv_width + scored * (hidden * q_width + after)
    return 2.0 * products + 4.0 * q_width * (layers * pairs(forward) + pairs(forward, last=True))


def predicted(
    model: ModelShape,
    forward: Forward,
    forms: Forms,
    gpu: Gpu = H200,
    got: Getting = LIKELY,
    library: Library = CUBLAS,
) -> Prediction:
    """The launches of ranker/engine/device.py for one forward."""
    bucket = Bucket.of(len(forward), len(forward.items), len(forward.tiles))
    hidden, inner, size = model.hidden_size, model.intermediate_size, model.head_dim
    q_width = model.num_attention_heads * size
    turned = q_width + model.num_key_value_heads * size
    qkv_width = turned + model.num_key_value_heads * size
    cache = L2(gpu.l2_bytes / 2)
    made: list[Launch] = []

    def far(reads: dict[str, float], writes: dict[str, float]) -> tuple[float, float]:
        """Bytes from device memory and to it; bytes from the L2 cache."""
        near = {name: cache.touch(name, held) for name, held in reads.items()}
        for name, held in writes.items():
            cache.touch(name, held)
        missed = sum(held for name, held in reads.items() if not near[name])
        return missed + sum(writes.values()), sum(reads.values()) - missed

    def multiply(name: str, rows: int, columns: int, depth: int, source: str, out: str) -> None:
        reads = {source: NARROW * rows * depth, f"{name} weights": NARROW * columns * depth}
        weights_far = reads[f"{name} weights"]  # each layer has its own
        cache._held.pop(f"{name} weights", None)
        moved, _ = far(reads, {out: NARROW * rows * columns})
        made.append(product(name, rows, columns, depth, max(moved, weights_far), gpu, got, library))

    def stream(
        name: str, programs: float, form: Form, reads: dict[str, float], writes: dict[str, float]
    ) -> None:
        moved, near = far(reads, writes)
        instructions = form.instructions * form.warps / gpu.partitions / got.issue / gpu.clock
        turn = got.latency + form.instructions * got.alone / gpu.clock
        parts = {
            "memory": moved / (got.read * got.scanning) + near / library.l2,
            "turns": programs / (gpu.sms * form.ctas) * turn,
            "issue": programs / gpu.sms * instructions,
        }
        bound = max(parts, key=lambda part: parts[part])
        made.append(Launch(name, got.latency + parts[bound], moved, 0.0, bound, parts))

    def attend(rows: int, first: bool) -> None:
        norm_reads = {"x": WIDE * rows * hidden} | ({} if first else {"delta": NARROW * rows * hidden})
        norm_writes = {"h": NARROW * rows * hidden} | ({} if first else {"x": WIDE * rows * hidden})
        stream("add + RMSNorm", rows, forms.first_norm if first else forms.norm, norm_reads, norm_writes)
        multiply("qkv product", rows, qkv_width, hidden, "h", "qkv")
        stream("norms, positions", rows, forms.turn, {"qkv": NARROW * rows * turned}, {"qkv": NARROW * rows * turned})
        near = cache.touch("qkv", NARROW * rows * qkv_width)
        spare = bucket.tiles - len(forward.tiles)
        made.append(attention(forward, forms.attention, model.num_attention_heads, spare, not near, gpu, got))
        cache.touch("attended", NARROW * rows * q_width)

    def finish(rows: int, x: str, attended: str) -> None:
        multiply("out product", rows, hidden, q_width, attended, "delta")
        both = {x: WIDE * rows * hidden, "delta": NARROW * rows * hidden}
        stream("add + RMSNorm", rows, forms.norm, both, {x: WIDE * rows * hidden, "h": NARROW * rows * hidden})
        multiply("gate and up product", rows, 2 * inner, hidden, "h", "gate_up")
        blocks = rows * -(-inner // forms.swiglu_block)
        stream(
            "SwiGLU", blocks, forms.swiglu, {"gate_up": NARROW * rows * 2 * inner}, {"activated": NARROW * rows * inner}
        )
        multiply("down product", rows, hidden, inner, "activated", "delta")

    tokens, places = bucket.tokens, bucket.places
    blocks = tokens * -(-hidden // forms.swiglu_block)
    rows_read = {"embedding": NARROW * len(forward) * hidden}
    stream("gather of embeddings", blocks, forms.gather, rows_read, {"x": WIDE * tokens * hidden})
    for layer in range(model.num_hidden_layers):
        attend(tokens, layer == 0)
        if layer + 1 < model.num_hidden_layers:
            finish(tokens, "x", "attended")
    for name, width, value in (("x", hidden, WIDE), ("attended", q_width, NARROW)):
        stream("scored places", places, forms.gather, {name: value * places * width}, {f"{name}'": value * places * width})
    finish(places, "x'", "attended'")
    ends = {"x'": WIDE * places * hidden, "delta": NARROW * places * hidden}
    stream("yes/no head", places, forms.head, ends, {"logits": WIDE * places})
    inputs = WIDE * bucket.numbers + forward.rows.nbytes + WIDE * places
    copies = (2 + bool(len(forward.rows))) * TRANSFER + inputs / PCIE
    return Prediction(made, needed_flops(model, forward), len(forward.items), got, copies)
