"""Bad input raises an error that names the fix and writes nothing. In a worker it fails one job only."""

import datetime
import functools
import json
import re
from datetime import timedelta
from decimal import Decimal
from uuid import UUID

import pytest
from django.utils import timezone
from django.utils.translation import gettext_lazy

from django_batches import Batch, database, exponential
from django_batches.exceptions import BatchError, FunctionNotAllowed
from django_batches.models import BatchJob
from django_batches.transitions import repairing

from .. import tasks
from ..processes import wait_until

DEEP = functools.reduce(lambda inner, _: [inner], range(100_000), [])
CIRCLE = []
CIRCLE.append(CIRCLE)


class Thing:
    def method(self):
        pass


OPTIONS = [
    ({"queue": ""}, ValueError, "must be a name of 1 to 100 printable characters"),
    ({"queue": "a\x00"}, ValueError, "printable characters"),
    ({"queue": 7}, ValueError, "queue: 7 must be a name"),
    ({"timeout": 0}, ValueError, "timeout: 0 must be at least one second"),
    ({"timeout": "5 min"}, TypeError, "timeout: '5 min' is neither seconds nor a timedelta"),
    ({"timeout": float("nan")}, ValueError, "a finite number of seconds"),
    ({"timeout": timedelta(days=-1)}, ValueError, "0 or more"),
    ({"max_attempts": 0}, ValueError, "max_attempts: 0 must be a whole number, 1 or more"),
    ({"max_attempts": True}, ValueError, "must be a whole number"),
    ({"backoff": "5"}, TypeError, "backoff: '5' is neither seconds nor a timedelta"),
    ({"backoff": []}, ValueError, "the list is empty; write 0 for no delay"),
    ({"backoff": [5, 1e300]}, ValueError, "below 68 years"),
    ({"no_retry": "ValueError"}, TypeError, "neither an exception type nor a list of them"),
    ({"no_retry": None}, TypeError, "no_retry: None is neither an exception type"),
    ({"no_retry": [ValueError()]}, TypeError, "ValueError() is not an exception type"),
    ({"concurrency": 0}, ValueError, "concurrency: 0 must be a whole number, 1 or more, or None"),
    ({"max_failures": -1}, ValueError, "max_failures: -1 must be a whole number, 0 or more, or None"),
    ({"deadline": "tomorrow"}, TypeError, "deadline: 'tomorrow' is neither seconds nor a timedelta"),
    ({"key": ""}, ValueError, "key: '' must be a string of 1 to 200 characters, or None"),
    ({"key": "\ud800"}, ValueError, "a NUL or a lone surrogate, which databases refuse: remove it"),
    ({"key": 7}, ValueError, "key: 7 must be a string of 1 to 200 characters"),
    ({"description": None}, TypeError, "description: None is not a string: pass str(description)"),
    ({"description": "a\x00b"}, ValueError, "description: 'a\\x00b' contains a NUL"),
    ({"metadata": [1]}, TypeError, "metadata: [1] is not a dict"),
    ({"metadata": {"who": Thing}}, TypeError, "metadata['who']: a type cannot be passed as JSON: pass str("),
    ({"metadata": {"rate": float("nan")}}, TypeError, "nan does not exist in JSON: pass None or a string"),
    ({"metadata": {1: 2}}, TypeError, "pass str keys"),
    ({"metadata": {"text": ["\x00"]}}, ValueError, "metadata contains a NUL"),
    ({"metadata": {"deep": DEEP}}, ValueError, "nested too deeply"),
    ({"metadata": {"large": "x" * 2**21}}, ValueError, "more than MAX_PAYLOAD"),
    ({"parent": "batch 7"}, TypeError, "pass None, or omit it to use the running job"),
    ({"retries": 3}, TypeError, "unexpected keyword argument 'retries'"),
]

