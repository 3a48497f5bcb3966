import re
from dataclasses import fields
from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from django.test import override_settings
from django_redis.cache import RedisCache

import django_batches
from django_batches import conf
from django_batches.checks.settings import check_settings
from django_batches.conf import Settings, settings
from django_batches.transport.client import client


def found(**given):
    with override_settings(DJANGO_BATCHES=given):
        return [(problem.id, str(problem.msg), str(problem.hint)) for problem in check_settings(None)]


def test_valid_settings_pass():
    assert found(CACHE="batches") == []


def test_an_unknown_key_is_an_error_with_a_suggestion():
    ((id, message, hint),) = found(CACHE="batches", DEFAULT_TIMOUT=3)
    assert (id, message) == ("django_batches.E001", 'Unknown key DJANGO_BATCHES["DEFAULT_TIMOUT"].')
    assert hint == 'Did you mean "DEFAULT_TIMEOUT"?'
    assert "The keys are: CACHE, NAMESPACE" in found(CACHE="batches", zzz=1)[0][2]


def test_a_namespace_with_other_characters_is_an_error():
    ((id, message, _),) = found(CACHE="batches", NAMESPACE="my shop")
    assert id == "django_batches.E002" and "use letters and digits only" in message


@pytest.mark.parametrize(
    ("key", "value", "fix"),
    [
        ("CACHE", None, "write the name of an alias in CACHES, as in 'batches'"),
        ("CACHE", "", "write the name of an alias"),
        ("NAMESPACE", 7, "use letters and digits only"),
        ("NAMESPACE", "x" * 41, "at most 40"),
        ("ALLOWED_FUNCTIONS", "reports.build", "write a list of dotted paths, as in ['reports.build']"),
        ("ALLOWED_FUNCTIONS", [print], "write a list of dotted paths"),
        ("ALLOWED_FUNCTIONS", [""], "write a list of dotted paths"),
        ("DEFAULT_TIMEOUT", "180", "write seconds as a number above 0, or a timedelta"),
        ("DEFAULT_TIMEOUT", 0, "above 0"),
        ("DEFAULT_TIMEOUT", True, "above 0"),
        ("DEFAULT_TIMEOUT", 2**31, "above 0"),
        ("OPEN_TIMEOUT", float("nan"), "above 0"),
        ("OPEN_TIMEOUT", timedelta(seconds=-1), "above 0"),
        ("MAX_PAYLOAD", -1, "write a whole number of bytes from 1 to 67,108,864"),
        ("MAX_PAYLOAD", 1e6, "whole number"),
        ("MAX_PAYLOAD", 2**30, "store larger data elsewhere"),
        ("ON_FAILURE", print, "write the dotted path of a function, as in 'shop.tasks.notify'"),
        ("ON_FAILURE", "tell", "write the dotted path"),
        ("STATUS_PERMISSION", "shop/views.py", "write the dotted path"),
        ("RQ_SERIALIZER", None, "write 'pickle', 'json', or the dotted path of a serializer"),
        ("SENSITIVE_KWARGS", "password", "write a list of names, as in ['password', 'iban'], or () to mask nothing"),
        ("SENSITIVE_KWARGS", ["_"], "write a list of names"),
    ],
)
def test_an_invalid_value_is_an_error_with_the_fix(key, value, fix):
    ((id, message, _),) = found(**{"CACHE": "batches", key: value})
    assert id == "django_batches.E002" and message.startswith(f'DJANGO_BATCHES["{key}"] is {value!r}: ')
    assert fix in message


def test_all_invalid_values_are_reported_at_once():
    ids = [id for id, _, _ in found(CACHE="batches", MAX_PAYLOAD=None, DEFAULT_TIMEOUT=None)]
    assert ids == ["django_batches.E002"] * 2


def test_a_setting_that_is_not_a_dict_is_an_error():
    with override_settings(DJANGO_BATCHES=["batches"]):
        (problem,) = check_settings(None)
    assert problem.id == "django_batches.E002" and 'write a dict, as in {"CACHE": "batches"}' in problem.msg


def test_every_key_is_validated():
    assert {field.name for field in fields(Settings)} - {"unknown"} == conf._RULES.keys()


def test_times_are_whole_seconds_rounded_up():
    with override_settings(DJANGO_BATCHES={"DEFAULT_TIMEOUT": timedelta(minutes=1.5), "OPEN_TIMEOUT": 0.5}):
        assert (settings().DEFAULT_TIMEOUT, settings().OPEN_TIMEOUT) == (90, 1)


def test_a_default_failure_callback_that_cannot_be_called_is_an_error():
    ((id, message, _),) = found(CACHE="batches", ON_FAILURE="tests.tasks.no_such")
    assert id == "django_batches.E006" and "no attribute 'no_such'" in message
    ((id, message, _),) = found(CACHE="batches", ON_FAILURE="os.system")
    assert id == "django_batches.E006" and "may not run as a job" in message
    ((id, message, hint),) = found(CACHE="batches", ON_FAILURE="tests.tasks.pid")
    assert id == "django_batches.E006" and "too many positional arguments" in message and "that takes (batch)" in hint


