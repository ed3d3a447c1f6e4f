"""Which form of the weights is taken: by timings and drifts, kept once a model; and refused where it cannot be had."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from random_qwen3 import random_qwen3
from triton.runtime.errors import OutOfResources

from penstock.infra.telemetry import DEGRADED
from penstock.kernels.prefix_attention import autotune as of_attention
from penstock.kernels.prefix_attention import tuning as attentions
from penstock.kernels.prefix_attention.triton import prefix_attention
from penstock.kernels.scaled_gemm import autotune as of_products
from penstock.kernels.scaled_gemm import tuning as products_of
from penstock.kernels.tunings import measured
from penstock.kernels.tunings.kept import Tunings
from penstock.kernels.tunings.taken import launched
from penstock.ranker.engine import choosing, device, devices
from penstock.ranker.engine.choosing import DRIFT, Decision, Timing, asked, decide, measured_once
from penstock.ranker.engine.device import DeviceBackend
from penstock.ranker.engine.plan import Request, Text, plan
from penstock.ranker.engine.scaled import PRODUCTS, Choice
from penstock.ranker.engine.weights import Weights
from penstock.ranker.errors import UnfitScorer

CPU = torch.device("cpu")
MOST = DRIFT[torch.bfloat16]
SLOW, EVEN, QUICK = Timing(1.0, 1.2), Timing(1.04, 1.0), Timing(2.0, 1.0)


def timings(*, int8, fp8):
    return {form: dict(zip(PRODUCTS, found, strict=True)) for form, found in (("int8", int8), ("fp8", fp8))}


def drifts(**by_form):
    asked_of = []

    def drift(choice):
        asked_of.append(choice)
        return by_form[choice.form]

    return drift, asked_of


def test_products_are_scaled_where_they_are_quicker_by_the_margin():
    drift, _ = drifts(int8=0.0, fp8=0.0)
    found = decide(timings(int8=[QUICK, EVEN, SLOW, QUICK], fp8=[EVEN] * 4), drift, MOST)
    assert found.choice == Choice("int8", ("qkv", "down"))
    assert found.trials["int8"].saved == 2.0


def test_nothing_is_scaled_and_nothing_computed_where_none_is_quicker():
    drift, asked_of = drifts()
    assert decide(timings(int8=[SLOW] * 4, fp8=[EVEN] * 4), drift, MOST).choice == Choice()
    assert not asked_of


@pytest.mark.parametrize("bad", [MOST * 1.01, float("nan"), float("inf")])
def test_the_form_that_saves_more_is_left_where_it_scores_otherwise(bad):
    given = timings(int8=[QUICK, SLOW, SLOW, SLOW], fp8=[QUICK] * 4)
    drift, asked_of = drifts(int8=MOST, fp8=bad)
    found = decide(given, drift, MOST)
    assert asked_of == [Choice("fp8", PRODUCTS), Choice("int8", ("qkv",))]
    assert found.choice == asked_of[1]
    drift, _ = drifts(int8=bad, fp8=bad)
    assert decide(given, drift, MOST).choice == Choice()


def test_a_decision_is_made_once_a_model_and_kept_with_its_figures(tmp_path):
    drift, _ = drifts(int8=0.01, fp8=1.0)
    decision = decide(timings(int8=[QUICK, SLOW, SLOW, QUICK], fp8=[QUICK] * 4), drift, MOST)
    path, made = tmp_path / "tunings.json", []

    def measure():
        made.append(1)
        return decision

    for model in ("a", "a", "b"):
        assert measured_once(Tunings(path), model, 256, CPU, measure) == decision.choice
    assert len(made) == 2
    assert measured_once(Tunings(path), "a", 512, CPU, measure) == decision.choice
    assert len(made) == 3
    (kept, *_) = json.loads(path.read_text()).values()
    assert kept["trials"]["int8"]["ms"]["qkv"] == [2_000.0, 1_000.0]
    assert kept["trials"]["fp8"]["drift"] == 1.0


def test_a_choice_is_forgotten_by_its_models_name_and_not_taken_from_other_source(tmp_path, monkeypatch):
    tunings, whole = Tunings(tmp_path / "tunings.json"), Decision(Choice(), {})
    for model in ("a 1 bf16", "ab 1 bf16"):
        measured_once(tunings, model, 256, CPU, lambda: whole)
    choosing.forget(tunings, "a")
    assert [key.partition(": ranker.weights ")[2] for key in json.loads(tunings.path.read_text())] == ["ab 1 bf16 t256"]
    edited = tmp_path / "scaled.py"
    edited.write_text("MULTIPLE = 32")
    assert any(isinstance(one, Path) and one.name == edited.name for one in choosing.SOURCES)
    other = tuple(edited if isinstance(one, Path) and one.name == edited.name else one for one in choosing.SOURCES)
    monkeypatch.setattr(choosing, "SOURCES", other)
    scaled = Decision(Choice("int8", ("qkv",)), {})
    assert measured_once(tunings, "ab 1 bf16", 256, CPU, lambda: scaled) == scaled.choice


def test_a_choice_that_cannot_be_kept_is_taken_and_counted(tmp_path):
    (tmp_path / "file").write_text("")
    tunings = Tunings(tmp_path / "file" / "tunings.json")  # whose folder nobody can make
    counted = DEGRADED.labels("ranker", "weights not kept")
    before = counted._value.get()
    decision = Decision(Choice("int8", ("qkv",)), {})
    assert measured_once(tunings, "a", 256, CPU, lambda: decision) == decision.choice
    assert counted._value.get() == before + 1
    assert measured_once(tunings, "a", 256, CPU, lambda: Decision(Choice(), {})) == decision.choice, "known here"


@pytest.mark.parametrize(
    "change",
    [{"form": "int4"}, {"products": ["all"]}, {"products": ["down", "qkv"]}, {"products": []}, {"products": "qkv"}],
)
def test_an_entry_that_is_no_decision_is_measured_anew(tmp_path, change):
    path = tmp_path / "tunings.json"
    decision = Decision(Choice("int8", ("qkv",)), {})
    measured_once(Tunings(path), "a", 256, CPU, lambda: decision)
    (key,) = json.loads(path.read_text())
    path.write_text(json.dumps({key: decision.as_json() | change}))
    assert measured_once(Tunings(path), "a", 256, CPU, lambda: Decision(Choice(), {})) == Choice()
    assert measured_once(Tunings(path), "a", 256, CPU, lambda: decision) == Choice()


def test_what_is_asked_for_outright(monkeypatch):
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert asked("auto", "cpu", None) == asked("plain", "cuda", cuda) == asked("auto", "interpreter", CPU) == Choice()
    assert asked("auto", "cuda", cuda) is None
    assert asked("fp8", "interpreter", CPU) == asked("fp8", "cuda", cuda) == Choice("fp8", PRODUCTS)
    with pytest.raises(UnfitScorer, match=r"ranker\.weights is int8 and ranker\.device cpu"):
        asked("int8", "cpu", None)
    with pytest.raises(UnfitScorer, match="'int4': expected one of auto, plain, int8, fp8"):
        asked("int4", "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    assert asked("int8", "cuda", cuda) == Choice("int8", PRODUCTS)
    assert choosing.forms_of(cuda) == ["int8"]
    with pytest.raises(UnfitScorer, match=r"fp8 and cuda has compute capability \(8, 6\): expected \(8, 9\) or more"):
        asked("fp8", "cuda", cuda)


def test_what_drifts_too_far_for_fp32_may_do_for_bf16():
    drift, _ = drifts(int8=0.01)
    given = {"int8": dict.fromkeys(PRODUCTS, QUICK)}
    assert decide(given, drift, DRIFT[torch.bfloat16]).choice == Choice("int8", PRODUCTS)
    assert decide(given, drift, DRIFT[torch.float32]).choice == Choice()


# --- measuring, on the device or in the interpreter by a clock of the test's ----------------------------------------


@pytest.fixture(params=[pytest.param("interpreter"), pytest.param("cuda", marks=pytest.mark.cuda)])
def place(request):
    return devices.checked(request.param)


@pytest.fixture
def weights(tmp_path):
    return Weights.load(random_qwen3(tmp_path, head_dim=16, num_hidden_layers=1))


def request_of(*lengths):
    return Request(np.arange(9, dtype=np.int32), tuple(Text(np.arange(length, dtype=np.int32)) for length in lengths))


@pytest.mark.parametrize(("second_is_quick", "chosen"), [(True, "int8"), (False, "")])
def test_a_model_is_measured_and_held_against_its_whole_weights(
    weights, place, tmp_path, monkeypatch, second_is_quick, chosen
):
    from penstock.ranker.engine.measuring import Device, decided

    monkeypatch.setattr(measured, "RUNS", 1)
    monkeypatch.setattr(measured, "WARM", 0)
    monkeypatch.setitem(choosing.DRIFT, torch.float32, 10.0)
    calls = iter(range(10_000))
    spent = (2.0, 1.0) if second_is_quick else (1.0, 2.0)

    def clock():
        """Whole and scaled in turns, of each its beginning and its end."""
        pair, step = divmod(next(calls), 4)
        return pair * 10 + (0.0, spent[0], 5.0, 5.0 + spent[1])[step]

    found = decided(weights, [request_of(5, 9)], Device(place, clock), 256, 64, Tunings(tmp_path / "kept.json"))
    assert set(found.trials) == {"int8", "fp8"}
    assert found.trials["int8"].timings["down"] == Timing(*spent)
    assert found.choice == (Choice(chosen, PRODUCTS) if chosen else Choice())
    drift = found.trials["int8"].drift
    assert (0 < drift < 10.0) if chosen else drift is None


def test_kernels_are_tuned_for_the_model_and_forwards_take_what_is_kept(weights, place, tmp_path, monkeypatch):
    from penstock.ranker.engine.measuring import Device, tuned

    monkeypatch.setattr(measured, "RUNS", 1)
    monkeypatch.setattr(measured, "WARM", 0)
    ticks = iter(range(100_000))
    tunings = Tunings(tmp_path / "kept.json")
    names = [
        one.name
        for one in tuned(weights.shape, torch.float32, Device(place, lambda: -(float(next(ticks)) ** 2)), 300, tunings)
    ]
    assert names[0].startswith("attention of 4 heads: ")
    shapes = [name.partition(" product of ")[2].partition(":")[0] for name in names if name.startswith("int8")]
    assert shapes == ["256 by 32 by 64", "1024 by 32 by 64", "256 by 128 by 32", "1024 by 128 by 32"]  # two pairs alike
    assert sum(name.startswith("fp8") for name in names) == len(shapes)
    key = of_attention.key_of(torch.float32, 4, 2, 16, place)
    assert (
        Tunings(tunings.path).get(key, attentions.Tuning) == list(attentions.fitting(2, 16))[-1]
    )  # the clock's choice
    product = of_products.key_of(torch.int8, 1_024, 128, 32, place)
    assert tunings.get(product, products_of.Tuning) == list(products_of.fitting("int8"))[-1]
    backend = DeviceBackend(weights, place, 300, tunings=tunings)
    (forward,) = plan([request_of(5, 60)], 300, 300)
    plain = DeviceBackend(weights, place, 300).logits(forward)
    taken = attention_tunings(monkeypatch)
    np.testing.assert_allclose(backend.logits(forward), plain, rtol=0, atol=1e-5)
    assert set(taken) == {tunings.get(key, attentions.Tuning)}


def test_a_product_that_cannot_be_scaled_is_left_whole_and_not_tuned(place, tmp_path, monkeypatch):
    from penstock.ranker.engine.measuring import Device, decided, tuned

    monkeypatch.setattr(measured, "RUNS", 1)
    monkeypatch.setattr(measured, "WARM", 0)
    monkeypatch.setitem(choosing.DRIFT, torch.float32, 10.0)
    odd = Weights.load(random_qwen3(tmp_path, head_dim=16, num_hidden_layers=1, intermediate_size=72))
    ticks, tunings = iter(range(100_000)), Tunings(tmp_path / "kept.json")
    device = Device(place, lambda: -(float(next(ticks)) ** 2))  # what is later is quicker
    found = decided(odd, [request_of(5, 9)], device, 256, 64, tunings)
    assert found.choice.products == ("qkv", "out", "gate_up")
    assert all(trial.timings["down"].scaled == float("inf") for trial in found.trials.values())
    names = [one.name for one in tuned(odd.shape, torch.float32, device, 256, tunings)]
    assert any("by 144 by 32:" in name for name in names) and not any("by 72:" in name for name in names)


@pytest.mark.parametrize("form", ["int8", "fp8"])
def test_products_are_tuned_on_finite_numbers(place, tmp_path, monkeypatch, form):
    from penstock.ranker.engine import measuring

    given = []
    monkeypatch.setattr(measuring, "scaled_gemm", lambda x, _x, w, *_, **__: given.extend((x, w)))
    measuring._product(form, 256, 32, 64, measuring.Device(place, lambda: 0.0), Tunings(tmp_path / "kept.json"))
    assert given and all(one.float().isfinite().all() and one.float().std() > 0.5 for one in given)


@pytest.mark.parametrize("error", [RuntimeError("the device refused all"), torch.OutOfMemoryError("no room")], ids=str)
def test_what_cannot_be_measured_is_a_scorer_that_is_unfit(weights, tmp_path, error):
    def load():
        raise error

    with pytest.raises(UnfitScorer, match=rf"{error}.*set ranker\.weights to plain"):
        devices.decided(load, [], CPU, 256, 64, Tunings(tmp_path / "kept.json"))


def attention_tunings(monkeypatch, refused=None):
    """Those that forwards launch attention with, in order; of `refused` the device has too little."""
    taken = []

    def spied(*args, tuning, **sizes):
        taken.append(tuning)
        if tuning is not None and tuning == refused:
            raise OutOfResources(262_144, 232_448, "shared memory")
        return prefix_attention(*args, tuning=tuning, **sizes)

    monkeypatch.setattr(device, "prefix_attention", spied)
    return taken


def test_what_was_measured_of_one_dtype_is_not_taken_for_another(weights, place, tmp_path, monkeypatch):
    tunings = Tunings(tmp_path / "kept.json")
    tunings.keep(of_attention.key_of(torch.bfloat16, 4, 2, 16, place), list(attentions.fitting(2, 16))[-1])
    taken = attention_tunings(monkeypatch)
    (forward,) = plan([request_of(5, 60)], 300, 300)
    DeviceBackend(weights, place, 300, tunings=tunings).logits(forward)
    assert set(taken) == {None}


def test_a_kept_tuning_that_the_device_refuses_gives_way_to_the_default(weights, place, tmp_path, monkeypatch, caplog):
    tunings, key = Tunings(tmp_path / "kept.json"), of_attention.key_of(torch.float32, 4, 2, 16, place)
    kept = list(attentions.fitting(2, 16))[-1]
    tunings.keep(key, kept)
    (forward,) = plan([request_of(5, 60)], 300, 300)
    plain = DeviceBackend(weights, place, 300).logits(forward)
    taken = attention_tunings(monkeypatch, refused=kept)
    backend = DeviceBackend(weights, place, 300, tunings=tunings)
    np.testing.assert_array_equal(backend.logits(forward), plain)
    np.testing.assert_array_equal(backend.logits(forward), plain)
    assert taken.count(kept) == 1 and taken[0] == kept
    assert key in caplog.text and "out of resource: shared memory" in caplog.text
    assert Tunings(tunings.path).get(key, attentions.Tuning) == kept, "another device's, perhaps: the file keeps it"


def test_a_default_that_the_device_refuses_is_an_error(tmp_path):
    def refused(tuning):
        raise OutOfResources(262_144, 232_448, "shared memory")

    for tunings in (None, Tunings(tmp_path / "kept.json")):
        with pytest.raises(OutOfResources):
            launched(tunings, "a", attentions.Tuning, refused)
