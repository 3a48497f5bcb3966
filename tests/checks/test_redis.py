"""`manage.py check --deploy` against real servers that are set up wrong."""

import time
from io import StringIO

import pytest
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.test import override_settings
from redis import Redis

from django_batches.checks import redis
from django_batches.checks.redis import check_redis
from example_project.servers import free_port

from ..redis_servers import PLAIN, cache, redis_with

GOOD = ("--save", "", "--appendonly", "yes")


def found(location, **options):
    with override_settings(CACHES=cache(location, **options)):
        return {problem.id.partition(".")[2]: f"{problem.msg} {problem.hint}" for problem in check_redis(None)}


def on(*options, user=""):
    with redis_with(*options) as (port, _):
        return found(f"redis://{user}127.0.0.1:{port}/0")


def test_a_persistent_server_without_eviction_passes():
    assert on(*GOOD) == {}
    assert on("--save", "60 1") == {}


def test_an_evicting_server_is_a_warning():
    problems = on(*GOOD, "--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru")
    assert problems.keys() == {"W005"}
    assert "maxmemory-policy allkeys-lru" in problems["W005"] and "Set maxmemory-policy noeviction" in problems["W005"]


def test_a_server_without_persistence_is_a_warning_that_says_what_is_lost():
    problems = on(*PLAIN)
    assert problems.keys() == {"W006"}
    assert "No batch is lost" in problems["W006"] and "Set appendonly yes" in problems["W006"]


def test_a_cluster_is_an_error():
    # A node listens 10,000 ports higher as well.
    low = next(port for port in iter(free_port, None) if port < 55_000)
    with redis_with(*GOOD, "--cluster-enabled", "yes", port=low) as (port, _):
        problems = found(f"redis://127.0.0.1:{port}/0")
    assert problems.keys() == {"E010"} and "without cluster mode" in problems["E010"]


def test_a_replica_is_an_error():
    with redis_with(*GOOD) as (port, _):
        problems = on("--save", "60 1", "--replicaof", f"127.0.0.1 {port}")  # one with AOF does not end while it begins
    assert problems.keys() == {"E011"} and "Name the primary first" in problems["E011"]


def test_a_wrong_password_is_an_error_that_does_not_show_it():
    for user in ("", ":wrong-word@", "nobody:wrong-word@"):
        problems = on(*GOOD, "--requirepass", "right", user=user)
        assert problems.keys() == {"E008"} and "redis://user:password@host" in problems["E008"]
        assert "wrong-word" not in problems["E008"]
    assert on(*GOOD, "--requirepass", "right", user=":right@") == {}


def test_a_user_without_config_gets_the_checks_that_it_has_permission_for():
    user = ("--user", "batches on >word ~* &* +@all -config")
    problems = on(*PLAIN, *user, "--maxmemory-policy", "allkeys-lfu", user="batches:word@")
    assert problems.keys() == {"W005"}


def test_a_server_that_does_not_respond_is_a_warning(asked_once):
    begun = time.monotonic()
    problems = found(f"redis://127.0.0.1:{free_port()}/0")
    assert problems.keys() == {"W004"} and "Batches can be opened, but no job starts." in problems["W004"]
    assert found("redis://192.0.2.1:6379/0").keys() == {"W004"}
    assert time.monotonic() - begun < 4.5  # the workers wait for 5 s


def test_a_server_on_another_machine_without_a_password_is_a_warning(monkeypatch):
    monkeypatch.setattr(redis, "_is_local", lambda given: False)
    problems = on(*GOOD)
    assert problems.keys() == {"W007"} and "requires no password" in problems["W007"]
    assert on(*GOOD, "--requirepass", "right", user=":right@") == {}


@pytest.mark.parametrize(
    ("given", "is_local"),
    [
        ({"host": "127.0.0.1"}, True),
        ({"host": "127.1.2.3"}, True),
        ({"host": "::1"}, True),
        ({"host": "localhost"}, True),
        ({"path": "/run/redis.sock"}, True),
        ({"host": "10.0.0.7"}, False),
        ({"host": "redis"}, False),
        ({}, False),
    ],
)
def test_a_loopback_address_or_a_socket_is_local(given, is_local):
    assert redis._is_local(given) is is_local


@pytest.mark.parametrize(("version", "is_old"), [("6.0.16", True), ("5.0", True), ("6.2.0", False), ("8.2-rc1", False)])
def test_a_server_older_than_the_scripts_need_is_an_error(monkeypatch, version, is_old):
    info = Redis.info
    monkeypatch.setattr(Redis, "info", lambda self, *args: info(self, *args) | {"redis_version": version})
    assert on(*GOOD).keys() == ({"E009"} if is_old else set())


@pytest.mark.django_db  # Django 6.1 asks SQLite about JSON fields
def test_only_the_deploy_check_connects_to_redis(monkeypatch):
    """`manage.py check` and `migrate` run where Redis is not, as when an image is built."""
    monkeypatch.delenv("DJANGO_ALLOW_ASYNC_UNSAFE", raising=False)  # the tests in a browser set it
    location = f"redis://127.0.0.1:{free_port()}/0"
    with override_settings(CACHES=cache(location)):
        call_command("check", stdout=StringIO())
        call_command("check", deploy=True, stdout=StringIO(), stderr=(output := StringIO()))
    assert "django_batches.W004" in output.getvalue()
    with redis_with(*GOOD, "--requirepass", "right") as (port, _):
        location = f"redis://127.0.0.1:{port}/0"
        with override_settings(CACHES=cache(location)), pytest.raises(SystemCheckError, match="E008"):
            call_command("check", deploy=True)


def test_invalid_settings_are_left_to_the_other_checks():
    with override_settings(DJANGO_BATCHES={"MAX_PAYLOAD": None}):
        assert check_redis(None) == []
    with override_settings(DJANGO_BATCHES={"CACHE": "default"}):
        assert check_redis(None) == []
