"""What the main process of a prefork worker and the processes of its pool know of each other."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID, uuid4

from tests.support.waiting import wait_until
from worker_scheduler.worker.pool_memory import Held, PoolMemory


@contextmanager
def forked(run: Callable[[], None]) -> Iterator[int]:
    """A process that runs a function, and then waits to be killed."""
    pid = os.fork()
    if pid == 0:
        try:
            run()
            time.sleep(120)
        finally:
            os._exit(1)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_the_main_process_sees_what_a_process_holds_also_when_that_is_dead() -> None:
    memory, job_id = PoolMemory(), uuid4()

    def hold() -> None:
        memory.enter(3)
        memory.note(job_id, 2, 1234.5)

    with forked(hold) as pid:
        held = wait_until(lambda: memory.held_by(pid), 30, "a note")
        assert held == Held(pid, 2, 1234.5, job_id)
        assert memory.held_by(os.getpid()) is None
    assert memory.held_by(pid) == held


def test_a_process_that_holds_nothing_any_more_is_seen_so() -> None:
    memory = PoolMemory()
    memory.enter(0)
    memory.note(uuid4(), 1, 0.0)
    assert memory.held_by(os.getpid()) is not None
    memory.clear()
    assert memory.held_by(os.getpid()) is None


def test_the_successor_of_a_process_writes_over_what_that_left() -> None:
    memory, job_id = PoolMemory(), uuid4()

    def hold() -> None:
        memory.enter(0)
        memory.note(uuid4(), 1, 0.0)

    with forked(hold) as pid:
        wait_until(lambda: memory.held_by(pid), 30, "a note")
    memory.enter(0)
    memory.note(job_id, 1, 0.0)
    assert memory.held_by(pid) is None
    assert memory.held_by(os.getpid()) == Held(os.getpid(), 1, 0.0, job_id)


def test_who_is_no_process_of_the_pool_notes_nothing() -> None:
    memory = PoolMemory()
    memory.note(uuid4(), 1, 0.0)
    assert not memory.entered
    assert memory.held_by(os.getpid()) is None
    memory.enter(5000)  # more processes than there are places
    memory.note(uuid4(), 1, 0.0)
    assert not memory.entered
    assert memory.held_by(os.getpid()) is None
    assert not memory.stopping


def test_a_reader_never_takes_a_record_that_is_half_written() -> None:
    """The attempt and the deadline of each record follow from its job's id."""
    memory = PoolMemory()

    def write_all_the_time() -> None:
        memory.enter(0)
        number = 1
        while True:
            memory.note(UUID(int=number), number, float(number))
            number = number % 1_000_000 + 1

    with forked(write_all_the_time) as pid:
        wait_until(lambda: memory.held_by(pid), 30, "a note")
        seen: set[int] = set()
        ended = time.monotonic() + 1
        while time.monotonic() < ended or len(seen) < 100:
            held = memory.held_by(pid)
            if held is not None:
                assert (held.attempt, held.deadline) == (held.job_id.int, float(held.job_id.int))
                seen.add(held.attempt)


def test_a_record_that_its_process_died_over_counts_as_none() -> None:
    memory = PoolMemory()
    memory.enter(0)
    memory.note(uuid4(), 1, 0.0)
    place = memory._offset + 20  # within the job's id
    memory._memory[place] ^= 1
    assert memory.held_by(os.getpid()) is None


def test_a_stop_is_seen_by_a_process_that_waits_for_it() -> None:
    memory = PoolMemory()
    assert not memory.wait_for_stop(0.05)
    with forked(memory.note_stop):
        assert memory.wait_for_stop(30)
    assert memory.stopping
