"""A stack of trivial parts on the real machinery: real supervisord, real launcher, real processes, no Kafka or Flink.

Run as a program it brings the stack up, as `penstock up` does: `python trivial_stack.py DATA_DIR`, where the
roof never becomes healthy. A part is healthy once its process has written its pid.
"""

import json
import sys
import threading
from pathlib import Path

from penstock.infra.local import config, processes, programs
from penstock.infra.local.bringup import Actions, BringUp
from penstock.infra.local.health import Health
from penstock.infra.local.parts import Kind, Part
from penstock.infra.local.stack import Stack

PARTS = (
    Part("ground", "waits for nobody", deadline=30, stop_wait=3, outlives=True),
    Part("wall", "waits for ground", after=("ground",), deadline=30, stop_wait=3),
    Part("paint", "a step", Kind.STEP, after=("wall",), deadline=30),
    Part("roof", "has a child of its own", after=("paint",), deadline=30, stop_wait=3),
)
# The file appears with the pid in it: a reader never finds it empty.
LIVE = (
    "import os, pathlib, signal; written = pathlib.Path({pid!r} + '.new'); "
    "written.write_text(str(os.getpid())); written.replace({pid!r}); signal.pause()"
)
WITH_CHILD = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}]); " + LIVE
BROKEN = "import sys; sys.exit('the beam is cracked')"


class FileProbe:
    """Healthy: the live process that supervisord knows has written its pid."""

    def __init__(self, stack):
        self.stack = stack

    def check(self, part, timeout=3.0):
        if part.kind is Kind.STEP:
            done = (self.stack.layout.root / part.name).is_file()
            return Health(done, "painted" if done else "bare")
        written = self.stack.pid_file(part.name)
        pid = self.stack._supervisor().process(part.name).pid
        return Health(pid > 0 and written.is_file() and written.read_text() == str(pid), "")


class TrivialStack(Stack):
    """`broken`: the name of a part that ends at once. `hold`: a part that never becomes healthy."""

    parts = PARTS

    def __init__(self, data_dir, broken="", hold=""):
        super().__init__(data_dir)
        self.broken, self.hold = broken, hold

    def pid_file(self, name):
        return self.layout.root / f"{name}.pid"

    def _script(self, name):
        if name == self.broken:
            return BROKEN
        pid = str(self.pid_file("nowhere" if name == self.hold else name))
        if name == "roof":
            return WITH_CHILD.format(child=LIVE.format(pid=str(self.pid_file("child"))), pid=pid)
        return LIVE.format(pid=pid)

    def _prepare(self, fresh, say):
        layout = self.layout
        if fresh:
            processes.sweep(layout.root)
            layout.make()
            kept = [part for part in self.parts if part.kind is Kind.PROCESS]
            commands = {part.name: programs.launcher(layout, part.name) for part in kept}
            config.write(layout.supervisor_conf, config.supervisord_conf(layout, kept, commands))
        for part in self.parts:
            argv = [sys.executable, "-c", self._script(part.name)]
            plan = {"part": part.name, "stack": str(layout.root), "argv": argv, "env": {}}
            config.write(layout.launch / f"{part.name}.json", json.dumps({**plan, "has_children": part.name == "roof"}))
        if fresh:
            self._supervisor().start(programs.environment(layout))
        actions = Actions(
            prepare=lambda part: None,
            create_topics=lambda: (layout.root / "paint").write_text("white") and [],
            submit=lambda job, cancelled: None,
            log_tail=self._log_tail,
            log_path=layout.log,
        )
        return BringUp(self.parts, self._supervisor(), FileProbe(self), self._record, self.ports(), actions, say)


if __name__ == "__main__":
    assert threading.current_thread() is threading.main_thread()
    stack = TrivialStack(Path(sys.argv[1]), hold="roof")
    try:
        stack.up(lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        sys.exit(130)
