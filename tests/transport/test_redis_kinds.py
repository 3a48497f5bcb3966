"""A batch with a real worker, on every kind of Redis that a deployment may have."""

import json
import re
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
from django.test import override_settings
from redis import Redis
from redis.exceptions import NoPermissionError, RedisError
from rq import Queue

from django_batches import Batch
from django_batches.checks.redis import check_redis
from django_batches.monitoring import diagnosis, metrics
from django_batches.transport import client
from example_project.servers import free_port

from .. import tasks
from ..processes import ROOT, wait_until
from ..redis_servers import PLAIN, cache, redis_with, redis_with_tls, sentinel_of

pytestmark = pytest.mark.django_db(transaction=True)


@contextmanager
def password(folder):
    with redis_with(*PLAIN, "--requirepass", "p%40ss:word") as (port, _):
        yield cache(f"redis://:p%2540ss%3Aword@127.0.0.1:{port}/0")


@contextmanager
def unix_socket(folder):
    with redis_with(*PLAIN, "--unixsocket", "{folder}/redis.sock", port=0) as (_, place):
        yield cache(f"unix://{place}/redis.sock?db=3")


@contextmanager
def tls(folder):
    with redis_with_tls(folder) as (port, authority):
        with override_settings(CACHES=cache(f"rediss://127.0.0.1:{port}/0")):
            (problem,) = check_redis(None)
            assert problem.id == "django_batches.W004" and "CERTIFICATE_VERIFY_FAILED" in problem.msg
        yield cache(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={authority}")


@contextmanager
def options_of_a_cache(folder):
    """The options for the keys of a cache do not affect the queues."""
    with redis_with() as (port, _):
        given = cache(
            f"redis://127.0.0.1:{port}/0",
            CONNECTION_POOL_KWARGS={"decode_responses": True},
            SERIALIZER="django_redis.serializers.json.JSONSerializer",
            COMPRESSOR="django_redis.compressors.zlib.ZlibCompressor",
        )
        given["batches"] |= {"KEY_PREFIX": "shop", "VERSION": 7, "TIMEOUT": 1}
        yield given
        with Redis(port=port) as redis:
            keys = redis.keys()
            assert keys and [key for key in keys if not key.startswith((b"rq:", b"batches:tests:"))] == []


@contextmanager
def old_protocol(folder):
    with redis_with() as (port, _):
        yield cache(f"redis://127.0.0.1:{port}/0?protocol=2")


@contextmanager
def sentinel(folder):
    with redis_with() as (primary, _), sentinel_of(primary) as port:
        yield behind(port)


def behind(port):
    return cache(
        "redis://queues/0",
        CLIENT_CLASS="django_redis.client.SentinelClient",
        CONNECTION_FACTORY="django_redis.pool.SentinelConnectionFactory",
        SENTINELS=[["127.0.0.1", port]],
    )


@contextmanager
def valkey(folder):
    program = shutil.which("valkey-server")
    if not program:
        pytest.skip("valkey-server is not on the PATH")
    with redis_with(program=program) as (port, _):
        yield cache(f"redis://127.0.0.1:{port}/0")


KINDS = [password, unix_socket, tls, options_of_a_cache, old_protocol, sentinel, valkey]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_batch_runs_on(kind, start_worker, ledger, monkeypatch, tmp_path):
    with kind(tmp_path) as caches, override_settings(CACHES=caches):
        worker = started(start_worker, caches, monkeypatch)
        wait_for_a_batch(ledger)
        assert diagnosis.probe_workers(["default"]).workers == {"default": 1}
        leave(worker)


@pytest.mark.slow
def test_a_batch_survives_a_sentinel_failover(start_worker, ledger, monkeypatch):
    primary = free_port()
    replica = (*PLAIN, "--replicaof", f"127.0.0.1 {primary}")
    with redis_with(port=primary), redis_with(*replica) as (second, _):
        wait_until(lambda: Redis(port=second).info("replication")["master_link_status"] == "up")
        with sentinel_of(primary) as port, override_settings(CACHES=(caches := behind(port))):
            wait_until(lambda: Redis(port=port).execute_command("SENTINEL", "replicas", "queues"))
            worker = started(start_worker, caches, monkeypatch)
            wait_for_a_batch(ledger)
            Redis(port=primary).shutdown(nosave=True)
            wait_until(lambda: Redis(port=second).info("replication")["role"] == "master", 90)
            wait_for_a_batch(ledger)
            leave(worker)


def acl_lines():
    """The commands in the documentation; the last one needs Redis 7."""
    return re.findall(r"^ACL SETUSER .*$", (ROOT / "docs" / "redis.md").read_text(), re.MULTILINE)


def paste(boss, line):
    """Splits a command as redis-cli does: text in parentheses is one argument."""
    boss.execute_command(*re.findall(r"\(.*\)|\S+", line.replace("PASSWORD", "word")))


@pytest.fixture
def least_rights():
    """A server with only the two documented users; returns its port and an administrator's client."""
    with redis_with(*PLAIN, "--user", "boss on >boss ~* &* +@all") as (port, _):
        boss = Redis(port=port, username="boss", password="boss")
        for line in acl_lines()[:2]:
            paste(boss, line)
        boss.execute_command("ACL", "SETUSER", "default", "off")
        yield port, boss
        boss.close()


def test_the_documented_users_have_enough_rights(least_rights, start_worker, ledger, monkeypatch):
    port, boss = least_rights
    web = cache(f"redis://batches-web:word@127.0.0.1:{port}/0")
    with override_settings(CACHES=web):
        worker = started(start_worker, cache(f"redis://batches-worker:word@127.0.0.1:{port}/0"), monkeypatch)
        wait_for_a_batch(ledger)
        with Batch.open() as killed:
            killed.enqueue(tasks.kill_self)
        with Batch.open() as paused:
            paused.map(tasks.begin_and_end_item, [])
            paused.enqueue(tasks.begin_and_end, ledger.path, 1.0)
        assert paused.pause() and killed.wait(60)
        assert killed.jobs.get().error.startswith("WorkerKilled")
        assert paused.cancel() >= 0 and paused.wait(60)
        # The new executor is among the workers a moment after the killed one.
        wait_until(lambda: diagnosis.probe_workers(["default"]).workers == {"default": 1})
        said = diagnosis.probe_workers(["default", "without workers"])
        assert (said.error, said.workers) == ("", {"default": 1, "without workers": 0})
        assert client._silent_until == 0.0, "a wake-up was refused"
        assert [problem.id for problem in check_redis(None)] == []
        job = Queue("default", connection=boss).enqueue(tasks.append, ledger.path, "ordinary")
        wait_until(lambda: job.get_status(refresh=True) == "finished")
        leave(worker)
    assert denied(boss) == set()


@pytest.mark.parametrize("user", ["batches-web", "batches-worker"])
def test_the_worker_user_and_on_redis_7_a_selector_can_read_the_metrics(least_rights, user):
    port, boss = least_rights
    if user == "batches-web":
        if int(boss.info()["redis_version"].partition(".")[0]) < 7:
            pytest.skip("selectors in ACL SETUSER need Redis 7")
        paste(boss, acl_lines()[2])
    with override_settings(CACHES=cache(f"redis://{user}:word@127.0.0.1:{port}/0")):
        assert "django_batches_redis_up 1.0" in metrics.text()
    assert denied(boss) == set()
    if user == "batches-web":
        assert_denied(port, user, "XADD batches:tests:outcomes * o x")


def denied(boss):
    """The denied commands, except those of the client library's handshake and of the deploy check."""
    found = {(each["username"], each["reason"], each["object"]) for each in boss.acl_log()}
    return {each for each in found if not each[2].startswith(("client", "config"))}


@pytest.mark.parametrize("user", ["batches-web", "batches-worker"])
@pytest.mark.parametrize(
    "command",
    ["FLUSHALL", "FLUSHDB", "KEYS *", "CONFIG GET save", "CONFIG SET dir /tmp", "DEBUG SLEEP 0", "SHUTDOWN", "SAVE",
     "ACL LIST", "CLIENT KILL TYPE normal", "GET other", "SET other 1", "MONITOR", "REPLICAOF no one", "MODULE LIST",
     "EVAL return(redis.call('get','other')) 0", "PUBLISH other 1", "SORT rq:queues", "SWAPDB 0 1"],
)  # fmt: skip
def test_the_documented_users_cannot_touch_other_keys(least_rights, user, command):
    port, _ = least_rights
    assert_denied(port, user, command)


@pytest.mark.parametrize(
    "command",
    ["RPUSH rq:queue:default x", "LRANGE rq:queue:default 0 -1", "HSET rq:job:x data y", "HGETALL rq:job:x",
     "EVAL return(1) 0", "PUBLISH rq:pubsub:x y", "DEL batches:tests:on_hold", "SADD rq:queues x",
     "XADD batches:tests:outcomes * o x", "SET batches:tests:fence 9"],
)  # fmt: skip
def test_the_web_user_cannot_reach_a_queue(least_rights, command):
    port, _ = least_rights
    assert_denied(port, "batches-web", command)


def assert_denied(port, user, command):
    with Redis(port=port, username=user, password="word") as redis:
        assert redis.ping()
        with pytest.raises(RedisError) as raised:
            redis.execute_command(*command.split())
    is_denied = isinstance(raised.value, NoPermissionError) or re.search(
        "permission|can't access|not allowed", str(raised.value)
    )
    assert is_denied, raised.value


def started(start_worker, caches, monkeypatch):
    monkeypatch.setenv("TEST_CACHES", json.dumps(caches, default=str))
    return start_worker("--workers", 1, "--settings", "tests.kinds_settings")


def wait_for_a_batch(ledger):
    """Twenty jobs, one of which fails once, and a callback."""
    Path(ledger.path).unlink(missing_ok=True)
    with Batch.open(max_attempts=2) as batch:
        batch.on_success(tasks.told, ledger.path)
        batch.map(tasks.append_item, range(20), ledger.path)
        batch.enqueue(tasks.flaky, f"{ledger.path}.{batch.pk}", 1)
    assert batch.wait(60), Batch.objects.filter(pk=batch.pk).values()
    assert ledger.lines[-1] == ":succeeded:21/21"
    assert sorted(map(int, ledger.lines[:-1])) == list(range(20))


def leave(worker):
    """Runs while its Redis is running."""
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
