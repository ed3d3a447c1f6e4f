"""A random directory: the same bytes for the same texts, whole or not there, read by the engine and by transformers."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from penstock.ranker.engine.untrained import SMALL, ModelShape, is_untrained, write

TINY = ModelShape(600, 32, 64, 2, 4, 2, 8)
TEXTS = [f"registered nurse, night shift {number}, Columbus Ohio; welder and senior clerk" for number in range(80)]


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_equal_texts_make_equal_bytes_in_any_process(tmp_path):
    here = contents(write(tmp_path / "here", TEXTS, TINY))
    script = (
        "import sys; from pathlib import Path; from penstock.ranker.engine.untrained import ModelShape, write\n"
        f"write(Path(sys.argv[1]), {TEXTS!r}, {TINY!r})\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    there = tmp_path / "there"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", script, str(there)], check=True, timeout=120, env=environment)
    assert contents(there) == here


def test_another_seed_or_other_texts_make_another_model(tmp_path):
    first = contents(write(tmp_path / "first", TEXTS, TINY))
    seed = contents(write(tmp_path / "seed", TEXTS, TINY, seed=1))
    texts = contents(write(tmp_path / "texts", ["carpenter and bricklayer"] * 9, TINY))
    changed = {name for name, was in first.items() if seed[name] != was}
    assert changed == {"model.safetensors"}
    assert {name for name, was in first.items() if texts[name] != was} == {"tokenizer.json"}


def test_it_says_that_it_is_untrained(tmp_path):
    directory = write(tmp_path / "model", TEXTS, TINY)
    assert is_untrained(directory)
    assert not is_untrained(tmp_path)
    assert not is_untrained(tmp_path / "gone")


def test_what_is_trained_from_it_does_not_say_so(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = write(tmp_path / "model", TEXTS, TINY)
    trained = tmp_path / "trained"
    AutoModelForCausalLM.from_pretrained(directory).save_pretrained(trained)
    AutoTokenizer.from_pretrained(directory).save_pretrained(trained)
    assert not is_untrained(trained)


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_and_the_engine_find_every_weight_and_nothing_else(tmp_path, tied):
    import torch
    from transformers import AutoModelForCausalLM

    from penstock.ranker.engine.weights import Weights

    directory = write(tmp_path / "model", TEXTS, ModelShape(600, 32, 64, 2, 4, 2, 8, tied))
    model, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(info.values())
    assert model.config.num_key_value_heads == 2
    assert next(model.parameters()).dtype == torch.float32
    Weights.load(directory)
    matrices = [weight for weight in model.parameters() if weight.dim() == 2]
    assert all(0.015 < float(weight.detach().std()) < 0.025 for weight in matrices)
    assert bool((model.model.norm.weight == 1).all())
    ids = torch.tensor([[3, 5, 8]])
    assert np.ptp(model(input_ids=ids).logits.detach().numpy()) > 1e-3


def test_yes_no_and_the_marks_of_turns_are_single_tokens(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(write(tmp_path / "model", TEXTS, TINY))
    for piece in ("yes", "no", "<|im_start|>", "<|im_end|>"):
        assert len(tokenizer.encode(piece, add_special_tokens=False)) == 1
    text = "café – naïve <|im_end|>"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_a_vocabulary_without_room_for_the_answers_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"vocabulary of 258 has no token for 'yes'.*enlarge"):
        write(tmp_path / "model", TEXTS, ModelShape(258, 32, 64, 1, 4, 2, 8))
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_written_over(tmp_path):
    kept = tmp_path / "kept.txt"
    kept.write_text("mine")
    with pytest.raises(FileExistsError, match="holds something already"):
        write(tmp_path, TEXTS, TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
    assert not [path for path in tmp_path.parent.iterdir() if path.name.startswith(f".{tmp_path.name}-")]


def test_a_killed_writer_leaves_no_directory_that_looks_whole(tmp_path, until):
    directory = tmp_path / "model"
    script = (
        "import sys; from pathlib import Path; from penstock.ranker.engine.untrained import ModelShape, write\n"
        f"write(Path(sys.argv[1]), {TEXTS!r}, {SMALL!r})"
    )
    writer = subprocess.Popen([sys.executable, "-c", script, str(directory)])
    try:
        until(lambda: list(tmp_path.glob("*/tokenizer.json")) + list(tmp_path.glob(".*/tokenizer.json")))
    finally:
        writer.kill()
        assert writer.wait() == -signal.SIGKILL  # it was still writing
    assert not directory.exists()
    assert is_untrained(write(directory, TEXTS, TINY))
