"""What SECURITY.md promises, with what an attacker would write into Redis or into the tables."""

import json
import pickle
import sys
import zlib
from uuid import UUID

import pytest
from django.db import connection
from rq import SimpleWorker, Worker

from django_batches import Batch, database
from django_batches.conf import LARGEST_PAYLOAD
from django_batches.transitions import repairing
from django_batches.transport.message import MAX_HEAD, Message
from django_batches.transport.scripts import RUN

from . import tasks

pytestmark = pytest.mark.django_db(transaction=True)

FORBIDDEN = [
    "os.system",
    "posix.system",
    "subprocess.run",
    "tests.tasks.os.system",
    "tests.borrowed.run",
    "builtins.eval",
    "django.core.management.call_command",
    "this.s",
    "testsuite.tasks.ok",
]


class Bomb:
    """What a pickle can be."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return tasks.append, (self.path, "exploded")


def one_job(*args, func=tasks.append, **options):
    with Batch.open(**options) as batch:
        batch.enqueue(func, *args)
    return batch


def in_redis(road, redis, keys):
    """The only job that is in RQ."""
    road.dispatch()
    (rq_id,) = redis.lrange(keys.queue("default"), 0, -1)
    return keys.job(rq_id.decode())


def forge(redis, key, **changes):
    """Puts other values into the message of a job."""
    names = [
        "batch",
        "job",
        "callback",
        "event",
        "func",
        "timeout",
        "attempts",
        "max_attempts",
        "no_retry",
        "arguments",
    ]
    values = json.loads(redis.hget(key, "batches"))
    for name, value in changes.items():
        values[names.index(name)] = value
    redis.hset(key, "batches", json.dumps(values))


def job_of(batch):
    assert repairing.drift(batch.pk) == {}
    return batch.jobs.get()


def test_nothing_of_a_job_is_pickled(road, redis, keys):
    one_job("the-argument", "x", func=tasks.descend)
    fields = redis.hgetall(in_redis(road, redis, keys))
    assert pickle.loads(zlib.decompress(fields[b"data"])) == (RUN, None, (), {})
    assert json.loads(fields[b"batches"])[-1] == [["the-argument", "x"], {}]
    assert b"the-argument" not in b"".join(value for name, value in fields.items() if name != b"batches")


@pytest.mark.parametrize("path", FORBIDDEN)
@pytest.mark.parametrize("place", ["Redis", "the row"])
def test_a_forged_job_runs_nothing_outside_of_the_installed_apps(road, redis, keys, tmp_path, place, path):
    batch = one_job("ledger", "text", max_attempts=3)
    arguments = [[f"touch {tmp_path}/touched"], {}]
    if place == "the row":
        database.jobs().filter(batch=batch).update(func=path, arguments=json.dumps(arguments))
        road.dispatch()
    else:
        forge(redis, in_redis(road, redis, keys), func=path, arguments=arguments)
    assert road.work() == 1
    road.record()
    job = job_of(batch)
    if path == "tests.tasks.os.system":  # in an installed app, and not there: as in a rolling deploy
        assert job.status == "scheduled" and "No module named 'tests.tasks.os'" in job.error
    elif path == "testsuite.tasks.ok":  # not there, as an app that another worker has already
        assert job.status == "scheduled" and "may not run as a job" in job.error
    else:
        assert job.status == "failed" and "may not run as a job" in job.error
    assert not (tmp_path / "touched").exists() and "this" not in sys.modules


def test_a_forged_callback_runs_nothing_outside_of_the_installed_apps(road):
    with Batch.open() as batch:
        batch.on_success(tasks.ok_callback)
        batch.enqueue(tasks.ok)
    text = Batch.objects.values_list("registered_callbacks", flat=True).get(pk=batch.pk)
    database.batches().filter(pk=batch.pk).update(
        registered_callbacks=text.replace("tests.tasks.ok_callback", "os.system")
    )
    road.run()
    callback = batch.callbacks.get()
    assert callback.status == "failed" and "os.system may not run as a job" in callback.error


@pytest.mark.parametrize("worker_class", [SimpleWorker, Worker])
def test_a_forged_message_runs_nothing_under_a_plain_rq_worker(road, redis, keys, worker_class):
    batch = one_job("ledger", "text")
    forge(redis, in_redis(road, redis, keys), func="os.system", arguments=[["touch never"], {}])
    connection.close()  # the horse is a fork
    worker_class(["default"], connection=redis).work(burst=True, logging_level="WARNING")
    road.record()
    assert "os.system may not run as a job" in job_of(batch).error


def test_a_pickle_in_place_of_a_message_is_not_opened(road, redis, keys, ledger, caplog):
    batch = one_job(ledger.path, "ran")
    key = in_redis(road, redis, keys)
    redis.hset(key, "batches", pickle.dumps(Bomb(ledger.path)))
    road.work()
    road.record()
    assert ledger.lines == []
    assert "cannot be read" in caplog.text
    job = job_of(batch)
    assert (job.status, job.losses) == ("scheduled", 1) and "Its message in Redis cannot be read" in job.error
    database.jobs().update(due_at=job.created_at)
    road.run()
    assert ledger.lines == ["ran"] and job_of(batch).status == "succeeded"


def test_a_pickle_in_place_of_a_message_is_not_opened_by_a_plain_rq_worker(road, redis, keys, ledger):
    batch = one_job(ledger.path, "ran")
    redis.hset(in_redis(road, redis, keys), "batches", pickle.dumps(Bomb(ledger.path)))
    SimpleWorker(["default"], connection=redis).work(burst=True, logging_level="WARNING")
    road.record()
    assert ledger.lines == [] and job_of(batch).status == "scheduled"
    assert redis.zcard("rq:failed:default") == 0


def test_a_pickle_in_place_of_an_outcome_is_not_opened(road, redis, keys, ledger, caplog):
    redis.xadd(keys.outcomes, {"o": pickle.dumps(Bomb(ledger.path))})
    assert road.record() == 1
    assert ledger.lines == [] and redis.xlen(keys.outcomes) == 0
    assert "of the outcome stream" in caplog.text and "exploded" not in caplog.text


def test_a_row_that_is_broken_fails_at_the_third_time_and_does_not_go_round_for_ever(road):
    batch = one_job("ledger", "text")
    database.jobs().filter(batch=batch).update(arguments='[["x"')
    for _ in range(3):
        database.jobs().update(due_at=batch.created_at)
        road.run()
    job = job_of(batch)
    assert (job.status, job.losses) == ("failed", 3) and "its row is broken" in job.error


def test_a_message_larger_than_any_setting_allows_is_not_read():
    text = "[" * (LARGEST_PAYLOAD + MAX_HEAD + 1)
    with pytest.raises(ValueError, match="are more than any MAX_PAYLOAD allows"):
        Message.loads("batch-tests-1-1", text)


GOOD = ["0" * 32, "1" * 32, 0, "", "tests.tasks.ok", 9, 0, 1, [], [[], {}]]


@pytest.mark.parametrize(
    "text",
    ["", "null", "5", "[]", "{}", '"text"', "[" * 100_000, b"\x80\x04\x95", "\x00", json.dumps(GOOD[:-1]),
     *(json.dumps([*GOOD[:index], wrong, *GOOD[index + 1 :]]) for index in range(10) for wrong in (None, {}, 1.5)),
     json.dumps([*GOOD[:5], 0, *GOOD[6:]]), json.dumps([*GOOD[:9], [{}, []]]), json.dumps([*GOOD[:9], [[]]]),
     json.dumps(["x", *GOOD[1:]])],
)  # fmt: skip
def test_what_is_no_message_is_refused_before_anything_is_done_with_it(text):
    assert Message.loads("batch-tests-1-1", json.dumps(GOOD)).batch_id == UUID(int=0)
    with pytest.raises((ValueError, RecursionError)):
        Message.loads("batch-tests-1-1", text)


def test_the_exceptions_that_are_not_retried_are_never_imported(road):
    batch = one_job(func=tasks.boom, max_attempts=2)
    database.jobs().filter(batch=batch).update(no_retry='["this.s", "os.system"]')
    road.run()
    assert (job_of(batch).status, job_of(batch).attempts) == ("failed", 2)
    assert "this" not in sys.modules
