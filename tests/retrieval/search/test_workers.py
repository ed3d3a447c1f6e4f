"""Threads that share pieces: every piece once, torch's setting as it was, and an exception is not lost."""

import threading

import pytest
import torch

from penstock.retrieval.search.workers import alone, share


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_piece_is_worked_on_once(threads):
    found = share(threads, list, range(100))
    assert len(found) == threads
    assert sorted(piece for mine in found for piece in mine) == list(range(100))
    assert share(threads, list, []) == [[]]


def test_threads_work_at_the_same_time_and_each_on_one_core():
    met = threading.Barrier(3, timeout=20)

    def work(left):
        met.wait()
        return threading.get_ident(), torch.get_num_threads(), list(left)

    with alone():
        found = share(3, work, range(3))
    assert len({ident for ident, *_ in found}) == 3
    assert {threads for _, threads, _ in found} == {1}


@pytest.mark.parametrize("failing", [0, 1])
def test_an_exception_of_any_thread_is_raised_once_all_have_ended(failing):
    met, ended = threading.Barrier(2, timeout=20), []
    mine = threading.get_ident()

    def work(left):
        met.wait()
        if (threading.get_ident() != mine) == bool(failing):
            raise ValueError("of a thread")
        ended.extend(left)

    with pytest.raises(ValueError, match="of a thread"):
        share(2, work, range(10))
    assert ended == list(range(10))


def test_torch_is_left_as_it_was():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(ValueError, match="within"), alone() as threads:
            assert (threads, torch.get_num_threads()) == (2, 1)
            raise ValueError("within")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
