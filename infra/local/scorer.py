"""The scorer of a stack's ranker: kept in penstock.toml, checked before a ranker starts and after."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from penstock.infra import doctor
from penstock.infra.local import provision
from penstock.infra.local.errors import StackError
from penstock.infra.local.layout import Layout
from penstock.infra.scorers import WITH_MODEL, Choice, Running, directory_of
from penstock.infra.settings import Settings


@contextlib.contextmanager
def remembered(layout: Layout, choice: Choice | None) -> Iterator[bool]:
    """Keeps the choice in penstock.toml; what stood there comes back when what is done with it fails.

    Gives whether anything changed. What the choice says nothing of stays as it is.
    """
    if choice is None:
        yield False
        return
    before = provision.read_settings(layout).get("ranker", {})
    wanted = _settings_of(choice, before)
    changed = any(before.get(key) != value for key, value in wanted.items())
    if changed:
        _write(layout, wanted)
    try:
        yield changed
    except BaseException:
        if changed:
            _write(layout, {key: before.get(key) for key in wanted})
        raise


def require_fit(layout: Layout, settings: Settings) -> None:
    """Raises StackError, saying what to do, when a ranker could not start with the scorer that settings name."""
    ranker = settings.ranker
    fit = doctor.check_scorer(ranker.scorer, directory_of(ranker, layout.root), ranker.remote.url)
    if not fit.ok:
        raise StackError(f"the ranker's scorer is {fit.found}; needed: {fit.needed}. To do: {fit.remedy}")


def require_in_force(layout: Layout, settings: Settings, choice: Choice) -> None:
    """Raises StackError when something stronger than penstock.toml names another scorer or model."""
    model = directory_of(settings.ranker, layout.root)
    if settings.ranker.scorer == choice.scorer and choice.model in (None, model):
        return
    other = settings.ranker.scorer
    raise StackError(
        f"--scorer {choice.scorer} was asked for, but PENSTOCK_RANKER__ variables, or the file that PENSTOCK_CONFIG "
        f"names, say {other}{f' with {model}' if other in WITH_MODEL else ''} and come first: unset them, or leave "
        "--scorer out"
    )


def require_running(running: Running | None, choice: Choice) -> None:
    """Raises StackError when the ranker runs another one after all."""
    if running is None or not running.is_(choice):
        raise StackError(
            f"the ranker runs {running or 'nothing that answers'}, though --scorer {choice.scorer} was asked for: the "
            "stack was started with another in its environment; `penstock down`, then `penstock up` again"
        )


def _settings_of(choice: Choice, before: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of [ranker] that the choice sets."""
    wanted: dict[str, Any] = {"scorer": choice.scorer}
    if choice.model is not None:
        wanted["model"] = str(choice.model)
    if choice.remote:
        wanted["remote"] = {**before.get("remote", {}), **choice.remote}
    return wanted


def _write(layout: Layout, ranker: Mapping[str, Any]) -> None:
    """Sets these keys of [ranker]; None: without it."""
    tree = provision.read_settings(layout)
    section = {**tree.get("ranker", {}), **ranker}
    provision.write_settings(
        layout, {**tree, "ranker": {key: value for key, value in section.items() if value is not None}}
    )
