"""The statements of the coordinator, by PostgreSQL's own count, do not read more with each job that has ended."""

from contextlib import contextmanager

import pytest
from django.db import connection, transaction

from django_batches import Batch
from django_batches.models import BatchJob
from django_batches.transitions import applying, claiming
from django_batches.transitions.frontier import Frontier

from .. import tasks
from ..road import open_elsewhere, outcome_of

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgresql]

TABLE = BatchJob._meta.db_table
FEW = 60
"""Pages of 8 KB that a statement reads to find five rows; a page may count more than once."""


@pytest.fixture
def without_vacuum():
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {TABLE} SET (autovacuum_enabled = off)")
        yield
        cursor.execute(f"ALTER TABLE {TABLE} RESET (autovacuum_enabled)")


def fill(count):
    with Batch.open() as batch:
        batch.map(tasks.ok, range(count))
    return batch


def turn(road, frontier, count):
    """Claims jobs, all of which succeed."""
    claimed = claiming.claim_jobs("default", count, road.lease, frontier)
    applying.record([outcome_of(job) for job in claimed], road.lease)
    assert len(claimed) == count


@contextmanager
def plans():
    """Collects the plans of the statements in the block. Each runs twice, and is rolled back once."""
    found = []

    def explain(execute, sql, params, many, context):
        if sql.split()[0] in ("SELECT", "WITH", "UPDATE", "INSERT"):
            with transaction.atomic():
                execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}", params, many, context)
                ((plans,),) = context["cursor"].fetchall()
                transaction.set_rollback(True)
            found.append(plans[0]["Plan"])
        return execute(sql, params, many, context)

    with connection.execute_wrapper(explain):
        yield found


def pages(plan):
    """The pages that a statement reads to find rows, without those that an UPDATE reads to write them."""
    found = plan["Plans"] if plan["Node Type"] == "ModifyTable" else [plan]
    return sum(each["Shared Hit Blocks"] + each["Shared Read Blocks"] for each in found)


def nodes(plan):
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


@pytest.mark.parametrize("is_analyzed", [False, True])
def test_no_statement_reads_the_whole_table(road, without_vacuum, is_analyzed):
    """PostgreSQL prefers to read the whole table to claim a thousand of up to 100,000 rows."""
    fill(20_000)
    frontier = Frontier()
    turn(road, frontier, 1_500)
    if is_analyzed:
        with connection.cursor() as cursor:
            cursor.execute(f"ANALYZE {TABLE}")
    for count in (50, 1_000):
        with plans() as found:
            turn(road, frontier, count)
        read = [(node["Node Type"], node.get("Relation Name")) for plan in found for node in nodes(plan)]
        assert ("ModifyTable", TABLE) in read and ("Seq Scan", TABLE) not in read


def test_a_claim_does_not_read_ended_jobs_again_while_a_dump_is_open(road, without_vacuum):
    """The snapshot of a dump keeps every old version of a row, and its entries in the indexes."""
    fill(5_000)

    def dump():
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            cursor.execute(f"SELECT COUNT(*) FROM {TABLE}")

    frontier = Frontier()
    with open_elsewhere(dump):
        for _ in range(8):
            turn(road, frontier, 500)
        with plans() as found:
            turn(road, frontier, 5)
        with plans() as from_the_start:
            Frontier().find_batches("default")
    assert max(map(pages, found)) < FEW < pages(*from_the_start)
