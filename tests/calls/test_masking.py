"""Values that SENSITIVE_KWARGS names appear neither in the admin nor in logs nor in error messages."""

import json
import logging
import random
from collections import OrderedDict, namedtuple
from io import StringIO

import pytest
from django.core.management import call_command
from django.test import override_settings
from django.urls import reverse

from django_batches import Batch, database
from django_batches.admin.job_rows import MAX_SIZE
from django_batches.calls.arguments import dump_arguments, masked_arguments, masked_result
from django_batches.calls.functions import bound_names
from django_batches.calls.masking import MASK, is_sensitive, masked_value
from django_batches.conf import SENSITIVE
from django_batches.database import inserting
from django_batches.exceptions import FunctionNotAllowed
from django_batches.models import BatchJob
from django_batches.transport.message import Message
from django_batches.transport.scripts import Pushed

from .. import tasks
from ..admin_data import new_job, user_with

SECRET = "hunter2-correct-horse"
PATH = "tests.calls.test_masking"


def log_in(user, password, *codes, retries=0, **options):
    return {"user": user, "access_token": SECRET}


def log_in_and_fail(user, password, options=None):
    raise ValueError(user)


def callback_with_token(batch, user, api_key):
    return user


def shown(func, *args, **kwargs):
    text = masked_arguments(f"{PATH}.{func.__name__}", dump_arguments(args, kwargs, []))
    return json.loads(text)


@pytest.mark.parametrize(
    "name",
    ["password", "PASSWORD", "db_password", "userPassword", "API-Key", "apiKey", "X-Api-Key", "access_tokens", "Cookie",
     "client-secret", "aws_secret_access_key", "Authorization", "credentials", "passphrase", "sessionid"],
)  # fmt: skip
def test_a_name_is_sensitive_in_any_case_and_with_any_separators(name):
    assert is_sensitive(name)


@pytest.mark.parametrize("name", ["user", "key", "author", "image_pk", "size", "", "session", "passenger", "pass"])
def test_other_names_are_shown(name):
    assert not is_sensitive(name)


def test_the_signature_names_positional_arguments():
    assert shown(log_in, "ann", SECRET, 1, 2) == [["ann", MASK, 1, 2], {}]


def test_keywords_and_the_keys_of_dicts_at_any_depth_are_masked():
    options = {"headers": [{"Authorization": {"bearer": [SECRET]}, "Accept": "*"}], "proxy_password": None}
    assert shown(log_in, "ann", password=SECRET, options=options) == [
        ["ann"],
        {"password": MASK, "options": {"headers": [{"Authorization": MASK, "Accept": "*"}], "proxy_password": MASK}},
    ]


def test_the_arguments_of_a_callback_begin_after_its_batch():
    text = dump_arguments(("ann", SECRET), {}, [])
    assert json.loads(masked_arguments(f"{PATH}.callback_with_token", text, is_callback=True)) == [["ann", MASK], {}]


@pytest.mark.parametrize("func", ["os.system", "tests.no_such.task", "tests.tasks.no_such", "nonsense", ""])
def test_if_the_function_is_missing_every_positional_argument_is_masked(func):
    assert json.loads(masked_arguments(func, '[["a",[1],{"b":2}],{"size":"large"}]')) == [
        [MASK, MASK, MASK],
        {"size": "large"},
    ]


def test_results_are_masked_by_their_keys():
    assert json.loads(masked_result(json.dumps([{"token": SECRET, "user": "ann"}]))) == [{"token": MASK, "user": "ann"}]
    assert masked_result('"text"') == '"text"'


def test_the_setting_replaces_the_sensitive_names():
    with override_settings(DJANGO_BATCHES={"CACHE": "batches", "SENSITIVE_KWARGS": ["iban"]}):
        assert shown(log_in, "ann", SECRET, IBAN="DE00") == [["ann", SECRET], {"IBAN": MASK}]
    with override_settings(DJANGO_BATCHES={"CACHE": "batches", "SENSITIVE_KWARGS": ()}):
        assert shown(log_in, "ann", SECRET) == [["ann", SECRET], {}]
        assert masked_arguments("tests.no_such.task", "[[1],{}]") == "[[1],{}]"


