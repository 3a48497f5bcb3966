import datetime
import decimal
import json
import uuid

import pytest
from django.test import override_settings

from django_batches.calls.arguments import clean, dump_arguments, dump_result, load_arguments


@pytest.mark.parametrize(
    "value",
    [None, True, 1, -1, 2**63, 1.5, "", "x", "ÅÄÖ", "\x00", "\ud800", "\u2028", [], [1, [2]], {}, {"a": {"b": [None]}}],
)
def test_json_values_round_trip_as_ascii_text(value):
    text = dump_arguments((value,), {"key": value}, ["value"])
    assert text.isascii() and "\x00" not in text
    assert load_arguments(text) == ([value], {"key": value})


def test_a_tuple_comes_back_as_a_list():
    assert load_arguments(dump_arguments(((1, 2),), {}, [])) == ([[1, 2]], {})


class Row:
    _meta = object()

    def __init__(self, pk):
        self.pk = pk


@pytest.mark.parametrize(
    ("value", "fix"),
    [
        (float("nan"), "image: nan does not exist in JSON: pass None"),
        (float("inf"), "does not exist in JSON"),
        (uuid.uuid4(), "a uuid.UUID cannot be passed as JSON: pass str(image)"),
        (Row(7), "pass image.pk"),
        (Row(uuid.uuid4()), "pass str(image.pk)"),
        ({1: "a"}, "the key 1 of the dict would become a string in JSON: pass str keys"),
        ({1, 2}, "pass sorted(image)"),
        (b"x", "store the data and pass its key"),
        (datetime.date(2026, 1, 1), "pass image.isoformat()"),
        (decimal.Decimal(1), "pass str(image)"),
        ([1, {"a": object()}], "image[1]['a']: an object cannot be passed as JSON"),
        (print, "cannot be passed as JSON"),
    ],
)
def test_a_value_that_is_not_json_is_refused_with_its_argument_and_the_fix(value, fix):
    with pytest.raises(TypeError) as raised:
        dump_arguments((value,), {}, ["image"])
    assert fix in str(raised.value)
    with pytest.raises(TypeError, match="colour"):
        dump_arguments((), {"colour": value}, [])


def test_large_arguments_and_results_are_refused_with_their_size():
    with override_settings(DJANGO_BATCHES={"CACHE": "batches", "MAX_PAYLOAD": 100}):
        with pytest.raises(ValueError, match=r"MAX_PAYLOAD \(100\): store the data and pass its key"):
            dump_arguments(("x" * 101,), {}, [])
        with pytest.raises(ValueError, match=r"The result is 103 bytes"):
            dump_result("x" * 101)


def test_a_result_that_is_not_json_is_refused():
    with pytest.raises(TypeError, match="the result"):
        dump_result(object())


def test_error_text_is_cleaned_for_every_database_and_cut_in_the_middle():
    assert clean("a\x00b\ud800c", 100) == "a\ufffdb\ufffdc"
    cut = clean("a" * 600 + "b" * 600, 1000)
    assert cut.startswith("a" * 500) and cut.endswith("b" * 500)
    assert "200 characters cut" in cut
    assert json.dumps(cut)
