"""Stand-ins for public images, where no image registry is in reach: Debian packages, our jars, our locked wheels.

One root file system from the machine's own Debian sources (mmdebstrap) is the base of all. The roles' and Flink's bases
carry the packages of their lock besides, so that our Dockerfiles find nothing left to fetch. Every image's tag is a
hash of what it was made from; a second run finds it. Needs root, Debian or Ubuntu, and apt.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "tests" / "e2e" / "images"
COMPOSE = ROOT / "infra" / "compose"
CACHE = ROOT / ".cache" / "images"
# The interpreter's shared library is for Flink, which may run Python inside its JVM.
PACKAGES = ("openjdk-17-jre-headless", "python3", "?name(^libpython3.[0-9]+$)", "redis-server")
REPOSITORY = "penstock-standin"

Say = Callable[[str], None]


class CannotBuild(Exception):
    """No stand-ins on this machine: says why and what to do."""


def build(wanted: set[str], say: Say) -> dict[str, str]:
    """Variable of the compose file -> stand-in image, for each of `wanted`. Raises CannotBuild."""
    made: dict[str, str] = {}
    base = _base(say)
    if "PENSTOCK_IMAGE_KAFKA" in wanted:
        made["PENSTOCK_IMAGE_KAFKA"] = _from_recipe("kafka", base, "kafka", say)
    if "PENSTOCK_IMAGE_REDIS" in wanted:
        made["PENSTOCK_IMAGE_REDIS"] = _from_recipe("redis", base, None, say)
    if "PENSTOCK_IMAGE_MAVEN" in wanted:
        made["PENSTOCK_IMAGE_MAVEN"] = _from_recipe("maven", base, "flink", say)
    if "PENSTOCK_IMAGE_FLINK_BASE" in wanted:
        made["PENSTOCK_IMAGE_FLINK_BASE"] = _with_packages("flink", base, say)
    if "PENSTOCK_IMAGE_ROLES_BASE" in wanted:
        made["PENSTOCK_IMAGE_ROLES_BASE"] = _with_packages("roles", base, say)
    return made


def _base(say: Say) -> str:
    release = platform.freedesktop_os_release()
    codename = release.get("VERSION_CODENAME", "")
    tag = image_tag("base", inspect.getsource(_base), release["ID"], codename, *PACKAGES)
    if exists(tag) and _rootfs(tag).is_dir():
        return tag
    if os.getuid() != 0 or not shutil.which("mmdebstrap"):
        raise CannotBuild("stand-ins for public images need root and mmdebstrap (Debian: apt-get install mmdebstrap)")
    say(f"a base image from {codename}'s packages")
    targets = run("apt-get", "indextargets", "--format", "$(ORIGIN)|deb $(REPO_URI) $(RELEASE) $(COMPONENT)",
                  "Created-By: Packages")  # fmt: skip
    sources = [line.partition("|")[2] for line in targets.splitlines() if line.split("|")[0] in ("Debian", "Ubuntu")]
    if not sources:
        raise CannotBuild("apt knows no source of Debian's or Ubuntu's own: run apt-get update")
    shutil.rmtree(CACHE, ignore_errors=True)
    CACHE.mkdir(parents=True)
    fresh = CACHE / "fresh"
    run("mmdebstrap", "--quiet", "--format=directory", "--variant=minbase", f"--include={','.join(PACKAGES)}",
        "--dpkgopt=path-exclude=/usr/share/doc/*", '--setup-hook=mkdir -p "$1"/usr/share/man/man1',
        '--aptopt=Apt::Install-Recommends "false"', codename, fresh, given="\n".join(sources))  # fmt: skip
    _import(tag, f"tar -C {fresh} --exclude=./dev/* -c .")
    fresh.rename(_rootfs(tag))  # last: a base without it is made anew
    forget_others(f"{REPOSITORY}-base", tag)
    return tag


def _from_recipe(name: str, base: str, jars: str | None, say: Say) -> str:
    """An image of RECIPES, with a folder of the JVM parts in its build context."""
    folder = ROOT / "infra" / "target" / "jars"
    files = [RECIPES / f"{name}.Dockerfile", *RECIPES.glob(f"{name}.sh")]
    jar_names = sorted(path.name for path in (folder / jars).glob("*.jar")) if jars else []
    tag = image_tag(name, base, *jar_names, *(path.read_text() for path in files))
    if not exists(tag):
        say(f"a stand-in for {name}")
        context = ["-C", str(RECIPES), *(path.name for path in files)]
        if jars:
            context += ["-C", str(folder), jars]
        archive = subprocess.Popen(["tar", "-c", *context], stdout=subprocess.PIPE)
        run("docker", "build", "-q", "-t", tag, "-f", f"{name}.Dockerfile", "--build-arg", f"BASE={base}", "-",
            stdin=archive)  # fmt: skip
        forget_others(f"{REPOSITORY}-{name}", tag)
    return tag


def _with_packages(name: str, base: str, say: Say) -> str:
    """The base with /opt/penstock, an environment that holds the packages of a lock."""
    lock, pruner = COMPOSE / f"{name}.lock", COMPOSE / "prune.py"
    tag = image_tag(name, inspect.getsource(_with_packages), base, lock.read_text(), pruner.read_text())
    if exists(tag):
        return tag
    say(f"a base image with the packages of {name}.lock")
    python = (_rootfs(base) / "usr" / "bin" / "python3").readlink().name
    folder = CACHE / f"{name}-packages"
    shutil.rmtree(folder, ignore_errors=True)
    home = folder / "opt" / "penstock"
    site = home / "lib" / python / "site-packages"
    (home / "bin").mkdir(parents=True)
    for link, target in (("python3", "/usr/bin/python3"), ("python", "python3")):
        (home / "bin" / link).symlink_to(target)
    (home / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    # Links into uv's cache: nothing is copied, and what set-up fetched is not fetched again.
    run(sys.executable, "-m", "uv", "pip", "install", "-q", "--python", sys.executable, "--target", site,
        "--python-version", python.removeprefix("python"), "--require-hashes", "-r", lock)  # fmt: skip
    if name == "roles" and python == f"python{sys.version_info[0]}.{sys.version_info[1]}":
        run(sys.executable, "-I", pruner, site)
    _import(tag, f"tar -C {_rootfs(base)} --exclude=./dev/* --exclude=./opt -c . -C {folder} opt")
    shutil.rmtree(folder)
    forget_others(f"{REPOSITORY}-{name}", tag)
    return tag


def _rootfs(base: str) -> Path:
    return CACHE / f"rootfs-{base.partition(':')[2]}"


def _import(tag: str, tar: str) -> None:
    run("bash", "-o", "pipefail", "-c", f"{tar} | docker import -c 'ENV LANG=C.UTF-8' - {tag}")


# --- images by content -------------------------------------------------------------------------------------------


def image_tag(name: str, *inputs: str) -> str:
    """penstock-standin-<name>:<hash of the inputs>."""
    digest = hashlib.sha256("\0".join(inputs).encode()).hexdigest()
    return f"{REPOSITORY}-{name}:{digest[:12]}"


def exists(image: str) -> bool:
    return subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False).returncode == 0


def forget_others(repository: str, kept: str) -> None:
    """Remove a repository's images but one; those that a container uses stay."""
    listed = run("docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}", repository).split()
    for image in set(listed) - {kept}:
        subprocess.run(["docker", "image", "rm", image], capture_output=True, check=False)


def run(*command: str | Path, given: str | None = None, stdin: subprocess.Popen[bytes] | None = None) -> str:
    """A command's output. Raises CannotBuild with the end of what it said."""
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        check=False,
        **({"stdin": stdin.stdout} if stdin else {"input": given} if given else {"stdin": subprocess.DEVNULL}),
        # The classic builder, which every engine has.
        env={**os.environ, "DOCKER_BUILDKIT": "0", "DEBIAN_FRONTEND": "noninteractive"},
    )
    if done.returncode != 0:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise CannotBuild(f"{' '.join(str(word) for word in command[:4])} … ended with {done.returncode}:\n{said}")
    return done.stdout
