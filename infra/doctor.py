"""What a machine needs to run Penstock, checked: which prerequisite is missing and how to get it.

Runs before anything is installed (`python3 infra/doctor.py`), so it imports the standard library alone and nothing
of ours, and keeps to syntax that older Pythons read: they are among the things it reports. `penstock doctor` and a
failing `make setup | demo | test` call it. It only looks, it changes nothing.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Iterable, Mapping, NamedTuple  # noqa: UP035  older Pythons read this file

GB = 1_000_000_000
PYTHONS = ((3, 11), (3, 12))
JAVA_AT_LEAST = 17
DISK_FRESH = 8 * GB  # torch and its CUDA libraries are 6.2 GB of it
DISK_INSTALLED = 1 * GB  # logs, checkpoints, Kafka's segments
MEMORY = 8 * GB
MARKER = b"PENSTOCK_STACK="  # in the environment of every process of a local stack
LOCAL_SCORERS = ("engine", "transformers")  # with a language model in the ranker's own process
SCORERS = ("fused", *LOCAL_SCORERS, "remote")
TOKENIZERS = ("tokenizer.json", "vocab.json", "tokenizer.model")  # what one is made of, the usual first
TUNINGS = "penstock-tunings.json"  # as kernels/tunings/kept.py names it
WEIGHTS_MARK = ": ranker.weights "  # in its keys, between the device and the model
UNTRAINED_MARK = "penstock_untrained.txt"  # as ranker/engine/untrained.py leaves it

# Settings that name a loopback listener of the local stack: (section, key).
ADDRESSES = (
    ("kafka", "bootstrap_servers"),
    ("redis", "url"),
    ("flink", "rest"),
    ("models", "listen"),
    ("enrich", "listen"),
    ("retrieval", "listen"),
    ("ranker", "listen"),
    ("gateway", "listen"),
)


class Check(NamedTuple):
    """One prerequisite. `remedy` is empty when it is met."""

    name: str
    ok: bool
    found: str
    needed: str
    remedy: str = ""


class Java(NamedTuple):
    """A Java launcher: `major` is None when it does not say its version; `error` why."""

    path: str
    major: int | None
    error: str = ""


# --- the machine -----------------------------------------------------------------------------------------------


def check_platform(system: str, machine: str, libc: str) -> Check:
    """Linux x86-64 with glibc: what the locked wheels (Flink, torch, Redis) are built for."""
    found = " ".join(part for part in (system, machine, libc) if part)
    ok = system == "Linux" and machine in ("x86_64", "AMD64") and libc in ("", "glibc")
    remedy = "" if ok else "use a Linux x86-64 machine with glibc (Debian, Ubuntu, Fedora, ...) or a container of one"
    return Check("platform", ok, found, "Linux x86_64, glibc", remedy)


def check_python(environ: Mapping[str, str], running: tuple[int, int]) -> Check:
    """Python 3.11 or 3.12, this one or one that set-up would find."""
    needed = "Python 3.11 or 3.12"
    if running in PYTHONS:
        return Check("python", True, f"{running[0]}.{running[1]} ({sys.executable})", needed)
    for candidate in python_candidates(environ):
        version = python_version(candidate)
        if version in PYTHONS:
            return Check("python", True, f"{version[0]}.{version[1]} ({candidate})", needed)
    return Check(
        "python",
        False,
        f"{running[0]}.{running[1]} only",
        needed,
        "install one (Debian 12: apt-get install python3.11 python3.11-venv; elsewhere: pyenv install 3.11),"
        " or name one by PENSTOCK_PYTHON=/path/to/python3.11",
    )


def python_candidates(environ: Mapping[str, str]) -> Iterable[str]:
    """Interpreters to try, the likeliest first: named, on PATH, and those pyenv keeps off the PATH."""
    if environ.get("PENSTOCK_PYTHON"):
        yield environ["PENSTOCK_PYTHON"]
    path = environ.get("PATH", "")
    for name in ("python3.11", "python3.12", "python3"):
        found = shutil.which(name, path=path)
        if found:
            yield found
    root = Path(environ.get("PYENV_ROOT") or Path(environ.get("HOME", "/")) / ".pyenv")
    for minor in (11, 12):
        for home in sorted((root / "versions").glob(f"3.{minor}.*"), reverse=True):
            yield str(home / "bin" / "python")


def python_version(path: str) -> tuple[int, int] | None:
    """(major, minor) of an interpreter that runs, else None (a pyenv shim without a version behind it)."""
    try:
        done = subprocess.run(
            [path, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    numbers = done.stdout.split()
    return (int(numbers[0]), int(numbers[1])) if done.returncode == 0 and len(numbers) == 2 else None


def check_disk(where: Path, installed: bool) -> Check:
    """Room where the virtual environment and the stack's data go."""
    here = where
    while not here.exists():
        here = here.parent
    free = shutil.disk_usage(here).free
    need = DISK_INSTALLED if installed else DISK_FRESH
    ok = free >= need
    remedy = "" if ok else f"free {_gb(need - free)} on the disk that holds {here}, or work from another disk"
    return Check("disk", ok, f"{_gb(free)} free", f"{_gb(need)} free", remedy)


