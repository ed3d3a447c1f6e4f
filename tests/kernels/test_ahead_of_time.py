"""Every tuned form of every kernel compiles for sm_90 and keeps to what is expected of it; no GPU takes part.

All is compiled once, in processes of their own (another test of this process may have the interpreter on), and read
from JSON. On a clean clone that takes minutes of CPU time; what was compiled before is in Triton's cache.
"""

import importlib.util
import json

import pytest
from compiling import ROOT, compile_in_a_process

from penstock.kernels.aot.check import Checked
from penstock.kernels.aot.registry import OPERATORS
from penstock.kernels.aot.sass import SHARED_PER_CTA

pytestmark = pytest.mark.timeout(1_200)
AT_LEAST = 30  # configs
SAMPLES = ROOT / "tests" / "support" / "sample_kernels.py"


def names():
    """Of all configs, without compiling any: kernels are imported when they are asked for."""
    found = []
    for path in sorted(OPERATORS.glob("*/configs.py")):
        spec = importlib.util.find_spec(f"penstock.kernels.{path.parent.name}.configs")
        assert spec is not None, f"{path} cannot be imported: is its folder in pyproject.toml?"
        found.append(path.parent.name)
    return found


@pytest.fixture(scope="session")
def done(tmp_path_factory):
    """The command, run once, and what it wrote."""
    path = tmp_path_factory.mktemp("aot") / "found.json"
    run = compile_in_a_process("-m", "penstock.kernels.aot", "--json", path)
    assert path.exists(), run.stderr
    return run, json.loads(path.read_text())


@pytest.fixture(scope="session")
def checked(done):
    return [Checked.from_json(one) for one in done[1]["configs"]]


def test_every_config_holds_what_is_expected_of_it(done, checked):
    said = [f"{one.name}: {failure}" for one in checked for failure in one.failures]
    assert not said, "\n".join(said)
    assert done[0].returncode == 0, done[0].stderr


def test_no_config_spills_in_its_main_loop_or_needs_more_shared_memory_than_there_is(checked):
    """Said once more without any expectation: nobody can expect these away."""
    assert [one.name for one in checked if one.figures is None] == []
    assert [one.name for one in checked if one.figures.main.spills] == []
    assert [one.name for one in checked if one.figures.shared > SHARED_PER_CTA] == []
    assert [one.name for one in checked if one.figures.ctas_per_sm < 1] == []


def test_there_are_configs_of_every_operator_that_has_kernels(checked):
    assert len(checked) >= AT_LEAST
    assert {one.operator for one in checked} == set(names())


@pytest.fixture(scope="session")
def samples(tmp_path_factory):
    path = tmp_path_factory.mktemp("aot") / "samples.json"
    run = compile_in_a_process(SAMPLES, path, PYTHONPATH=str(SAMPLES.parent))
    assert run.returncode == 0, run.stderr
    return {one["name"]: Checked.from_json(one) for one in json.loads(path.read_text())}


def test_a_kernel_that_holds_is_let_through(samples):
    good = samples["sample/good"]
    assert good.failures == ()
    assert good.figures.main.tensor_core == 16  # two tiles of 64 rows, eight steps of 16 values
    assert good.figures.main.async_copies[128] == 16  # 32 KiB by 128 threads, 16 bytes each
    assert good.figures.async_bytes == 128 * 128 * 2 + 8 * 128  # and the next address, by every thread
    assert good.figures.looped
    assert good.figures.hot == good.figures.main.instructions  # no branch in it
    assert samples["sample/copy"].failures == ()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("spilling", "spilling instructions in the main loop"),
        ("undeclared", "narrow loads in the main loop, LDG by bits: {16: 128}"),
        ("undeclared", "0% of what the main loop loads comes by 128-bit asynchronous copies"),
        ("crowded", "CTAs fit an SM"),
        ("crowded", "registers: expected 24 at most"),
        ("too_large", "bytes of shared memory: a CTA has 232448"),
        ("no_tensor_core", "no warpgroup tensor-core instruction in the main loop"),
        ("short", "instructions in the main loop: expected 10 at most"),
        ("narrow", "0% of the bytes that it stores go 128 bits at a time"),
        ("narrower", "0% of the bytes that it loads go 128 bits at a time"),
        ("misnamed", "not an argument ['tile']"),
    ],
)
def test_a_kernel_that_breaks_it_is_caught(samples, name, said):
    assert any(said in failure for failure in samples[f"sample/{name}"].failures), samples[f"sample/{name}"]


def test_a_spill_is_seen_where_it_is(samples):
    """This is what keeps the suite honest: a change that makes a kernel spill fails it."""
    spilling = samples["sample/spilling"].figures
    assert spilling.main.spills > 0
    assert spilling.stack > 0
    assert samples["sample/good"].figures.stack == 0


def test_it_says_why_it_cannot_compile_under_the_interpreter():
    run = compile_in_a_process("-m", "penstock.kernels.aot", TRITON_INTERPRET="1")
    assert run.returncode == 2
    assert "TRITON_INTERPRET is set" in run.stderr
