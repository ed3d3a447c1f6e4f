"""Our code from a checkout that nobody installed: a machine with a GPU has torch, triton and numpy, and no more."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def from_checkout() -> None:
    """`penstock` is the checkout's folders, unless an installation already answers to the name."""
    if not there("penstock"):
        package = types.ModuleType("penstock")
        package.__path__ = [str(ROOT)]
        sys.modules["penstock"] = package


def silent(*names: str) -> None:
    """Libraries that code of ours only says things with (logs, metrics) do nothing where they are not installed."""
    for name in names:
        if not there(name):
            sys.modules[name] = _Silent(name)


def there(name: str) -> bool:
    """Whether the package can be imported, or stands here already for one that cannot."""
    return name in sys.modules or importlib.util.find_spec(name) is not None


class _Silent(types.ModuleType):
    """Whatever is taken from it, called or not, is itself."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # a module's own, which this one has or has not
        return self

    def __call__(self, *given: object, **named: object) -> Any:
        return self
