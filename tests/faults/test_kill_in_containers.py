"""The broker and the TaskManager, killed in their containers in the middle of the demo: nothing lost, nothing wrong."""

import pytest
from demo_under_fault import survives

pytestmark = pytest.mark.installation("containers")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("victim", ["taskmanager", "kafka"])
def test_nothing_is_lost_and_nothing_is_wrong(victim, machinery, system, tmp_path):
    def killed_and_healed():
        killed = machinery.lives(victim)
        machinery.kill(victim)
        assert machinery.lives(victim) == []
        machinery.heal()
        assert machinery.lives(victim) not in ([], killed)

    survives(killed_and_healed, system, machinery.environment(), tmp_path, "--on-configured")
