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
from dataclasses import dataclass, field, replace

from benchmarks.kerneling.gpu import H200, LIKELY, Getting, Gpu
from benchmarks.kerneling.model import Launch
from benchmarks.ranker_kerneling.attention import Form as AttentionForm
from benchmarks.ranker_kerneling.attention import attention, pairs
from benchmarks.ranker_kerneling.products import CUBLAS, TRITON, Library, product
from penstock.ranker.engine.buffers import Bucket
from penstock.ranker.engine.plan import Forward
from penstock.ranker.engine.untrained import ModelShape

PEAK = 989e12  # FLOP/s
NARROW, WIDE = 2, 4  # bytes of a value: of the matrices, of the residual stream
PCIE = 50e9  # bytes/s, pinned, fifth generation
TRANSFER = 5e-6  # s of a copy beside its bytes
A_LAYER = 9  # launches

# What could be fused and is not: `predicted` says what it would give.
TURNED = "attention turns its queries itself"  # and a launch turns keys alone
ADDED = "products add to the residual stream"  # in float32, behind their last tile's loop
GATED = "a product of our own, as quick as cuBLAS, applies SwiGLU"
STEPS = (TURNED, ADDED, GATED)
GATED_BY_TRITON = "a product of our own in Triton applies SwiGLU"  # which gives nothing: it is why there is none
TURNING = 250  # instructions more of attention's beginning, about: a head's norm, two tables, a second reading


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
    block: int = 1_024  # values of a program of `swiglu` and `gather`


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
    steps: frozenset[str] = frozenset(),  # of STEPS, as if they were taken
) -> Prediction:
    """The launches of ranker/engine/device.py for one forward."""
    bucket = Bucket.of(len(forward), len(forward.items), len(forward.tiles))
    if TURNED in steps:
        forms = replace(forms, attention=replace(forms.attention, outside=forms.attention.outside + TURNING))
    launches = _Launches(model, forms, bucket, forward, gpu, got, library, steps)
    inputs = WIDE * bucket.numbers + forward.rows.nbytes + WIDE * bucket.places
    copies = (2 + bool(len(forward.rows))) * TRANSFER + inputs / PCIE
    return Prediction(launches.all(), needed_flops(model, forward), len(forward.items), got, copies)


Bytes = dict[str, float]  # by the tensor's name


