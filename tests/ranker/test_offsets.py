"""Which offsets may be committed when records finish in any order."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from penstock.ranker.offsets import OffsetTracker


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=40), st.randoms())
def test_only_what_has_finished_with_all_before_it_is_committed(started, random):
    tracker, offsets, done, committed = OffsetTracker(), Counter(), set(), {}
    pending = []
    for partition, gap in started:  # compacted topics have gaps
        offset = offsets[partition] + (3 if gap else 0)
        offsets[partition] = offset + 1
        tracker.start(partition, offset)
        pending.append((partition, offset))
    everything = list(pending)
    random.shuffle(pending)
    for entry in pending:
        assert len(tracker) == len(everything) - len(done)
        tracker.finish(*entry)
        done.add(entry)
        committed.update(tracker.committable())
        for partition in range(3):
            mine = [offset for p, offset in everything if p == partition]
            ready = 0
            for offset in mine:
                if (partition, offset) not in done:
                    break
                ready = offset + 1
            assert committed.get(partition, 0) == ready
    assert tracker.committable() == {}


def test_a_forgotten_partition_is_not_committed():
    tracker = OffsetTracker()
    tracker.start(0, 7)
    tracker.forget([0])
    tracker.finish(0, 7)
    assert tracker.committable() == {}