def check_memory(available: int | None, held_by_stack: int) -> Check:
    """Memory this machine can still give, what a running stack already holds counted as free."""
    needed = f"{_gb(MEMORY)} free"
    if available is None:
        return Check("memory", True, "unknown: /proc/meminfo does not say", needed)
    free = available + held_by_stack
    found = f"{_gb(available)} free" + (f", {_gb(held_by_stack)} held by running stacks" if held_by_stack else "")
    ok = free >= MEMORY
    remedy = "" if ok else "end other programs, or give this machine or container more memory"
    return Check("memory", ok, found, needed, remedy)


def memory_available() -> int | None:
    """Bytes the kernel would give to new processes, the container's limit included."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    match = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    if match is None:
        return None
    available = int(match.group(1)) * 1024
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (group / "memory.max").read_text().strip(), (group / "memory.current").read_text().strip()
    except OSError:
        return available
    # A container whose host limits it: page cache counts as used there, so the true figure is a little higher.
    return min(available, int(limit) - int(used)) if limit.isdigit() else available


def memory_of_stacks() -> int:
    """Resident bytes of every process of every local stack we may look at."""
    total = 0
    page = os.sysconf("SC_PAGE_SIZE")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if MARKER in (process / "environ").read_bytes():
                total += int((process / "statm").read_text().split()[1]) * page
        except (OSError, IndexError):
            continue  # ended meanwhile, or another user's
    return total


# --- the tools -------------------------------------------------------------------------------------------------


def find_java(environ: Mapping[str, str]) -> Java | None:
    """The Java that the stack will use: JAVA_HOME's, else the one on PATH. None when there is none."""
    home = environ.get("JAVA_HOME")
    if home:
        path: str | None = str(Path(home) / "bin" / "java")
        if not os.access(str(path), os.X_OK):
            return Java(str(path), None, f"JAVA_HOME is {home}, which has no bin/java")
    else:
        path = shutil.which("java", path=environ.get("PATH", ""))
    if path is None:
        return None
    try:
        done = subprocess.run(
            [path, "-version"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            env=dict(environ),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Java(path, None, f"{path} -version failed: {error}")
    match = re.search(r'version "(\d+)(?:\.(\d+))?', done.stdout)
    if done.returncode != 0 or match is None:
        return Java(path, None, f"{path} -version said: {done.stdout.strip()[:120] or 'nothing'}")
    first, second = int(match.group(1)), match.group(2)
    return Java(path, int(second) if first == 1 and second else first)  # "1.8.0" is Java 8


def check_java(environ: Mapping[str, str]) -> Check:
    """Java 17 or newer, for Kafka and Flink."""
    needed = f"Java {JAVA_AT_LEAST} or newer"
    install = (
        "install it (Debian, Ubuntu: apt-get install openjdk-17-jre-headless; Fedora: dnf install"
        " java-17-openjdk-headless) or point JAVA_HOME at one"
    )
    java = find_java(environ)
    if java is None:
        return Check("java", False, "no java on PATH, and JAVA_HOME is not set", needed, install)
    if java.major is None:
        return Check(
            "java", False, java.error, needed, install + ("; or unset JAVA_HOME" if "JAVA_HOME" in environ else "")
        )
    if java.major < JAVA_AT_LEAST:
        return Check("java", False, f"Java {java.major} ({java.path})", needed, install)
    return Check("java", True, f"Java {java.major} ({java.path})", needed)


def check_maven(environ: Mapping[str, str], jars_present: bool) -> Check:
    """Maven fetches the JVM parts once; afterwards it is not needed."""
    path = shutil.which("mvn", path=environ.get("PATH", ""))
    if path or jars_present:
        return Check("maven", True, path or "not needed: the JVM parts are here", "Maven 3")
    return Check(
        "maven",
        False,
        "no mvn on PATH",
        "Maven 3",
        "install it (Debian, Ubuntu: apt-get install maven; Fedora: dnf install maven)",
    )


def check_docker(environ: Mapping[str, str]) -> Check:
    """Docker runs the scenarios in containers; everything else works without it, so nothing is missing here."""
    needed = "nothing; a Docker engine for the tests in containers"
    path = shutil.which("docker", path=environ.get("PATH", ""))
    if path is None:
        return Check("docker", True, "none: not needed, the tests in containers start one or are skipped", needed)
    try:
        done = subprocess.run(
            [path, "version", "--format", "{{.Server.Version}}"],
            capture_output=True,
            text=True,
            timeout=20,
            env=dict(environ),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("docker", True, f"{path} does not answer ({error}): the tests in containers are skipped", needed)
    if done.returncode != 0:
        return Check("docker", True, "no engine runs: the tests in containers start one or are skipped", needed)
    return Check("docker", True, f"engine {done.stdout.strip()}", needed)


# --- ports -----------------------------------------------------------------------------------------------------


def configured_ports(environ: Mapping[str, str], data_dir: Path) -> list[tuple[str, int]]:
    """(setting, port) of every loopback listener that the environment or a settings file names."""
    tree = _settings(environ, data_dir)
    chosen = _chosen_ports(data_dir)
    out = []
    for section, key in ADDRESSES:
        variable = f"PENSTOCK_{section}__{key}".upper()
        value = environ.get(variable) or tree.get(section, {}).get(key)
        match = re.search(r"(?:127\.0\.0\.1|localhost|\[::1\]):(\d+)", str(value or ""))
        if match and int(match.group(1)) not in chosen:
            out.append((variable if environ.get(variable) else f"{section}.{key}", int(match.group(1))))
    return out


def _chosen_ports(data_dir: Path) -> set[int]:
    """Ports that `penstock up` chose itself: it chooses others when they are taken."""
    try:
        return set(json.loads((data_dir / "run" / "ports.json").read_text())["chosen"].values())
    except (OSError, ValueError, KeyError):
        return set()  # no stack yet


def check_ports(named: Iterable[tuple[str, int]], taken: Callable[[int], bool]) -> Check:
    """Ports that settings name are free (or held by this stack itself, which the caller leaves out)."""
    named = list(named)
    busy = [f"{setting} = {port}" for setting, port in named if taken(port)]
    if busy:
        remedy = "stop what listens there (ss -ltnp shows it), or choose other ports; unset, free ones are chosen"
        return Check("ports", False, "in use: " + ", ".join(busy), "configured ports free", remedy)
    found = f"{len(named)} configured, all free" if named else "none configured: free ones are chosen"
    return Check("ports", True, found, "configured ports free")


def port_taken(port: int) -> bool:
    """Whether something listens on a loopback port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def stack_is_up(data_dir: Path) -> bool:
    """Whether a process of the stack in `data_dir` lives (its ports are then rightly in use)."""
    marker = MARKER + os.fsencode(data_dir.resolve()) + b"\0"
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if marker in (process / "environ").read_bytes() + b"\0":
                return True
        except OSError:
            continue  # ended meanwhile, or another user's
    return False


# --- the scorer ------------------------------------------------------------------------------------------------


def configured_scorer(environ: Mapping[str, str], data_dir: Path) -> tuple[str, Path | None, str]:
    """(scorer, its model's directory, its address) that the environment or a settings file names for the ranker."""
    ranker = _settings(environ, data_dir).get("ranker", {})
    remote = ranker.get("remote", {})
    scorer = environ.get("PENSTOCK_RANKER__SCORER") or ranker.get("scorer") or SCORERS[0]
    named = environ.get("PENSTOCK_RANKER__MODEL")
    # A variable is read here, a file where the ranker runs, which is the data directory.
    model = Path(named).resolve() if named else data_dir / ranker["model"] if ranker.get("model") else None
    return scorer, model, environ.get("PENSTOCK_RANKER__REMOTE__URL") or remote.get("url") or ""


def check_scorer(scorer: str, model: Path | None, url: str) -> Check:
    """The ranker can be started with this scorer: what it needs is named and is there."""
    if scorer not in SCORERS:
        return Check("scorer", False, scorer, f"one of {', '.join(SCORERS)}", "set ranker.scorer to one of them")
    if scorer == "fused":
        return Check("scorer", True, "fused", "nothing")
    if scorer == "remote":
        ok = bool(re.match(r"https?://[^/\s]", url))
        found = f"remote, {url}" if url else "remote, and no address for it"
        remedy = "" if ok else "set ranker.remote.url (PENSTOCK_RANKER__REMOTE__URL), and ranker.remote.form"
        return Check("scorer", ok, found, "a URL such as http://127.0.0.1:8000", remedy)
    any_kind = scorer == "transformers"
    needed = f"the directory of a {'causal' if any_kind else 'Qwen3'} language model, as transformers saves it"
    remedy = f"penstock up --scorer {scorer} --model DIR (ranker.model), or penstock up --scorer fused"
    if model is None:
        return Check("scorer", False, f"{scorer}, and no model for it", needed, remedy)
    wrong = _wrong_with(model, any_kind)
    if wrong:
        return Check("scorer", False, f"{scorer}, but {wrong}", needed, remedy)
    untrained = ", untrained: its scores mean nothing" if (model / UNTRAINED_MARK).is_file() else ""
    return Check("scorer", True, f"{scorer}, {model}{untrained}", needed)


def check_weights(asked: str, kept: Path, device: str) -> Check:
    """What the engine's products multiply: as asked, and of auto what was measured, by device and model."""
    if asked in ("int8", "fp8") and device == "cpu":
        remedy = "set ranker.weights to auto or plain, or ranker.device to cuda"
        return Check("weights", False, f"{asked}, and ranker.device is cpu", "a CUDA device", remedy)
    if asked != "auto":
        return Check("weights", True, asked, "nothing")
    releases = ", ".join(rf"{name} {_release(name)}(\+[^,]*)?" for name in ("torch", "triton"))
    measured = measured_weights(kept)
    here = [one for one in measured if re.search(f", {releases}(,|$)", one[0])]
    found = [f"{_chosen(entry)} for {model} on {device}" for device, model, entry in here]
    said = "; ".join(found) or "nothing measured yet"
    others = len(measured) - len(here)
    return Check("weights", True, f"auto: {said}{f' ({others} by other releases)' if others else ''}", "nothing")


def _release(package: str) -> str:
    """A pattern of what is installed here, by its metadata, which may lack the build's tag; of any, where none is."""
    from importlib import metadata  # which Python 3.7 lacks

    try:
        return re.escape(metadata.version(package).partition("+")[0])
    except metadata.PackageNotFoundError:
        return "[^,]*"


def measured_weights(kept: Path) -> list[tuple[str, str, dict[str, Any]]]:
    """(device, model, what was found), of the file that kernels/tunings/kept.py keeps; none where it cannot be read."""
    try:
        entries = json.loads(kept.read_text(encoding="utf-8"))
        named = [(*key.split(WEIGHTS_MARK, 1), entry) for key, entry in entries.items() if WEIGHTS_MARK in key]
        return [(device, model, entry) for device, model, entry in named if isinstance(entry, dict)]
    except (OSError, ValueError, AttributeError):
        return []


def _chosen(entry: Mapping[str, Any]) -> str:
    """What was taken, and of each form that was tried how many times as quick its products were, and how far off."""
    products, trials = entry.get("products") or [], entry.get("trials")
    said = []
    for form, trial in (trials if isinstance(trials, dict) else {}).items():
        try:
            gains = ", ".join(f"{name} {whole / scaled:.2f}x" for name, (whole, scaled) in trial["ms"].items())
            drift = "" if trial["drift"] is None else f", log-odds off by {trial['drift']:.3f}"
        except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError):
            continue
        said.append(f"{form}: {gains}{drift}")
    taken = f"{entry.get('form')} ({', '.join(map(str, products))})" if products else "plain"
    return f"{taken} [{'; '.join(said)}]" if said else taken


def configured_weights(environ: Mapping[str, str], data_dir: Path) -> tuple[str, Path, str]:
    """(ranker.weights, where what was measured is kept, ranker.device)."""
    ranker = _settings(environ, data_dir).get("ranker", {})
    asked = environ.get("PENSTOCK_RANKER__WEIGHTS") or ranker.get("weights")
    device = environ.get("PENSTOCK_RANKER__DEVICE") or ranker.get("device")
    cache = environ.get("TRITON_CACHE_DIR") or Path(environ.get("HOME", "/")) / ".triton" / "cache"
    return str(asked or "plain"), Path(cache) / TUNINGS, str(device or "cpu")


def check_device(named: Iterable[tuple[str, str]], driver: Path = Path("/dev/nvidiactl")) -> Check:
    """A CUDA device's driver, where some setting names one: (setting, device)."""
    wanted = [setting for setting, device in named if device.startswith("cuda")]
    if not wanted:
        return Check("device", True, "none asked for", "nothing")
    asking = f"{', '.join(wanted)} {'is' if len(wanted) == 1 else 'are'} cuda"
    if driver.exists():
        return Check("device", True, asking, "an NVIDIA driver")
    remedy = "install NVIDIA's driver, give this container the device (--gpus), or set it to cpu"
    return Check("device", False, f"{asking}, and {driver} is not here", "an NVIDIA driver", remedy)


def configured_devices(environ: Mapping[str, str], data_dir: Path) -> list[tuple[str, str]]:
    """(setting, device) of the roles that name one; the ranker's only where its scorer runs a model here."""
    tree = _settings(environ, data_dir)
    scorer = environ.get("PENSTOCK_RANKER__SCORER") or tree.get("ranker", {}).get("scorer")
    found = []
    for section in ("models", "enrich", "retrieval", *(("ranker",) if scorer in LOCAL_SCORERS else ())):
        given = environ.get(f"PENSTOCK_{section.upper()}__DEVICE") or tree.get(section, {}).get("device")
        if given:
            found.append((f"{section}.device", str(given)))
    return found


def _wrong_with(model: Path, any_kind: bool) -> str:
    """Why the directory is no model, as far as its files' names and its config tell; empty when it may be one."""
    if not model.is_dir():
        return f"{model} is not a directory"
    wanted = {"config.json": ("config.json",), "tokenizer.json": TOKENIZERS, "*.safetensors": ("*.safetensors",)}
    missing = [name for name, forms in wanted.items() if not any(any(model.glob(form)) for form in forms)]
    if missing:
        return f"{model} has no {' and no '.join(missing)}"
    try:
        kind = json.loads((model / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{model / 'config.json'} does not say its model_type"
    return "" if any_kind or kind == "qwen3" else f"{model} is of architecture {kind!r}"


def _settings(environ: Mapping[str, str], data_dir: Path) -> dict[str, Any]:
    """Sections of the settings files, the stronger's keys over the weaker's."""
    tree: dict[str, Any] = {}
    for file in (
        data_dir / "penstock.toml",
        Path(environ["PENSTOCK_CONFIG"]) if environ.get("PENSTOCK_CONFIG") else None,
    ):
        if file is not None and file.is_file():
            for section, values in _toml(file).items():
                if isinstance(values, dict):
                    tree.setdefault(section, {}).update(values)
    return tree


def _toml(path: Path) -> dict[str, Any]:
    try:
        import tomllib
    except ImportError:  # before 3.11: the python check says what to do
        return {}
    try:
        return tomllib.loads(path.read_text())
    except (OSError, ValueError):
        return {}  # `penstock` itself says where the file is wrong


# --- all of it -------------------------------------------------------------------------------------------------


def diagnose(root: Path, data_dir: Path, environ: Mapping[str, str]) -> list[Check]:
    """Every check. `root` is where the environment is (to be) installed, `data_dir` the stack's."""
    jars = (root / "infra" / "target" / "jars" / ".complete").is_file() or bool(environ.get("PENSTOCK_JARS"))
    installed = (root / ".venv" / "bin" / "penstock").is_file() or not (root / "pyproject.toml").is_file()
    ports = [] if stack_is_up(data_dir) else configured_ports(environ, data_dir)
    scorer = configured_scorer(environ, data_dir)
    checks = [
        check_platform(platform.system(), platform.machine(), platform.libc_ver()[0]),
        check_python(environ, (sys.version_info[0], sys.version_info[1])),
        check_disk(data_dir if installed else root, installed),
        check_memory(memory_available(), memory_of_stacks()),
        check_java(environ),
        check_maven(environ, jars),
        check_docker(environ),
        check_ports(ports, port_taken),
        check_scorer(*scorer),
        check_device(configured_devices(environ, data_dir)),
    ]
    return [*checks, check_weights(*configured_weights(environ, data_dir))] if scorer[0] == "engine" else checks


def as_table(checks: Iterable[Check]) -> str:
    """For people: one line a check, and under it what to do."""
    lines = []
    for check in checks:
        lines.append(f"  {'ok     ' if check.ok else 'MISSING'}  {check.name:<9} {check.found}")
        if not check.ok:
            lines.append(f"{'':21}needed: {check.needed}")
            lines.append(f"{'':21}do:     {check.remedy}")
    return "\n".join(lines)


def as_json(checks: Iterable[Check]) -> str:
    """For programs: {"ok": bool, "checks": [{name, ok, found, needed, remedy}]}."""
    checks = list(checks)
    return json.dumps({"ok": all(c.ok for c in checks), "checks": [c._asdict() for c in checks]}, indent=2)


def report(checks: Iterable[Check], as_json_text: bool) -> int:
    """Print the verdict; 0 when nothing is missing, else 1."""
    checks = list(checks)
    missing = [check.name for check in checks if not check.ok]
    if as_json_text:
        print(as_json(checks))
    else:
        print(as_table(checks))
        print(f"Missing: {', '.join(missing)}." if missing else "Everything Penstock needs is here.")
    return 1 if missing else 0


def _gb(size: int) -> str:
    return f"{size / GB:.1f} GB"


def main(arguments: list[str]) -> int:
    """`doctor.py [--json]`, for machines where Penstock is not installed yet."""
    wrong = [argument for argument in arguments if argument != "--json"]
    if wrong:
        print(f"doctor: unknown argument {wrong[0]!r}; there is --json", file=sys.stderr)
        return 2
    root = Path(__file__).resolve().parent.parent
    data_dir = Path(os.environ.get("PENSTOCK_DATA_DIR", ".penstock")).resolve()
    return report(diagnose(root, data_dir, os.environ), "--json" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
