"""The memory in which the supervisor sees what its executors run."""

import multiprocessing
import time

from django_batches.worker.slots import RunningJob, SlotTable

JOBS = [None, *(RunningJob(f"batch-{name * 32}-1", name * 9, 1000.0 * at, at) for at, name in enumerate("abcdefgh", 1))]
READS = 100_000


def test_a_board_shows_what_was_written():
    board = SlotTable(2)
    assert [board.read(0), board.read(1)] == [None, None]
    for job in JOBS:
        board.write(1, job)
        assert [board.read(0), board.read(1)] == [None, job]
    board.stop(1)
    board.count(1), board.count(1)
    assert (board.should_stop(0), board.should_stop(1), board.counted(0), board.counted(1)) == (False, True, 0, 2)
    board.clear(1)
    assert (board.read(1), board.should_stop(1), board.counted(1)) == (None, False, 2)


def test_nobody_reads_half_of_one_job_and_half_of_the_next():
    """The supervisor kills what has run for too long: the timeout of one job and the start of none looked like that."""
    board = SlotTable(1)

    def write_for_ever():
        while True:
            for job in JOBS:
                board.write(0, job)

    writer = multiprocessing.get_context("fork").Process(target=write_for_ever, daemon=True)
    writer.start()
    try:
        seen, deadline = set(), time.monotonic() + 60
        # On a busy machine the writer gets its turn now and then only.
        while not seen.issuperset(JOBS) and time.monotonic() < deadline:
            seen |= {board.read(0) for _ in range(READS)}
    finally:
        writer.kill()
        writer.join()
    assert seen == set(JOBS)
