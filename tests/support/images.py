"""The images of the container fixture: public ones where a registry is in reach, else stand-ins, and ours on top.

Ours carry a hash of everything they are built from as tag, so that a run whose inputs did not change builds nothing.
Names in the environment (PENSTOCK_IMAGE_KAFKA and the others of the compose file) are taken at their word.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import compose_file
import standins
from standins import ROOT

OURS = ("PENSTOCK_IMAGE_ROLES", "PENSTOCK_IMAGE_FLINK", "PENSTOCK_IMAGE_ROLES_CUDA")
REGISTRY_TIMEOUT = 30.0  # seconds to find out whether a registry is in reach


class BuildFailed(Exception):
    """An image of ours does not build here: a fault of this tree, and never a reason to skip."""


def resolve(say: Callable[[str], None]) -> dict[str, str]:
    """Every image variable of the compose file, each naming an image that is here. Raises CannotBuild, BuildFailed."""
    names = {key: name for key, name in compose_file.defaults().items() if key.startswith("PENSTOCK_IMAGE_")}
    given = {key: os.environ[key] for key in names if os.environ.get(key)}
    images = dict(given)
    missing = {key for key in names if key not in OURS and key not in given}
    if all(standins.exists(names[key]) for key in missing) or registry_reachable(names["PENSTOCK_IMAGE_REDIS"]):
        for key in sorted(missing):
            if not standins.exists(names[key]):
                say(f"pulling {names[key]}")
                standins.run("docker", "pull", "-q", names[key])
            images[key] = names[key]
    else:
        say("no image registry in reach: stand-ins from Debian packages")
        images |= standins.build(missing, say)
    for key, name in (("PENSTOCK_IMAGE_FLINK", "flink"), ("PENSTOCK_IMAGE_ROLES", "roles")):
        if key not in given:
            images[key] = build(name, images, say)
    images.setdefault("PENSTOCK_IMAGE_ROLES_CUDA", images["PENSTOCK_IMAGE_ROLES"])
    return images


def registry_reachable(image: str) -> bool:
    """Whether the engine can pull; it is asked to, for an image that the fixture wants anyway."""
    try:
        done = subprocess.run(
            ["docker", "pull", "-q", image], capture_output=True, check=False, timeout=REGISTRY_TIMEOUT
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def build(name: str, bases: Mapping[str, str], say: Callable[[str], None]) -> str:
    """Our image `name`, from infra/compose/<name>.Dockerfile and this tree."""
    recipe = f"infra/compose/{name}.Dockerfile"
    files = sorted(context())
    arguments = {key: value for key, value in bases.items() if key in (ROOT / recipe).read_text()}
    digest = hashlib.sha256(repr(sorted(arguments.items())).encode())
    for path in files:
        digest.update(str(path).encode() + b"\0" + (ROOT / path).read_bytes() + b"\0")
    tag = f"penstock-{name}:{digest.hexdigest()[:12]}"
    if not standins.exists(tag):
        say(f"building {tag}")
        words = [word for pair in arguments.items() for word in ("--build-arg", "=".join(pair))]
        done = subprocess.run(
            ["docker", "build", "-q", "--force-rm", "-t", tag, "-f", recipe, *words, "-"],
            input=_archive(files),
            capture_output=True,
            check=False,
            env={**os.environ, "DOCKER_BUILDKIT": "0"},
        )
        if done.returncode != 0:
            raise BuildFailed(f"{recipe} does not build:\n{(done.stdout + done.stderr).decode()[-3000:]}")
        standins.forget_others(f"penstock-{name}", tag)
        standins.run("docker", "image", "prune", "-f", "--filter", f"label=penstock.image={name}")
    return tag


def context() -> Iterator[Path]:
    """The files that .dockerignore lets into a build, relative to the repository."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    wanted = [rule[1:] for rule in rules if rule.startswith("!")]
    unwanted = {rule for rule in rules if not rule.startswith(("!", "*"))}
    for rule in wanted:
        top = ROOT / rule
        for path in [top] if top.is_file() else top.rglob("*"):
            relative = path.relative_to(ROOT)
            hidden = unwanted & {str(parent) for parent in relative.parents}
            if path.is_file() and not hidden and "__pycache__" not in relative.parts:
                yield relative


def _archive(files: list[Path]) -> bytes:
    """A tar of the files, equal for equal content: layers are then found again."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for path in files:
            entry = archive.gettarinfo(ROOT / path, str(path))
            entry.uid = entry.gid = entry.mtime = 0
            entry.uname = entry.gname = ""
            with (ROOT / path).open("rb") as content:
                archive.addfile(entry, content)
    return out.getvalue()
