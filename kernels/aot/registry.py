"""All configs of all operators, found by the folders that are there."""

from __future__ import annotations

import importlib
from collections import Counter
from pathlib import Path
from types import ModuleType

from penstock.kernels.aot.config import Config

OPERATORS = Path(__file__).resolve().parents[1]  # kernels/


def operators(name: str) -> list[str]:
    """Those that have a `name`.py; aot itself is none."""
    own = Path(__file__).parent
    return sorted(path.parent.name for path in OPERATORS.glob(f"*/{name}.py") if path.parent != own)


def modules(name: str) -> dict[str, ModuleType]:
    """Of each operator that has a `name`.py, that module, by the operator's name."""
    return {folder: importlib.import_module(f"penstock.kernels.{folder}.{name}") for folder in operators(name)}


def configs(operator: str | None = None) -> tuple[Config, ...]:
    """Those of one operator, or of all; ValueError where there is no such operator, or a name is there twice."""
    found = modules("configs")
    if operator is not None and operator not in found:
        raise ValueError(f"no operator {operator!r} with configs: there are {', '.join(found) or 'none'}")
    chosen = tuple(config for name, module in found.items() if operator in (None, name) for config in module.configs())
    twice = sorted(name for name, times in Counter(config.name for config in chosen).items() if times > 1)
    if twice:
        raise ValueError(f"two configs of one name: {', '.join(twice)}; names are keys of the table and of the model")
    return chosen