CALLS = [
    (lambda batch: batch.enqueue(lambda: None), FunctionNotAllowed, "define a function at the top level of a module"),
    (lambda batch: batch.enqueue(Thing().method), FunctionNotAllowed, "it is a method"),
    (lambda batch: batch.enqueue(functools.partial(tasks.ok, 1)), FunctionNotAllowed, 'to DJANGO_BATCHES["ALLOWED'),
    (lambda batch: batch.enqueue("os.system", "ls"), FunctionNotAllowed, "Add the app to INSTALLED_APPS"),
    (lambda batch: batch.enqueue("resize"), FunctionNotAllowed, "write module.function, as in 'shop.tasks.resize'"),
    (lambda batch: batch.enqueue("tests.tasks.no_such"), FunctionNotAllowed, "cannot be imported"),
    (lambda batch: batch.enqueue(None), FunctionNotAllowed, "pass a function or its dotted path"),
    (lambda batch: batch.enqueue(tasks.ok, 1, 2), TypeError, "its signature is (value=None)"),
    (lambda batch: batch.enqueue(tasks.ok, colour="red"), TypeError, "unexpected keyword argument 'colour'"),
    (lambda batch: batch.enqueue(tasks.ok, b"x"), TypeError, "value: a bytes cannot be passed as JSON: store the data"),
    (lambda batch: batch.enqueue(tasks.ok, {1, 2}), TypeError, "pass sorted(value)"),
    (lambda batch: batch.enqueue(tasks.ok, Decimal("1.5")), TypeError, "pass str(value)"),
    (lambda batch: batch.enqueue(tasks.ok, timezone.now()), TypeError, "pass value.isoformat()"),
    (lambda batch: batch.enqueue(tasks.ok, batch), TypeError, "pass str(value.pk)"),
    (lambda batch: batch.enqueue(tasks.ok, [{"who": UUID(int=0)}]), TypeError, "value[0]['who']: a uuid.UUID"),
    (lambda batch: batch.enqueue(tasks.ok, float("inf")), TypeError, "pass None or a string"),
    (lambda batch: batch.enqueue(tasks.ok, DEEP), ValueError, "contains itself: store the data and pass its key"),
    (lambda batch: batch.enqueue(tasks.ok, CIRCLE), ValueError, "or a list or dict contains itself"),
    (lambda batch: batch.enqueue(tasks.ok, 10**5000), ValueError, "pass str(number)"),
    (lambda batch: batch.enqueue(tasks.ok, "x" * 2**21), ValueError, "store the data and pass its key"),
    (lambda batch: batch.map(tasks.ok, 5), TypeError, "map: 5 is not iterable: pass an iterable of items"),
    (lambda batch: batch.starmap(tasks.ok, [1]), TypeError, "starmap: 1 is not iterable: pass an iterable of tuples"),
    (lambda batch: batch.map(tasks.ok, [1, object()]), TypeError, "value: an object cannot be passed as JSON"),
    (lambda batch: batch.on_success(tasks.pid), TypeError, "tests.tasks.pid(batch): too many positional arguments"),
    (lambda batch: batch.using(run_after="noon"), TypeError, "neither seconds nor a timedelta"),
    (lambda batch: batch.using(run_after=timedelta.max), ValueError, "below 68 years"),
    (lambda batch: batch.using(run_after=datetime.datetime(2040, 1, 1)), ValueError, "timezone.make_aware()"),
    (lambda batch: batch.using(backoff=exponential(factor="x")), TypeError, "factor: 'x' must be a finite number"),
    (lambda batch: batch.using(backoff=exponential(factor=float("nan"))), TypeError, "must be a finite number"),
    (lambda batch: batch.using(backoff=exponential(jitter=2)), ValueError, "between 0.0 and 1.0"),
    (lambda batch: batch.cancel("a\x00"), ValueError, "reason: 'a\\x00' contains a NUL"),
    (lambda batch: batch.wait(), BatchError, "call it after the block"),
]


def nothing_is_written():
    return not (Batch.objects.exists() or BatchJob.objects.exists())


@pytest.mark.django_db
@pytest.mark.parametrize(("options", "error", "fix"), OPTIONS, ids=[case[2][:40] for case in OPTIONS])
def test_an_invalid_option_is_refused_with_the_fix(options, error, fix):
    with pytest.raises(error, match=re.escape(fix)), Batch.open(**options) as batch:
        batch.enqueue(tasks.ok)
    assert nothing_is_written()


@pytest.mark.django_db
@pytest.mark.parametrize(("call", "error", "fix"), CALLS, ids=[case[2][:40] for case in CALLS])
def test_an_invalid_verb_call_is_refused_with_the_fix(call, error, fix):
    with pytest.raises(error, match=re.escape(fix)), Batch.open() as batch:
        batch.enqueue(tasks.ok)
        call(batch)
    assert nothing_is_written()


@pytest.mark.django_db
def test_unusual_but_valid_input_is_accepted():
    """The rules above do not refuse too much."""
    with Batch.open(
        gettext_lazy("Delete"), queue="a b:c", metadata={"ÅÄÖ": ["\n", None, 1e300]}, key="k" * 200
    ) as batch:
        for value in ("\x00", "\ud800", "", [], {}, 10**4000, [[[]]], {"": None}):
            batch.enqueue(tasks.ok, value)
        assert batch.starmap(tasks.ok, [()]) + batch.map(tasks.ok, "ab") + batch.map(tasks.ok, {"key": 1}) == 4
    batch.refresh_from_db()
    assert (batch.description, batch.total, batch.status) == ("Delete", 12, "running")


