"""The memory that the supervisor and its children share."""

import multiprocessing
import time

from django_batches.worker.slots import RunningJob, SlotTable

JOBS = [None, *(RunningJob(f"batch-{name * 32}-1", name * 9, 1000.0 * at, at) for at, name in enumerate("abcdefgh", 1))]
READS = 100_000


def test_a_slot_returns_what_was_written():
    slots = SlotTable(2)
    assert [slots.read(0), slots.read(1)] == [None, None]
    for job in JOBS:
        slots.write(1, job)
        assert [slots.read(0), slots.read(1)] == [None, job]
    slots.should_stop[1] = True
    slots.count(1), slots.count(1)
    assert (*slots.should_stop, *slots.started) == (False, True, 0, 2)
    slots.clear(1)
    assert (slots.read(1), slots.should_stop[1], slots.started[1]) == (None, False, 2)


def test_a_reader_never_sees_a_mixture_of_two_jobs():
    """The timeout of one job with the start of an empty record looks overdue, and the supervisor would kill it."""
    slots = SlotTable(1)

    def write_forever():
        while True:
            for job in JOBS:
                slots.write(0, job)

    writer = multiprocessing.get_context("fork").Process(target=write_forever, daemon=True)
    writer.start()
    try:
        seen, deadline = set(), time.monotonic() + 60
        # On a busy machine the writer runs only now and then.
        while not seen.issuperset(JOBS) and time.monotonic() < deadline:
            seen |= {slots.read(0) for _ in range(READS)}
    finally:
        writer.kill()
        writer.join()
    assert seen == set(JOBS)