def random_value(draw, depth=0):
    kind = draw.randrange(8 if depth < 4 else 6)
    if kind == 6:
        return [random_value(draw, depth + 1) for _ in range(draw.randrange(4))]
    if kind == 7:
        keys = ["user", "token", 'a"b\\', "påssword", "", "api key", "x:y,{[]}"]
        return {draw.choice(keys): random_value(draw, depth + 1) for _ in range(draw.randrange(4))}
    return [None, True, -1.5e-7, 'quote " and \\ \n', "{[:,]}", "ÅÄÖ"][kind]


def leaves_under_sensitive_keys(value):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from [item] if is_sensitive(key) else leaves_under_sensitive_keys(item)
    elif isinstance(value, list):
        for item in value:
            yield from leaves_under_sensitive_keys(item)


def without_masks(value):
    if isinstance(value, dict):
        return {key: MASK if is_sensitive(key) else without_masks(item) for key, item in value.items()}
    return [without_masks(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("seed", range(200))
def test_only_the_values_of_sensitive_keys_are_masked(seed):
    value = random_value(random.Random(seed))
    for options in ({}, {"indent": 1}, {"separators": (",", ":")}):
        shown = json.loads(masked_result(json.dumps(value, **options)))
        assert set(leaves_under_sensitive_keys(shown)) <= {MASK}
        assert shown == without_masks(value)


def test_text_that_is_cut_off_anywhere_is_masked_as_a_whole():
    options = {"a\\": 1, "token": [SECRET, {"x": SECRET}], "b": '"', "p\u0061ssword": SECRET, "c": "\\"}
    text = dump_arguments(("ann", SECRET), {"options": options, "secret": {"deep": SECRET}}, [])
    for length in range(len(text)):
        assert masked_arguments(f"{PATH}.log_in", text[:length]) == MASK


@pytest.mark.parametrize("text", ["", "nonsense", "{}", "null", "7", '["ann",{}]', "[[],[]]", "[[]]", "[" * 100_000])
def test_text_that_is_not_a_call_is_masked_as_a_whole(text):
    assert masked_arguments(f"{PATH}.log_in", text) == MASK


def test_characters_that_no_page_can_carry_are_replaced():
    assert masked_result('"\\ud800\\u00c5"') == '"\ufffdÅ"'


def test_values_of_subclasses_are_masked_too():
    Pair = namedtuple("Pair", "name options")
    value = [OrderedDict(token=SECRET), Pair("ann", {"password": SECRET})]
    assert masked_value(value) == [{"token": MASK}, ("ann", {"password": MASK})]


def test_a_key_with_escapes_is_recognised():
    assert json.loads(masked_result('{"p\\u0061ssword":"x","tok\\u0065n":1}')) == {"password": MASK, "token": MASK}


def test_the_defaults_are_what_the_readme_says():
    assert SENSITIVE == (
        "password", "passwd", "passphrase", "pwd", "secret", "token", "api_key", "private_key", "access_key",
        "authorization", "credential", "cookie", "session_id",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("args", "kwargs", "call"),
    [
        (("ann",), {"colour": 1}, "('ann', colour=1)"),
        ((), {"password": SECRET, "options": {"token": SECRET}}, f"(password={MASK}, options={{'token': '{MASK}'}})"),
        (("ann", SECRET, None, SECRET), {}, f"('ann', {MASK}, None, {MASK})"),
    ],
)
def test_the_error_of_a_wrong_call_shows_no_secret(args, kwargs, call):
    with pytest.raises(TypeError) as raised:
        bound_names(f"{PATH}.log_in_and_fail", 0, args, kwargs)
    assert SECRET not in str(raised.value)
    assert f"log_in_and_fail{call}: " in str(raised.value)


def test_the_error_of_a_value_that_is_not_json_shows_no_secret():
    with pytest.raises(TypeError) as raised:
        dump_arguments((), {"options": {"password": SECRET.encode()}}, [])
    assert SECRET not in str(raised.value) and "options['password']: a bytes cannot be passed" in str(raised.value)
    with pytest.raises(FunctionNotAllowed) as refused:
        bound_names("os.system", 0, (SECRET,), {})
    assert SECRET not in str(refused.value)


def test_messages_do_not_print_their_arguments():
    """Debuggers and error reporters print the objects of each stack frame."""
    message = json.dumps(["0" * 32, "1" * 32, 0, "", "tests.tasks.ok", 9, 0, 1, [], [[SECRET], {}]])
    assert SECRET not in repr(Message.loads("batch-tests-1-1", message))
    assert SECRET not in repr(Pushed("id", message, "owner", 9, "tests.tasks.ok"))


def test_a_secret_is_on_no_page_and_in_no_log(road, client, caplog):
    caplog.set_level(logging.DEBUG)
    with Batch.open("Log in", metadata={"smtp": {"password": SECRET}, "customer": "ann"}) as batch:
        batch.on_finish(callback_with_token, "ann", SECRET)
        batch.enqueue(log_in, "visible-user", SECRET, 7)
        batch.enqueue(log_in, "visible-user", password=SECRET, nested=[{"client_secret": SECRET}])
        batch.enqueue(log_in_and_fail, "visible-user", SECRET)
        batch.enqueue(log_in, "x" * (MAX_SIZE - 10), SECRET)
        batch.enqueue(log_in, "x" * (MAX_SIZE - 20), password=SECRET)
    road.run()
    batch.refresh_from_db()
    assert (batch.succeeded, batch.failed) == (4, 1)
    client.force_login(user_with("view_batch", "view_job_arguments"))
    pages = [
        reverse("admin:django_batches_batch_change", args=[batch.pk]),
        reverse("admin:django_batches_batch_jobs", args=[batch.pk]),
        reverse("admin:django_batches_batch_jobs", args=[batch.pk]) + "?status=failed",
        reverse("admin:django_batches_batch_changelist"),
    ]
    texts = [client.get(page).content.decode() for page in pages]
    for options in ({}, {"json": True}):
        call_command("batches", "show", str(batch.pk), **options, stdout=(said := StringIO()))
        assert MASK in said.getvalue() or "\\u2022" in said.getvalue()
        pages, texts = [*pages, "show"], [*texts, said.getvalue()]
    assert "visible-user" in texts[1] and MASK in texts[0] and MASK in texts[1]
    assert [page for page, text in zip(pages, texts, strict=True) if "hunter2" in text] == []
    assert "log_in_and_fail" in caplog.text
    assert "hunter2" not in caplog.text + str([vars(record) for record in caplog.records])


def test_a_real_worker_prints_no_secret(start_worker):
    worker = start_worker("--workers", 1)
    with Batch.open() as batch:
        batch.on_finish(callback_with_token, "ann", SECRET)
        batch.enqueue(log_in, "ann", SECRET)
        batch.enqueue(log_in_and_fail, "ann", password=SECRET)
        batch.enqueue(tasks.kill_self)
    assert batch.wait(60)
    assert worker.stop() is None and "log_in_and_fail" in worker.log
    assert "hunter2" not in worker.log


@pytest.mark.django_db
def test_a_job_whose_module_is_missing_is_shown_without_its_arguments(client, admin_client):
    with Batch.open() as batch:
        batch.enqueue(tasks.ok)
    inserting.jobs([new_job(batch, 1, "tests.gone.log_in")])
    database.jobs().filter(batch=batch, position=1).update(arguments=json.dumps([[SECRET], {}]))
    page = admin_client.get(reverse("admin:django_batches_batch_jobs", args=[batch.pk])).content.decode()
    assert "tests.gone.log_in" in page and "hunter2" not in page
    assert BatchJob.objects.get(batch=batch, position=1).args == [SECRET]