@dataclass(slots=True)
class _Launches:
    """A forward's, in their order. What lies in the L2 cache is known from what was launched before."""

    model: ModelShape
    forms: Forms
    bucket: Bucket
    forward: Forward
    gpu: Gpu
    got: Getting
    library: Library
    steps: frozenset[str]
    made: list[Launch] = field(default_factory=list)
    cache: L2 = field(init=False)

    def __post_init__(self) -> None:
        self.cache = L2(self.gpu.l2_bytes / 2)

    def all(self) -> list[Launch]:
        model, tokens, places = self.model, self.bucket.tokens, self.bucket.places
        hidden, q_width = model.hidden_size, model.num_attention_heads * model.head_dim
        self._stream(
            "gather of embeddings",
            tokens * -(-hidden // self.forms.block),
            self.forms.gather,
            {"embedding": NARROW * len(self.forward) * hidden},
            {"x": WIDE * tokens * hidden},
        )
        for layer in range(model.num_hidden_layers):
            self._attend(tokens, layer == 0)
            if layer + 1 < model.num_hidden_layers:
                self._finish(tokens, "x", "attended")
        for name, row in (("x", WIDE * hidden), ("attended", NARROW * q_width)):
            self._stream("scored places", places, self.forms.gather, {name: places * row}, {f"{name}'": places * row})
        self._finish(places, "x'", "attended'")
        ends = {"x'": WIDE * places * hidden, "delta": NARROW * places * hidden}
        self._stream("yes/no head", places, self.forms.head, ends, {"logits": WIDE * places})
        return self.made

    def _attend(self, rows: int, first: bool) -> None:
        model, forms = self.model, self.forms
        hidden, kv_width = model.hidden_size, model.num_key_value_heads * model.head_dim
        q_width = model.num_attention_heads * model.head_dim
        x, h, delta = WIDE * rows * hidden, NARROW * rows * hidden, NARROW * rows * hidden
        if first or ADDED in self.steps:
            self._stream("add + RMSNorm", rows, forms.first_norm, {"x": x}, {"h": h})
        else:
            self._stream("add + RMSNorm", rows, forms.norm, {"x": x, "delta": delta}, {"x": x, "h": h})
        self._multiply("qkv product", rows, q_width + 2 * kv_width, hidden, "h", "qkv")
        turned = NARROW * rows * (kv_width if TURNED in self.steps else q_width + kv_width)
        self._stream("norms, positions", rows, forms.turn, {"qkv": turned}, {"qkv": turned})
        near = self.cache.touch("qkv", NARROW * rows * (q_width + 2 * kv_width))
        spare = self.bucket.tiles - len(self.forward.tiles)
        heads = model.num_attention_heads
        self.made.append(attention(self.forward, forms.attention, heads, spare, not near, self.gpu, self.got))
        self.cache.touch("attended", NARROW * rows * q_width)

    def _finish(self, rows: int, x: str, attended: str) -> None:
        hidden, inner = self.model.hidden_size, self.model.intermediate_size
        added = x if ADDED in self.steps else ""
        q_width = self.model.num_attention_heads * self.model.head_dim
        self._multiply("out product", rows, hidden, q_width, attended, "delta", added)
        residual, narrow = WIDE * rows * hidden, NARROW * rows * hidden
        if added:
            self._stream("add + RMSNorm", rows, self.forms.first_norm, {x: residual}, {"h": narrow})
        else:
            self._stream(
                "add + RMSNorm", rows, self.forms.norm, {x: residual, "delta": narrow}, {x: residual, "h": narrow}
            )
        gate_up, activated = NARROW * rows * 2 * inner, NARROW * rows * inner
        by = TRITON if GATED_BY_TRITON in self.steps else self.library
        self._multiply("gate and up product", rows, 2 * inner, hidden, "h", "gate_up", by=by)
        if not self.steps & {GATED, GATED_BY_TRITON}:
            blocks = rows * -(-inner // self.forms.block)
            self._stream("SwiGLU", blocks, self.forms.swiglu, {"gate_up": gate_up}, {"activated": activated})
        self._multiply("down product", rows, hidden, inner, "activated", "delta", added)

    def _multiply(
        self,
        name: str,
        rows: int,
        columns: int,
        depth: int,
        source: str,
        out: str,
        added: str = "",
        by: Library | None = None,
    ) -> None:
        """`added`: what it adds to, in place, rather than writing `out`."""
        reads = {source: NARROW * rows * depth, f"weights {len(self.made)}": NARROW * columns * depth}
        writes = {out: NARROW * rows * columns}
        if added:
            reads[added] = WIDE * rows * columns
            writes = {added: WIDE * rows * columns}
        moved, _ = self._moved(reads, writes)
        self.made.append(
            product(name, rows, columns, depth, moved, self.gpu, self.got, by or self.library, bool(added))
        )

    def _stream(self, name: str, programs: int, form: Form, reads: Bytes, writes: Bytes) -> None:
        gpu, got = self.gpu, self.got
        moved, near = self._moved(reads, writes)
        turn = got.latency + form.instructions * got.alone / gpu.clock
        parts = {
            "memory": moved / (got.read * got.scanning) + near / self.library.l2,
            "turns": programs / (gpu.sms * form.ctas) * turn,
            "issue": programs / gpu.sms * form.instructions * form.warps / gpu.partitions / got.issue / gpu.clock,
        }
        bound = max(parts, key=lambda part: parts[part])
        self.made.append(Launch(name, got.latency + parts[bound], moved, 0.0, bound, parts))

    def _moved(self, reads: Bytes, writes: Bytes) -> tuple[float, float]:
        """Bytes from device memory and to it; bytes from the L2 cache."""
        near = sum(size for name, size in reads.items() if self.cache.touch(name, size))
        for name, size in writes.items():
            self.cache.touch(name, size)
        return sum(reads.values()) - near + sum(writes.values()), near
