#!/usr/bin/env bash
# A Docker engine for the container scenarios.
#   infra/engine.sh run COMMAND...   make sure that one answers, run COMMAND, stop the engine if this started it
#   infra/engine.sh start | stop     the same by hand
# One that answers is used as it is. Otherwise, as root on Debian or Ubuntu, what is missing is installed by apt and
# dockerd started, with its process id in .cache/. Where that cannot be, it says why, and COMMAND runs all the same:
# its tests report themselves skipped. PENSTOCK_TEST_ENGINE=none leaves the machine as it is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly PIDFILE=$PWD/.cache/dockerd.pid LOG=$PWD/.cache/dockerd.log
started=

say() { printf '%s\n' "$*" >&2; }

answers() { timeout 20 docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

install_missing() { # docker.io, and what the stand-ins for public images are made with
  local wanted=()
  command -v dockerd >/dev/null 2>&1 || wanted+=(docker.io iptables)
  command -v docker >/dev/null 2>&1 || wanted+=(docker.io)
  command -v mmdebstrap >/dev/null 2>&1 || wanted+=(mmdebstrap)
  [ ${#wanted[@]} -gt 0 ] || return 0
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 || return 1
  say "installing with apt: ${wanted[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq >>"$LOG" 2>&1 || true # a stale list may still do
  apt-get install -y -qq --no-install-recommends "${wanted[@]}" >>"$LOG" 2>&1 || return 1
  # Newer releases split the command off.
  command -v docker >/dev/null 2>&1 || apt-get install -y -qq --no-install-recommends docker-cli >>"$LOG" 2>&1
}

start() {
  mkdir -p .cache
  if answers; then
    install_missing || true # stand-ins may not be needed
    return 0
  fi
  if [ "${PENSTOCK_TEST_ENGINE:-}" = none ]; then
    say "no Docker engine answers, and PENSTOCK_TEST_ENGINE=none says to start none"
    return 1
  fi
  if [ "$(id -u)" != 0 ]; then
    say "no Docker engine answers, and only root may start one"
    return 1
  fi
  if ! install_missing; then
    say "no Docker engine answers, and apt could not install one; the end of $LOG:"
    tail -n 3 "$LOG" >&2 || true
    return 1
  fi
  answers && return 0 # the package started its own
  say "starting dockerd; its log: $LOG"
  started=yes
  setsid dockerd --pidfile "$PIDFILE" >>"$LOG" 2>&1 </dev/null 9>&- &
  local waited
  for waited in $(seq 60); do
    answers && return 0
    kill -0 $! 2>/dev/null || break
    sleep 0.5
  done
  say "dockerd does not come up here; the end of $LOG:"
  tail -n 3 "$LOG" >&2
  stop
  return 1
}

stop() { # only one that we started
  [ -f "$PIDFILE" ] || return 0
  local pid waited
  pid=$(cat "$PIDFILE")
  if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = dockerd ]; then
    kill "$pid"
    for waited in $(seq 60); do
      [ -d "/proc/$pid" ] || break
      sleep 0.5
    done
  fi
  rm -f "$PIDFILE"
}

case "${1:-}" in
  start) start ;;
  stop) stop ;;
  run)
    shift
    trap '[ -z "$started" ] || stop' EXIT # after Ctrl-C too
    start || true
    status=0
    "$@" || status=$?
    exit "$status"
    ;;
  *)
    say "expected run COMMAND..., start or stop"
    exit 2
    ;;
esac
