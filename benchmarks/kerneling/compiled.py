"""What the ahead-of-time suite says, as rows; and the forms of the scan that the model takes from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.kerneling import model, percolating
from benchmarks.kerneling.compiling import all_multiply_well, counted
from benchmarks.kerneling.gpu import BAD, LIKELY, Getting
from penstock.kernels.aot.check import Checked
from penstock.kernels.aot.config import Config
from penstock.kernels.aot.registry import configs
from penstock.kernels.filtered_topk.run import room_for, started_for

SCORING = "filtered_topk/scan/"  # how the configs that score are called
SEEDING = "filtered_topk/seed/"
RANKING = "filtered_topk/rank"
MODELLED = (16, 64)  # queries of a batch
ROWS, WIDTH = 10_000_000, 256


def rows(checked: Sequence[Checked]) -> dict[str, float]:
    """Of aot/."""
    scoring = [one for one in checked if one.name.startswith((SCORING, SEEDING))]
    return {**counted(checked), "aot/filtered_topk/tensor_core": float(all_multiply_well(scoring))}


def form(config: Config, checked: Checked) -> model.Form:
    """What the model takes of a compiled scan. Its constants are the kernel's own: BN, TILE, RUN and the like."""
    found = checked.figures
    if found is None:
        raise ValueError(f"{config.name} did not compile: {'; '.join(checked.failures)}")
    tile = int(str(config.constexprs["TILE"]))
    gate = int(str(config.constexprs.get("GATE", 1)))
    return model.Form(
        warps=found.warps,
        ctas=min(found.ctas_per_sm, config.expects.ctas_per_sm),  # as many as are launched
        hot=found.hot,
        barriers=found.main.barriers,
        gate=found.beside,
        flight=found.main.async_copies.get(128, 0) * 16 * found.warps * 32,
        tile_rows=tile,
        run=int(str(config.constexprs["RUN"])),
        gate_rows=gate * model.BLOCK,
        waits=bool(found.main.loads),
    )


def predictions(checked: Sequence[Checked], getting: Getting = LIKELY) -> dict[int, model.Prediction]:
    """By queries of a batch: those of MODELLED whose scan and seed were compiled."""
    by_name = {one.name: one for one in checked}
    found = {}
    for batch in MODELLED:
        parts = [_of(prefix, batch) for prefix in (SEEDING, SCORING)]
        if all(part is not None and part.name in by_name for part in parts):
            seed, scan = (form(part, by_name[part.name]) for part in parts if part is not None)
            work = model.Work(ROWS, WIDTH, batch)
            room = room_for(work.k, work.rows)
            found[batch] = model.filtered_topk(
                work, seed, scan, _ranking(by_name), room, started_for(work.k, room), got=getting
            )
    return found


def predicted(checked: Sequence[Checked]) -> dict[str, float]:
    """Of model/."""
    return {f"model/filtered_topk/B{batch}": found.share for batch, found in predictions(checked).items()}


def _ranking(by_name: dict[str, Checked]) -> model.Ranking:
    config = next(one for one in configs("filtered_topk") if one.name == RANKING)
    found = by_name[RANKING].figures
    if found is None:
        raise ValueError(f"{RANKING} did not compile: {'; '.join(by_name[RANKING].failures)}")
    return model.Ranking(
        rows=int(str(config.constexprs["ROWS"])),
        others=int(str(config.constexprs["OTHERS"])),
        warps=found.warps,
        ctas=found.ctas_per_sm,
        hot=found.hot,
        exact=found.main.instructions,
    )


def _of(prefix: str, batch: int) -> Config | None:
    """The config of a dense scan of WIDTH values for so many queries, without terms."""
    wanted = f"{prefix}d{WIDTH}/b{batch}/t0"
    return next((config for config in configs("filtered_topk") if config.name == wanted), None)


def model_notes(checked: Sequence[Checked]) -> dict[str, Any]:
    """Each launch of each prediction, with the likely values of gpu.py and with the bad ones."""
    out: dict[str, Any] = {}
    for name, getting in (("likely", LIKELY), ("bad", BAD)):
        for batch, prediction in predictions(checked, getting).items():
            out.setdefault(f"B{batch}", {})[name] = {
                "share": round(prediction.share, 4),
                "ms": round(prediction.seconds * 1e3, 4),
                "needed_bytes": prediction.work.needed,
                "launches": {
                    launch.name: {
                        "us": round(launch.seconds * 1e6, 2),
                        "bound": launch.bound,
                        **{part: round(seconds * 1e6, 2) for part, seconds in launch.parts.items()},
                    }
                    for launch in prediction.launches
                },
            }
    out["percolate"] = percolating.notes(checked)
    return out