@pytest.mark.parametrize("path", ["no.such.Serializer", "yaml", "os.path"])
def test_a_serializer_that_rq_does_not_find_is_an_error(path):
    ((id, message, hint),) = found(CACHE="batches", RQ_SERIALIZER=path)
    assert id == "django_batches.E007" and path in message and "'pickle', 'json'" in hint


def test_keys_distributed_over_several_servers_are_an_error():
    options = {"CLIENT_CLASS": "django_redis.client.ShardClient"}
    location = ["redis://localhost/0", "redis://localhost/1"]
    cache = {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": location, "OPTIONS": options}
    with override_settings(CACHES={"batches": cache}, DJANGO_BATCHES={"CACHE": "batches"}):
        ((id, message, hint),) = [(each.id, each.msg, each.hint) for each in check_settings(None)]
        with pytest.raises(ImproperlyConfigured, match="ShardClient distributes its keys over several"):
            client()
    assert id == "django_batches.E005" and "a queue is on one server" in message and "one LOCATION" in hint


class Router:
    def db_for_write(self, model, **hints):
        return "books" if model._meta.app_label == "django_batches" else None


def test_a_router_that_stores_batches_elsewhere_is_a_warning(monkeypatch):
    monkeypatch.setitem(django_settings.DATABASES, "books", {"ENGINE": "django.db.backends.postgresql"})
    with override_settings(DATABASE_ROUTERS=["tests.checks.test_settings.Router"]):
        ((id, message, hint),) = found(CACHE="batches")
    assert id == "django_batches.W003" and 'stores the batches in "books"' in message
    assert 'transaction.atomic(using="books")' in hint


@pytest.mark.parametrize("alias", ["default", "no such"])
def test_an_alias_of_another_kind_of_cache_is_an_error(alias):
    ((id, message, hint),) = found(CACHE=alias)
    assert id == "django_batches.E003" and alias in message and "django_redis.cache.RedisCache" in hint


class OwnCache(RedisCache):
    """As that of django-prometheus."""


def test_a_subclass_of_the_cache_of_django_redis_passes():
    cache = {"BACKEND": "tests.checks.test_settings.OwnCache", "LOCATION": "redis://localhost/1"}
    with override_settings(CACHES={"batches": cache}):
        assert found(CACHE="batches") == []


@pytest.mark.parametrize("location", ["localhost:6379", "http://localhost:6379/1"])
def test_a_location_that_is_not_an_address_is_an_error(location):
    cache = {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": location}
    with override_settings(CACHES={"batches": cache}):
        ((id, message, _),) = found(CACHE="batches")
    assert id == "django_batches.E015" and "redis://localhost:6379/1" in message


def test_queues_in_the_default_cache_are_a_warning():
    redis = {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": "redis://localhost/0"}
    with override_settings(CACHES={"default": redis}):
        ((id, message, _),) = found()
    assert id == "django_batches.W001" and "cache.clear() of django-redis empties the whole database" in message


def test_sqlite_with_deferred_transactions_is_a_warning(monkeypatch):
    monkeypatch.setitem(django_settings.DATABASES, "default", {"ENGINE": "django.db.backends.sqlite3", "NAME": "x"})
    ((id, message, hint),) = found(CACHE="batches")
    assert id == "django_batches.W002" and "database is locked" in message and "IMMEDIATE" in hint


def test_another_kind_of_database_is_an_error(monkeypatch):
    monkeypatch.setattr(connection, "vendor", "mysql")
    ((id, message, hint),) = found(CACHE="batches")
    assert id == "django_batches.E014" and '"default", which is mysql' in message and "PostgreSQL or SQLite" in hint


def test_a_database_without_autocommit_is_an_error(monkeypatch):
    monkeypatch.setitem(django_settings.DATABASES["default"], "AUTOCOMMIT", False)
    ((id, message, _),) = found(CACHE="batches")
    assert id == "django_batches.E016" and "AUTOCOMMIT = False" in message


def test_the_namespace_comes_from_the_name_of_the_database(monkeypatch):
    monkeypatch.setitem(django_settings.DATABASES["default"], "NAME", "/var/lib/shop-prod.sqlite3")
    with override_settings(DJANGO_BATCHES={}):
        first = settings().NAMESPACE
        assert first.startswith("shopprodsqlite3") and first.isalnum()
    monkeypatch.setitem(django_settings.DATABASES["default"], "NAME", "/home/other/shop-prod.sqlite3")
    with override_settings(DJANGO_BATCHES={}):
        assert first != settings().NAMESPACE


def test_without_a_django_redis_alias_the_client_names_the_setting():
    with override_settings(DJANGO_BATCHES={"CACHE": "default"}), pytest.raises(ImproperlyConfigured, match="CACHE"):
        client()


def test_no_two_checks_share_an_id():
    homes = {}
    for path in Path(django_batches.__file__).parent.rglob("*.py"):
        for id in re.findall(r"django_batches\.[EW]\d{3}", path.read_text()):
            homes.setdefault(id, set()).add(path.name)
    assert len(homes) > 15 and {id for id, files in homes.items() if len(files) > 1} == set()
