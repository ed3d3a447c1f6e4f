"""The house keeps its walls: who may import whom, and what must stay light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDERS = ("schemas", "kernels", "retrieval", "ranker", "jobs", "infra")
# What everybody may import of infra.
OPEN = ("penstock.infra.settings", "penstock.infra.telemetry", "penstock.infra.tracing")
ALLOWED = {
    "schemas": ("penstock.schemas",),
    "kernels": ("penstock.kernels",),
    "retrieval": ("penstock.retrieval", "penstock.schemas", "penstock.kernels", *OPEN),
    "ranker": ("penstock.ranker", "penstock.schemas", "penstock.kernels", "penstock.retrieval.client", *OPEN),
    "jobs": ("penstock.jobs", "penstock.schemas", "penstock.retrieval.client", *OPEN),
    "infra": ("penstock",),
}
HEAVY = {"torch", "transformers", "triton"}


def imports(source: str) -> Iterator[str]:
    """Every module a file imports, `from a import b` as both a and a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(module: str, allowed: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in allowed)


def breaches(folder: str, source: str) -> list[str]:
    """The imports of ours that a file of `folder` may not have."""
    return [name for name in imports(source) if within(name, ("penstock",)) and not within(name, ALLOWED[folder])]


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_point_the_right_way(folder, request):
    found = {
        str(path): wrong
        for path in (request.config.rootpath / folder).rglob("*.py")
        if (wrong := breaches(folder, path.read_text(encoding="utf-8")))
    }
    assert not found


@pytest.mark.parametrize(
    ("folder", "line"),
    [
        ("ranker", "from penstock.retrieval.store import store"),
        ("jobs", "import penstock.ranker.server"),
        ("schemas", "from penstock.infra import settings"),
        ("retrieval", "from penstock.infra.local import stack"),
    ],
)
def test_a_wrong_import_is_seen(folder, line):
    assert breaches(folder, line)


def test_jobs_never_name_a_model_library(request):
    for path in (request.config.rootpath / "jobs").rglob("*.py"):
        assert not {name.split(".")[0] for name in imports(path.read_text(encoding="utf-8"))} & HEAVY, path


@pytest.mark.parametrize(
    "module", ["penstock.jobs.alerts", "penstock.jobs.postings", "penstock.jobs.queries", "penstock.infra.cli.main"]
)
def test_light_processes_stay_light(module):
    """Nothing on the way of these imports pulls in a model library, not even through another module."""
    script = f"import sys, {module}; print(*sorted({HEAVY!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_every_package_is_in_the_wheel(request):
    """pyproject's list is by hand, so a new folder that is forgotten there must fail here and not at a user's."""
    import tomllib

    root: Path = request.config.rootpath
    listed = set(tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    present = {
        "penstock." + ".".join(path.parent.relative_to(root).parts)
        for folder in FOLDERS
        for path in (root / folder).rglob("*.py")
        if "target" not in path.parts
    }
    # penstock.kernels has no module of its own: it is listed so that an editable install finds its folders.
    assert listed == present | {"penstock.kernels"}