POISON = [
    (tasks.raises, ("a\x00b\ud800",), "ValueError: a\ufffdb\ufffd"),
    (tasks.raises_long, (5_000_000,), "ValueError: ååå"),
    (tasks.unprintable, (), "its message cannot be printed"),
    (tasks.recurse, (), "RecursionError: maximum recursion depth exceeded"),
    (tasks.exit_now, (), "SystemExit: 3"),
    (tasks.interrupt, (), "KeyboardInterrupt"),
    (tasks.memory, (), "MemoryError"),
    (tasks.kill_self, (), "WorkerKilled: its process died: signal SIGKILL"),
    (tasks.segfault, (), "WorkerKilled: its process died: signal SIGSEGV"),
    (tasks.hard_exit, (), "WorkerKilled: its process died: exit code 3"),
    (tasks.returns, ("nan",), "nan does not exist in JSON: pass None"),
    (tasks.returns, ("object",), "the result: an object cannot be passed as JSON"),
    (tasks.returns, ("int keys",), "pass str keys"),
    (tasks.returns, ("large",), "store the data and return its key"),
    (tasks.returns, ("deep",), "nested too deeply"),
    (tasks.leak, ("atomic",), ""),
    (tasks.leak, ("broken",), ""),
    (tasks.leak, ("closed",), ""),
    (tasks.leak, ("signal",), ""),
    (tasks.wait_for_batch, (), "wait() inside a job occupies a worker that the batch may need: use a callback"),
    (tasks.return_which, ("own",), "Return a batch that the job itself opened"),
    (tasks.raise_in_block, (), ""),
]
"""Functions, their arguments, and part of the error; an empty text for those that succeed."""

FORGED = [
    ({"func": "os.system"}, "failed", "os.system may not run as a job"),
    ({"func": "tests.borrowed.run"}, "failed", "subprocess.run may not run as a job"),
    ({"func": "tests.tasks.no_such"}, "scheduled", "has no attribute 'no_such'"),
    (
        {"func": "new_app.tasks.f"},
        "scheduled",
        "new_app.tasks is in no installed app",
    ),  # perhaps a newer version
    ({"func": 'a"b'}, "scheduled", "its row is broken"),
    ({"arguments": "[["}, "scheduled", "its row is broken"),
    ({"arguments": "[[1,2,3],{}]"}, "failed", "takes from 0 to 1 positional arguments but 3 were given"),
    ({"no_retry": "7"}, "scheduled", "its row is broken"),
]
"""Manually edited rows, and the status and error of their jobs after the first run."""


@pytest.mark.django_db(transaction=True)
def test_no_input_stops_the_worker_or_the_other_jobs(start_worker, redis, keys, ledger):
    with Batch.open("good", queue="good") as good:
        good.on_success(tasks.told, ledger.path)
        good.map(tasks.append_item, range(100), ledger.path)
    with Batch.open("poison", queue="bad") as poison:
        for func, args, _ in POISON:
            poison.enqueue(func, *args)
    with Batch.open("forged", queue="bad") as forged:
        forged.map(tasks.ok, range(len(FORGED)))
    for position, (fields, _, _) in enumerate(FORGED):
        database.jobs().filter(batch=forged, position=position).update(**fields)
    count = garbage_in_redis(redis, keys, good)
    worker = start_worker("bad", "good", "--workers", 1)
    assert good.wait(60) and poison.wait(60), worker.log
    assert ledger.lines[-1] == ":succeeded:100/100"
    assert sorted(map(int, ledger.lines[:-1])) == list(range(100))
    wait_until(lambda: not forged.jobs.exclude(status__in=["failed", "scheduled"]).exists())
    assert [
        wrong for wrong in zip(POISON, poison.jobs.order_by("position"), strict=True) if not is_expected(*wrong)
    ] == []
    for (_, status, error), job in zip(FORGED, forged.jobs.order_by("position"), strict=True):
        assert (job.status, error in job.error) == (status, True), job.error
    assert [repairing.drift(batch.pk) for batch in (good, poison, forged)] == [{}, {}, {}]
    wait_until(lambda: redis.xlen(keys.outcomes) == 0)
    assert worker.log.count("of the outcome stream") == count
    assert worker.process.poll() is None and "is the active coordinator" in worker.log
    assert "coordinator of" not in worker.log, "the coordinator died"


def is_expected(poison, job):
    _, _, error = poison
    return (job.status == "failed" and error in job.error) if error else job.status == "succeeded"


def garbage_in_redis(redis, keys, batch):
    """Writes garbage to our streams, lists and channels; returns the number of outcomes."""
    job = batch.jobs.earliest("position").pk
    known = {"kind": "retry", "job_id": job.hex, "dispatch": 1, "batch_id": batch.pk.hex}
    wild = [
        {"retry_max": "x"}, {"retry_after": [1]}, {"started_at": [1]}, {"dispatch": None}, {"result": {"a": 1}},
        {"kind": "succeeded", "result": 1},
    ]  # fmt: skip
    texts = ["garbage", "", "[]", "null", "7", "[" * 100_000, b"\x80\x04", '{"kind":"succeeded"}', '{"kind":"x"}']
    texts += [json.dumps(known | changes) for changes in wild]
    for text in texts:
        redis.xadd(keys.outcomes, {"o": text})
    redis.xadd(keys.outcomes, {"x": "y"})
    redis.xadd(keys.wake_ups, {"x": "y"})
    redis.sadd(keys.on_hold, "garbage", b"\xff")
    unknown = keys.rq_id(UUID(int=1), 1)
    redis.hset(keys.job(unknown), mapping={"status": "queued", "batches": "garbage", "batches_owner": "garbage"})
    redis.rpush(keys.queue("bad"), "no such job", unknown, f"{unknown}x", "batch-", "batch-tests-x-1")
    redis.publish("rq:pubsub:x", "garbage")
    return len(texts) + 1
