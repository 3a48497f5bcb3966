import pytest
from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from django_batches.checks import check_settings
from django_batches.conf import settings
from django_batches.connection import client


def found(**given):
    with override_settings(DJANGO_BATCHES=given):
        return [(problem.id, str(problem.msg), str(problem.hint)) for problem in check_settings(None)]


def test_good_settings_are_silent():
    assert found(CACHE="batches") == []


def test_an_unknown_key_is_an_error_with_a_suggestion():
    ((id, message, hint),) = found(CACHE="batches", DEFAULT_TIMOUT=3)
    assert (id, message) == ("django_batches.E001", 'Unknown key DJANGO_BATCHES["DEFAULT_TIMOUT"].')
    assert hint == 'Did you mean "DEFAULT_TIMEOUT"?'
    assert "The keys are: CACHE, NAMESPACE" in found(CACHE="batches", zzz=1)[0][2]


def test_a_namespace_that_cannot_stand_in_a_key_is_an_error():
    ((id, message, _),) = found(CACHE="batches", NAMESPACE="my shop")
    assert id == "django_batches.E002" and "use letters and digits only" in message


@pytest.mark.parametrize("alias", ["default", "no such"])
def test_an_alias_that_is_no_django_redis_cache_is_an_error(alias):
    ((id, message, hint),) = found(CACHE=alias)
    assert id == "django_batches.E003" and alias in message and "django_redis.cache.RedisCache" in hint


def test_queues_on_the_caches_own_alias_are_warned_of():
    redis = {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": "redis://localhost/0"}
    with override_settings(CACHES={"default": redis}):
        ((id, message, _),) = found()
    assert id == "django_batches.W001" and "cache.clear() of django-redis empties the whole database" in message


def test_sqlite_that_does_not_begin_as_a_writer_is_warned_of(monkeypatch):
    monkeypatch.setitem(django_settings.DATABASES, "default", {"ENGINE": "django.db.backends.sqlite3", "NAME": "x"})
    ((id, message, hint),) = found(CACHE="batches")
    assert id == "django_batches.W002" and "database is locked" in message and "IMMEDIATE" in hint


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
