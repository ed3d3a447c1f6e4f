"""Which scorer a ranker runs: as somebody asks for it on the command line, and as a running ranker says of itself.

A choice is completed from the settings in force (the directory in `ranker.model`, where `ranker.remote` is) and
checked before anything is started. For the engine without a model there is an untrained one, written once below the
data directory: it shows the engine at work and how fast it is, and everything that shows its scores says what it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from penstock.infra import doctor
from penstock.infra.settings import RankerSettings, SettingsError
from penstock.ranker.client import RankerClient
from penstock.schemas.grpc_avro import CallError
from penstock.schemas.rpc import RoleStatus

STATUS_S = 5.0  # seconds that a ranker has to say what it runs
WITH_MODEL = ("engine", "transformers")
UNTRAINED = "the model is untrained (random weights): it shows the engine at work and how fast, not better results"
_REMOTE = (
    "--scorer remote asks a server that settings name: expected its address in ranker.remote.url and what it speaks in "
    "ranker.remote.form, such as PENSTOCK_RANKER__REMOTE__URL=http://127.0.0.1:8000 PENSTOCK_RANKER__REMOTE__FORM=tei"
)


@dataclass(frozen=True, slots=True)
class Choice:
    """What is asked for. `model` None: whatever settings say; `remote`: the settings to keep, without secrets."""

    scorer: str
    model: Path | None = None
    remote: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Running:
    """What a ranker says that it runs. `model`: a directory, or where the remote one is; empty: none."""

    scorer: str
    model: str
    untrained: bool
    model_id: str

    @classmethod
    def of(cls, status: RoleStatus) -> Running:
        texts = status.texts
        untrained = texts.get("untrained", "") == "yes"
        return cls(texts.get("scorer", ""), texts.get("model", ""), untrained, texts.get("model_id", ""))

    def is_(self, choice: Choice) -> bool:
        """Whether this is what was asked for."""
        return self.scorer == choice.scorer and choice.model in (None, Path(self.model))

    def __str__(self) -> str:
        """In a few words: 'engine, model qwen3-0.6b'."""
        if not self.model:
            return self.scorer or self.model_id
        name = self.model if self.scorer == "remote" else Path(self.model).name
        return f"{self.scorer}, model {name}{': random weights' if self.untrained else ''}"


def asked(scorer: str | None, model: Path | None) -> Choice | None:
    """The choice that these options make; None: none was made. Raises SettingsError."""
    if model is not None and scorer not in WITH_MODEL:
        given = "" if scorer is None else f", not with --scorer {scorer}"
        raise SettingsError(f"--model {model} goes with --scorer engine or --scorer transformers{given}")
    return None if scorer is None else Choice(scorer, model if model is None else model.resolve())


def completed(choice: Choice, ranker: RankerSettings, root: Path, models: Path, tell: Callable[[str], None]) -> Choice:
    """The choice with all that a ranker needs, from the settings in force of the stack in `root`. Checked.

    An untrained model goes below `models`; `tell` hears of it. Raises SettingsError, UnfitScorer.
    """
    if choice.scorer == "remote":
        return _with_remote(choice, ranker)
    if choice.scorer not in WITH_MODEL:
        return choice
    model = choice.model or directory_of(ranker, root)
    if model is None:
        if choice.scorer != "engine":
            raise SettingsError("--scorer transformers needs --model DIR, the directory of a causal language model")
        model = untrained_model(models)
    check = doctor.check_scorer(choice.scorer, model, "")
    if not check.ok:
        raise SettingsError(f"--scorer {choice.scorer}: {check.found}; needed: {check.needed}")
    if (model / doctor.UNTRAINED_MARK).is_file():
        tell(f"{model.name}: {UNTRAINED}" if choice.model else UNTRAINED)
    return replace(choice, model=model)


def directory_of(ranker: RankerSettings, root: Path) -> Path | None:
    """Where `ranker.model` is: relative to here where a variable names it, else to the stack, where its ranker runs."""
    if ranker.model is None:
        return None
    return (Path.cwd() if "PENSTOCK_RANKER__MODEL" in os.environ else root) / ranker.model


def running_at(address: str) -> Running | None:
    """What the ranker at this address says that it runs; None while none answers."""
    with closing(RankerClient(address)) as ranker:
        try:
            return Running.of(ranker.status(STATUS_S))
        except CallError:
            return None


def untrained_model(models: Path) -> Path:
    """A small random model below `models`, made of the sample's texts, written once."""
    from penstock.infra.demo import sample
    from penstock.ranker.engine import untrained

    directory = models / "untrained"
    if untrained.is_untrained(directory):
        return directory
    postings = sample.shipped_postings(sample.REFERENCE_MS).postings
    try:
        texts = [f"{posting.title}\n{posting.description}" for posting in postings]
        untrained.write(directory, texts, untrained.TINY)
    except FileExistsError:
        if not untrained.is_untrained(directory):  # else somebody else has just written the same
            raise
    return directory


def _with_remote(choice: Choice, ranker: RankerSettings) -> Choice:
    from penstock.ranker.backends.load import remote_options

    if not ranker.remote.url:
        raise SettingsError(_REMOTE)
    remote_options(ranker.remote)  # what does not go together is told now, not when the ranker starts
    kept = ranker.remote.model_dump(mode="json", exclude={"api_key"}, exclude_unset=True, exclude_none=True)
    return replace(choice, remote=kept)
