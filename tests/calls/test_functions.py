import functools

import pytest
from django.test import override_settings
from rq.decorators import job as rq_job

from django_batches.calls import functions
from django_batches.calls.functions import bound_names, path_of, resolve
from django_batches.exceptions import FunctionNotAllowed

from .. import tasks


class Thing:
    def method(self):
        pass


@rq_job("default", connection=object())
def decorated(value):
    return value


@functools.wraps(tasks.ok)
def impostor(value=None):
    return value


def test_a_function_of_an_installed_app_is_found_by_its_path():
    assert path_of(tasks.ok) == path_of("tests.tasks.ok") == "tests.tasks.ok"
    assert resolve("tests.tasks.ok") is tasks.ok


def test_an_rq_job_function_is_a_function():
    assert path_of(decorated) == "tests.calls.test_functions.decorated"


@pytest.mark.parametrize(
    ("func", "words"),
    [
        ("os.system", "os.system may not run as a job: its module os is in no installed app"),
        ("tests.tasks.os.system", "cannot be imported"),
        ("tests.tasks.no_such", "cannot be imported (module 'tests.tasks' has no attribute 'no_such')"),
        ("tests.no_such.task", "cannot be imported (No module named 'tests.no_such')"),
        ("ok", "is not a dotted path"),
        ("tests.tasks.time", "is not a function"),
        ("tests.borrowed.run", "subprocess.run may not run as a job: its module subprocess"),
        (lambda: None, "a lambda"),
        (Thing().method, "a method"),
        (Thing.method, "a method"),
        (Thing, "a type"),
        (functools.partial(tasks.ok, 1), "functools.partial"),
        (impostor, "names another object"),
        (7, "is not a function"),
        (print, "builtins.print may not run as a job"),
    ],
)
def test_a_forbidden_function_is_refused_with_the_fix(func, words):
    with pytest.raises(FunctionNotAllowed) as raised:
        path_of(func)
    assert words in str(raised.value)


def test_the_refusal_names_the_setting():
    with pytest.raises(FunctionNotAllowed, match=r'"os.system" to DJANGO_BATCHES\["ALLOWED_FUNCTIONS"\]'):
        path_of("os.system")


def test_a_function_inside_a_function_is_refused():
    def inner():
        pass

    with pytest.raises(FunctionNotAllowed, match="a function inside a function"):
        path_of(inner)


def test_the_setting_allows_a_module_or_a_function():
    for allowed in ("shutil", "shutil.which"):
        with override_settings(DJANGO_BATCHES={"CACHE": "batches", "ALLOWED_FUNCTIONS": [allowed]}):
            assert path_of("shutil.which") == "shutil.which"


def test_a_path_is_imported_only_if_its_module_is_allowed(monkeypatch):
    imported = []
    monkeypatch.setattr(functions, "import_module", imported.append)
    with pytest.raises(FunctionNotAllowed):
        resolve("antigravity.fly")
    assert imported == []


def test_an_imported_function_does_not_run_by_the_path_of_the_importing_module():
    with pytest.raises(FunctionNotAllowed):
        resolve("tests.borrowed.run")


@pytest.mark.parametrize(
    ("args", "kwargs"), [((1, 2), {}), ((), {"vlaue": 1}), ((1,), {"value": 2})], ids=["too many", "typo", "twice"]
)
def test_an_invalid_call_is_refused_with_the_signature(args, kwargs):
    with pytest.raises(TypeError, match=r"its signature is \(value=None\)"):
        bound_names("tests.tasks.ok", 0, args, kwargs)


def test_a_callback_is_bound_with_its_batch():
    assert bound_names("tests.tasks.told", 1, ("path",), {}) == ["path", "text"]
    with pytest.raises(TypeError, match=r"told\(batch\): missing"):
        bound_names("tests.tasks.told", 1, (), {})
