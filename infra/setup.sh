#!/usr/bin/env bash
# Prepares .venv and the JVM parts; called by make setup, demo and test. A second run returns at once.
#
# Everything comes from locks with hashes: infra/uv.lock.txt (the installer), infra/requirements.lock (Python) and
# infra/pom.xml (Java, checksums checked). Where from is the machine's business: pip's, uv's and Maven's own settings.
# As root on Debian or Ubuntu what is missing is installed by apt; otherwise the doctor says what to install.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly VENV=.venv STAMP=.venv/.penstock-setup LOCK=infra/requirements.lock
log=""

say() { printf '%s\n' "$*"; }

fingerprint() { # of everything that decides what is installed, and of where
  { cat infra/setup.sh infra/uv.lock.txt "$LOCK" infra/pom.xml pyproject.toml "$VENV/pyvenv.cfg"; pwd; } 2>/dev/null | sha256sum
}

complete() {
  [ -x "$VENV/bin/python" ] && [ -x "$VENV/bin/penstock" ] && [ -f infra/target/jars/.complete ] \
    && [ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$(fingerprint)" ]
}

supported() { # is "$1" a Python 3.11 or 3.12 that runs? A pyenv shim may have no version behind it.
  "$1" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' >/dev/null 2>&1
}

find_python() { # 3.11 first: it is the version that the project is developed on
  local candidate
  for candidate in ${PENSTOCK_PYTHON:+"$PENSTOCK_PYTHON"} python3.11 python3.12 python3 python \
    "${PYENV_ROOT:-${HOME:-/}/.pyenv}"/versions/3.1[12].*/bin/python; do
    if command -v "$candidate" >/dev/null 2>&1 && supported "$candidate"; then
      command -v "$candidate"
      return 0
    fi
  done
  return 1
}

java_major() {
  local java=java
  [ -n "${JAVA_HOME:-}" ] && java="$JAVA_HOME/bin/java"
  "$java" -version 2>&1 | sed -nE 's/.*version "(1\.)?([0-9]+).*/\2/p' | head -n 1
}

install_prerequisites() { # what is missing, by apt, when we may
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 || return 0
  local wanted=() major python
  major=$(java_major || true)
  # With JAVA_HOME set, a package would not be used: the doctor says so.
  if [ -z "${JAVA_HOME:-}" ] && [ "${major:-0}" -lt 17 ]; then wanted+=(openjdk-17-jre-headless); fi
  command -v mvn >/dev/null 2>&1 || [ -f infra/target/jars/.complete ] || wanted+=(maven)
  if python=$(find_python); then
    # Debian splits ensurepip off.
    "$python" -c 'import ensurepip' 2>/dev/null \
      || wanted+=("python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv")
  else
    wanted+=(python3 python3-venv)
  fi
  [ ${#wanted[@]} -gt 0 ] || return 0
  say "installing with apt: ${wanted[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq >>"$log" 2>&1 || true # a stale list may still do
  apt-get install -y -qq --no-install-recommends "${wanted[@]}" >>"$log" 2>&1 \
    || say "apt could not install all of it; the end of its log:" "$(tail -n 3 "$log")"
}

step() { # say what, run it quietly, show the end of its output when it fails
  local what=$1 began=$SECONDS
  shift
  printf '%-38s' "$what"
  if "$@" >>"$log" 2>&1; then
    say "$((SECONDS - began)) s"
  else
    say "failed; the end of $log:"
    tail -n 15 "$log" | sed 's/^/  | /'
    return 1
  fi
}

doctor() { # 0: nothing is missing; 1: something is, and it has been said
  local python
  for python in "${1:-}" python3 python; do
    if [ -n "$python" ] && command -v "$python" >/dev/null 2>&1 && "$python" -c '' 2>/dev/null; then
      say "What this machine has:"
      "$python" infra/doctor.py
      return
    fi
  done
  say "There is no Python here at all: install Python 3.11 (Debian 12: apt-get install python3.11 python3.11-venv)."
  return 1
}

failed() {
  say
  if doctor "${PYTHON:-}"; then
    say "Set-up did not finish though nothing is missing: a package index or a Maven repository is out of reach (set"
    say "pip's, uv's and Maven's proxy or mirror settings); the log above says which: $log"
  else
    say "Set-up did not finish: get what is missing, then run it again."
  fi
  exit 1
}

make_venv() {
  supported "$VENV/bin/python" && [ -x "$VENV/bin/pip" ] || "$PYTHON" -m venv --clear "$VENV"
}

install_uv() { "$VENV/bin/python" -m pip install --quiet --no-deps --require-hashes -r infra/uv.lock.txt; }

install_packages() {
  "$VENV/bin/uv" pip install --python "$VENV/bin/python" --require-hashes -r "$LOCK"
}

install_penstock() {
  "$VENV/bin/uv" pip install --python "$VENV/bin/python" --no-deps --no-build-isolation --editable .
}

complete && exit 0
mkdir -p .cache
log=.cache/setup.log
exec 9>.cache/setup.lock
if command -v flock >/dev/null 2>&1; then flock 9; fi # two at once: the second waits, then finds it done
complete && exit 0
: >"$log"

say "Setting up Penstock: once, some minutes, 6 GB of downloads at most. Log: $log"
install_prerequisites
if ! PYTHON=$(find_python); then failed; fi
if [ "$(java_major || true)" = "" ] || [ "$(java_major)" -lt 17 ]; then failed; fi
command -v mvn >/dev/null 2>&1 || [ -f infra/target/jars/.complete ] || failed
rm -f "$STAMP"
step "Python environment in $VENV" make_venv || failed
step "uv, the installer" install_uv || failed
step "Python packages, pinned by hash" install_packages || failed
step "Penstock itself, editable" install_penstock || failed
step "Kafka and Flink's connector, by Maven" "$VENV/bin/python" -m penstock.infra.local.jars || failed
fingerprint >"$STAMP"
say "Ready: $VENV/bin/penstock --help"
