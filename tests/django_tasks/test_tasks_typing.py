"""A wrong call of a Task is a type error where it is added, as that of a function is."""

from importlib.util import find_spec

import pytest

from ..type_checks import assert_only_marked_lines_are_errors

pytestmark = pytest.mark.once
CODE = """
from typing import Any
from {framework} import TaskContext, task
from django_batches import Batch
from django_batches.models import Batch as Model

@task
def resize(pk: int, size: str = "") -> int:
    return pk

@task
async def resize_async(pk: int) -> int:
    return pk

@task(takes_context=True)
def tell(context: TaskContext{parameters}, pk: int) -> int:
    return pk

@task
def done(batch: Model, pk: int) -> None: ...

with Batch.open() as batch:
    batch.enqueue(resize, 1, size="large")
    batch.enqueue(resize_async, 1)
    batch.enqueue(tell, 1)
    batch.map(resize, [1, 2], size="large")
    batch.using(queue="images").starmap(resize, [(1, "large")])
    batch.on_success(done, 7)
    batch.enqueue("shop.tasks.resize", 1, size=2)
    batch.enqueue(resize, "one")  # error
    batch.enqueue(resize, 1, colour=3)  # error
    batch.using(queue="images").enqueue(resize_async, "one")  # error
    batch.enqueue(tell, "one")  # error
    batch.map(resize, ["one"])  # error
    batch.on_success(done, "one")  # error
    batch.on_success(resize, 1)  # error
"""


@pytest.mark.parametrize(("framework", "parameters"), [("django.tasks", "[Any, Any]"), ("django_tasks", "")])
def test_a_wrong_call_of_a_task_is_a_type_error(tmp_path, framework, parameters):
    if find_spec(framework) is None and framework == "django_tasks":
        pytest.skip("the backport is not installed")
    assert_only_marked_lines_are_errors(tmp_path / "shop.py", CODE.format(framework=framework, parameters=parameters))
