"""`penstock warmup`: compiles the kernels that devices of shards and rankers will run, so that nobody waits for it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from penstock.infra.settings import RankerSettings, RetrievalSettings

DEFAULT_KS = [10, 250, 1_000]


def register(app: typer.Typer) -> None:
    """Add `warmup` to `app`."""
    app.command(rich_help_panel="Roles and clusters")(warmup)


def warmup(
    ks: Annotated[
        list[int], typer.Option("--k", min=1, max=16_384, help="Postings that a search asks for; several may be given.")
    ] = DEFAULT_KS,
    dense: Annotated[int, typer.Option(min=0, help="Values of a stored dense plane, as the shipped encoder's.")] = 384,
    sketch: Annotated[int, typer.Option(min=0, help="Values of a stored sketch, likewise.")] = 1_024,
    target: Annotated[
        Literal["sm_90"] | None, typer.Option("--for", help="Compile for this GPU instead; none has to be here.")
    ] = None,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune", help="Measure the tunings that fit, on random rows, some GB for a shard's, and keep the best."
        ),
    ] = False,
    only: Annotated[str, typer.Option(help="With --for: forms whose name has this in it.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Compile what the devices of `retrieval.device` and, with the engine, `ranker.device` run, into Triton's cache
    (TRITON_CACHE_DIR), ahead of the first search. What was compiled before takes next to no time."""
    from penstock.infra.cli import output

    began, why = time.perf_counter(), ""
    if target is not None:
        made = list(_told(_ahead(only), as_json))
    else:
        why, shapes = _here(dense, sketch, ks, tune)
        made = list(_told(shapes, as_json))
    seconds = time.perf_counter() - began
    if as_json:
        output.emit(
            {
                "compiled": [{"name": name, "seconds": took} for name, took in made],
                "seconds": seconds,
                "nothing_to_do": why or None,
            }
        )
    else:
        output.say(f"nothing to do: {why}" if why else f"{len(made)} shapes in {seconds:.1f} s")


def _told(shapes: Iterator[tuple[str, float]], as_json: bool) -> Iterator[tuple[str, float]]:
    """The same, each named to people as it is done."""
    from penstock.infra.cli import output

    for name, seconds in shapes:
        if not as_json:
            output.say(f"{seconds:7.2f} s  {name}")
        yield name, seconds


def _here(dense: int, sketch: int, ks: list[int], tune: bool) -> tuple[str, Iterator[tuple[str, float]]]:
    """Why there is nothing to do, and what is compiled for this machine's devices.

    Raises DeviceUnavailable, UnfitScorer.
    """
    from penstock.infra.settings import load

    own = load()
    why, shapes = _retrievals(own.retrieval, dense, sketch, ks, tune)
    if own.ranker.scorer == "engine" and own.ranker.device.startswith("cuda"):
        return "", itertools.chain(shapes, _tunings(own.ranker) if tune else (), _rankers(own.ranker))
    return why, shapes


def _tunings(own: RankerSettings) -> Iterator[tuple[str, float]]:
    """Of the engine's kernels, measured on its device for the model's shapes."""
    from penstock.ranker.engine import choosing, devices
    from penstock.ranker.engine.weights import Shape

    place = devices.checked(own.device)
    assert place is not None and own.model is not None  # the settings have the engine, on a CUDA device
    from penstock.kernels.tunings.kept import Tunings
    from penstock.ranker.engine.measuring import Device, tuned

    shape, dtype = Shape.of(own.model), devices.DTYPES[devices.dtype_for(own.device, own.dtype)]
    most_tokens = max(own.forward_tokens, own.interactive_tokens)
    tunings = Tunings.of_this_user()
    choosing.forget(tunings, own.model.name)  # `_rankers` measures it anew, by what is found here
    for one in tuned(shape, dtype, Device(place), most_tokens, tunings):
        yield f"ranker/{one.name}", one.seconds


def _rankers(own: RankerSettings) -> Iterator[tuple[str, float]]:
    """The engine as a ranker starts it: on forwards of all usual sizes, and their graphs."""
    from penstock.ranker.backends.load import load_scorers

    began = time.perf_counter()
    model = load_scorers(own).language_model
    assert model is not None  # the settings have the engine
    model.close(10)
    yield f"ranker/{model.model_id}", time.perf_counter() - began


def _retrievals(
    own: RetrievalSettings, dense: int, sketch: int, ks: list[int], tune: bool
) -> tuple[str, Iterator[tuple[str, float]]]:
    from penstock.retrieval.device.backend import choose

    backend = choose(own.device, own.device_bytes, own.device_planes)
    if backend is None:
        found = "no CUDA device is found" if own.device == "auto" else "it runs no kernel"
        return f"retrieval.device is {own.device}, and {found}; --for sm_90 compiles without one", iter(())
    if not backend.is_cuda:
        return f"retrieval.device is {own.device}: kernels run there as they are written", iter(())
    from penstock.retrieval.device.tune import tuned
    from penstock.retrieval.device.warmup import warmed

    measured = tuned(backend, dense, sketch, max(ks)) if tune else ()
    return "", ((shape.name, shape.seconds) for shape in itertools.chain(measured, warmed(backend, dense, sketch, ks)))


def _ahead(only: str) -> Iterator[tuple[str, float]]:
    """Every tuned form of every kernel, for a GPU that is not here. Raises NotCompiled, BadParameter."""
    import os
    import warnings

    os.environ.pop("TRITON_INTERPRET", None)  # Triton reads it when kernels are imported, which is below
    # Triton asks every user of 3.9 to say what 3.10 shall do; nothing is decided here.
    warnings.filterwarnings("ignore", message="TRITON_DEFAULT_FP_FUSION")
    from penstock.kernels.aot.compile import compiled
    from penstock.kernels.aot.registry import configs

    wanted = [config for config in configs() if only in config.name]
    if not wanted:
        known = ", ".join(sorted({config.operator for config in configs()}))
        raise typer.BadParameter(f"no form's name has {only!r} in it; there are those of {known}", param_hint="--only")
    for config in wanted:
        done = compiled(config)
        yield config.name, done.seconds
