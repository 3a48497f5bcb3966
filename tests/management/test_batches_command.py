"""`manage.py batches`: its output, its effects, and its exit codes."""

import os
import pty
import re
import subprocess
import sys
import threading
from datetime import timedelta
from uuid import UUID

import pytest
from django.db import connection
from django.utils import timezone, translation

from django_batches import Batch, database
from django_batches.management.batches.base import aligned, printable
from django_batches.models import Lease
from django_batches.transitions import applying
from django_batches.transport import probe
from django_batches.transport.outcomes import Kind

from .. import tasks
from ..admin_data import batch_of, batchworker_is_there, child_of, new_callback
from ..commanding import batches
from ..monitoring.test_diagnosis import at
from ..processes import ROOT, wait_until
from ..road import claim, outcome_of, statements

pytestmark = pytest.mark.django_db(transaction=True)


def twins(first="0", second="1"):
    """Two batches whose ids differ in one digit."""
    keys = [UUID(f"01a200c9-4bb0-7000-8097-95c1{digit}1c15be5") for digit in (first, second)]
    return [batch_of(f"Twin {digit}", succeeded=1, id=key) for digit, key in zip((first, second), keys, strict=True)]


class TestLookup:
    @pytest.mark.parametrize(
        "cut", [slice(None), slice(-12, None), slice(-20, None), slice(25), slice(28)], ids=lambda cut: str(cut)
    )
    def test_finds_a_batch_by_its_id_or_the_end_or_beginning_of_it(self, cut):
        first, _second = twins()
        result = batches("show", first.pk.hex[cut])
        assert result.code == 0 and "Twin 0" in result.out

    def test_accepts_hyphens_and_capitals(self):
        batch, _ = twins()
        assert "Twin 0" in batches("show", str(batch.pk).upper()).out
        assert "Twin 0" in batches("show", str(batch.pk)[-20:]).out

    def test_an_ambiguous_id_is_refused_and_the_candidates_are_named(self):
        first, second = twins()
        for ambiguous in (first.pk.hex[-6:], first.pk.hex[:8]):
            result = batches("cancel", ambiguous)
            assert result.code == 1 and "ambiguous" in result.err
            assert str(first.pk) in result.err and str(second.pk) in result.err and "Twin 1" in result.err

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("ffff", "No batch has an id that begins or ends with ffff"),
            ("fff", "at least 4 digits"),
            ("product 7", "is not the id of a batch"),
        ],
    )
    def test_an_unknown_id_is_refused(self, name, words):
        batch_of(succeeded=1)
        result = batches("show", name)
        assert result.code == 1 and words in result.err

    def test_nothing_is_done_if_one_of_several_batches_is_not_found(self):
        batch = batch_of(created=1)
        assert batches("pause", batch.pk, "ffffffff").code == 1
        batch.refresh_from_db()
        assert not batch.is_paused


class TestList:
    def test_shows_the_newest_first_in_aligned_columns(self):
        batch_of("First", succeeded=1_200), batch_of("Second", failed=2, created=6)
        result = batches("list")
        header, second, first = result.out.splitlines()
        assert header.split() == ["BATCH", "STATUS", "DONE", "FAILED", "TIME", "DESCRIPTION"]
        assert "1,200 / 1,200" in first and "2 / 8" in second and "25 %" in second
        assert first.index("First") == second.index("Second") == header.index("DESCRIPTION")
        assert result.code == 0

    def test_the_number_of_queries_is_constant(self):
        for _ in range(5):
            batch_of(succeeded=1, created=1)
        with statements() as made:
            batches("list")
        assert len(made) == 2

    def test_filters_by_status_and_limits_the_number(self):
        for _ in range(3):
            batch_of("Bad", failed=1)
        batch_of("Good", succeeded=1), batch_of("Busy", created=1)
        assert "Bad" not in batches("list", "--status", "running", "--status", "succeeded").out
        result = batches("list", "--status", "failed", "--limit", "2")
        assert result.out.count("Bad") == 2 and "There are more: --limit" in result.out

    def test_as_json(self):
        batch = batch_of("Images", succeeded=3, failed=1)
        (shown,) = batches("list", "--json").json
        assert shown["id"] == str(batch.pk) and shown["description"] == "Images"
        assert (shown["total"], shown["succeeded"], shown["failed"], shown["progress"]) == (4, 3, 1, 1.0)
        assert batches("list", "--json", "--status", "open").json == []

    def test_an_empty_list_says_so(self):
        result = batches("list")
        assert (result.code, result.out) == (0, "There are none.\n")

    def test_control_characters_of_a_description_are_not_printed(self):
        batch_of("red \x1b[31m\r\nnext\x07", succeeded=1)
        result = batches("list")
        assert "red �[31m next�" in result.out and "\x1b" not in result.out

    def test_is_in_english_whatever_the_active_language(self):
        batch_of(created=2, is_paused=True)
        with translation.override("de"):
            assert "paused" in batches("list").out

    def test_a_limit_of_zero_is_refused(self):
        assert batches("list", "--limit", "0").code == 1


class TestStuck:
    def test_lists_stuck_batches_and_why_and_exits_with_1(self, redis):
        batchworker_is_there()
        batch_of("Stuck", created=3, queue="unused")
        result = batches("list", "--stuck")
        assert result.code == 1 and "Stuck" in result.out and "No worker listens on the queue “unused”." in result.out
        (shown,) = batches("list", "--stuck", "--json").json
        assert [finding["code"] for finding in shown["why"]] == ["no_worker"]

    def test_exits_with_0_if_no_batch_is_stuck(self, redis, keys):
        batchworker_is_there()
        redis.sadd(keys.workers_of("default"), keys.worker("one"))
        redis.hset(keys.worker("one"), "birth", "now")
        batch_of("Busy", running=1, created=3)
        batch_of("Over", succeeded=1)
        result = batches("list", "--stuck")
        assert (result.code, result.out) == (0, "There are none.\n")

    def test_a_paused_batch_is_not_stuck(self, redis):
        batch_of("Paused", created=3, is_paused=True)
        assert batches("list", "--stuck").code == 0

    def test_an_ended_batch_whose_callback_waits_for_a_worker_is_stuck(self, redis):
        batchworker_is_there()
        batch = batch_of("Ended", succeeded=1, open_callbacks=1)
        new_callback(batch, queue="unused")
        assert "queue “unused”" in batches("list", "--stuck").out
        database.jobs().filter(callback_of=batch).update(status="running")
        assert "queue “unused”" in batches("list", "--stuck").out

    def test_redis_is_queried_once_for_many_batches(self, redis, monkeypatch):
        calls, query = [], probe.probe_workers
        monkeypatch.setattr(probe, "probe_workers", lambda queues: calls.append(queues) or query(queues))
        for _ in range(6):
            batch_of(created=1)
        assert batches("list", "--stuck").code == 1
        assert len(calls) == 1


class TestShow:
    def test_shows_counts_limits_callbacks_failures_and_findings(self, redis):
        batch = batch_of(
            "Images", succeeded=3, failed=2, created=3, running=1, concurrency=5, max_failures=20, max_attempts=3,
            backoff='[5.0, 60.0]', key="images-7", metadata={"product": 7},
        )  # fmt: skip
        new_callback(batch, event="failure", status="failed", error="Traceback\nOSError: no mail")
        result = batches("show", batch.pk)
        for words in (
            "5 / 9, 55 %: 3 succeeded, 2 failed, 4 pending (1 in RQ)", "concurrency 5", "max_failures 20", "3 attempts",
            "backoff 5.0 s, 1 min", "images-7", '{"product": 7}', "No batchworker has ever run",
            "OSError: no mail", "shop.errors.TooLarge", "TooLarge: 21 MB", "job 3  tests.tasks.ok  1 attempt on host",
            "Why isn't it progressing?",
        ):  # fmt: skip
            assert words in result.out, words
        assert "Traceback" not in result.out and '"large"' not in result.out and result.code == 0

    def test_as_json(self, redis):
        batch = batch_of(failed=7, created=1)
        shown = batches("show", batch.pk, "--json", "--failures", "2").json
        assert [job["position"] for job in shown["first_failures"]] == [0, 1]
        assert shown["failure_groups"] == [
            {"count": 7, "error_type": "shop.errors.TooLarge", "sample": "TooLarge: 21 MB"}
        ]
        assert shown["why"][0]["level"] == "error" and shown["limits"]["max_attempts"] == 1

    def test_shows_the_batches_above_and_the_child_batches(self, redis):
        root = batch_of("Import", waiting=2)
        below = child_of(root.jobs.get(position=1), "Pages", waiting=1, succeeded=2)
        leaf = child_of(below.jobs.get(status="waiting"), "Lines\n", failed=1, succeeded=1)
        callback = new_callback(below, event="failure", status="waiting")
        done = [child_of(below.jobs.get(status="waiting"), f"Done {number}", succeeded=1) for number in range(11)]
        child_of(callback, "Letters", created=4)
        result = batches("show", below.pk)
        assert f"Opened by  job 1 of Import ({root.pk.hex[-12:]})" in result.out
        assert "Children   13: 11 succeeded, 1 failed, 1 running" in result.out
        shown = [line.split() for line in result.out.partition("Child batches\n")[2].splitlines()[:10]]
        assert shown[0] == [leaf.pk.hex[-12:], "failed", "2", "/", "2", "job", "2", "Lines"]
        assert shown[1][1:] == ["running", "0", "/", "4", "callback", "failure", "Letters"]
        assert [line[-2:] for line in shown[2:]] == [["Done", str(number)] for number in range(8)]
        above = f"job {leaf.parent.position} of Pages ({below.pk.hex[-12:]}), opened by job 1 of Import"
        assert above in batches("show", leaf.pk).out
        shown = batches("show", below.pk, "--json").json
        assert [(parent["id"], parent["opened_by"]["position"]) for parent in shown["parents"]] == [(str(root.pk), 1)]
        assert shown["children"]["total"] == 13 and shown["children"]["failed"] == 1
        assert shown["children"]["first"][0]["id"] == str(leaf.pk) and len(done) == 11

    def test_the_number_of_queries_does_not_grow_with_the_children(self, redis):
        few, many = batch_of(waiting=1), batch_of(waiting=30)
        for parent in (*few.jobs.all(), *many.jobs.all()):
            child_of(parent, failed=1)
        with statements() as for_few:
            batches("show", few.pk)
        with statements() as for_many:
            batches("show", many.pk)
        assert len(for_few) == len(for_many)

    @pytest.mark.parametrize(
        ("left", "fields", "text"),
        [
            (630, {"created": 1}, "in 10 min"),
            (-120, {"created": 1, "overdue_at": timezone.now()}, "overdue for 2 min"),
            (-120, {"succeeded": 1, "overdue_at": timezone.now()}, "missed by 2 min"),
            (600, {"succeeded": 1}, "met"),
        ],
        ids=["to come", "overdue", "missed", "met"],
    )
    def test_shows_the_deadline(self, left, fields, text, redis):
        due = timezone.now() + timedelta(seconds=left)
        batch = batch_of(deadline=300, deadline_at=due, **fields)
        result = batches("show", batch.pk)
        (line,) = [line for line in result.out.splitlines() if line.strip().startswith("Deadline")]
        assert text in line and "deadline 5 min" in result.out
        assert batches("show", batch.pk, "--json").json["limits"]["deadline"] == 300

    def test_an_ended_batch_has_no_findings(self, redis):
        assert "Why" not in batches("show", batch_of(succeeded=1).pk).out

    def test_the_number_of_queries_does_not_grow_with_the_jobs(self, redis):
        few, many = batch_of(failed=6, created=2), batch_of(failed=600, created=200)
        with statements() as for_few:
            batches("show", few.pk)
        with statements() as for_many:
            batches("show", many.pk)
        assert len(for_few) == len(for_many)


class TestActions:
    def test_retry_runs_failed_jobs_again(self):
        batch = batch_of(succeeded=1, failed=2)
        result = batches("retry", batch.pk)
        batch.refresh_from_db()
        assert (result.code, batch.status, batch.pending) == (
            0,
            "running",
            2,
        ) and "2 jobs will run again." in result.out

    def test_a_retry_without_failed_jobs_exits_with_1_and_names_the_option_for_cancelled_jobs(self):
        batch = batch_of(succeeded=1, cancelled=2)
        result = batches("retry", batch.pk)
        assert result.code == 1 and "--include-cancelled" in result.err
        assert batches("retry", batch.pk, "--include-cancelled").code == 0
        assert batches("retry", batch_of(succeeded=1).pk).code == 1

    def test_a_retry_during_a_cancel_is_refused(self):
        batch = batch_of(running=1, failed=1, cancelled_at=timezone.now())
        result = batches("retry", batch.pk)
        assert result.code == 1 and "is being cancelled: retry once it has ended" in result.err

    def test_a_batch_is_cancelled_once(self):
        batch = batch_of(created=3, running=1)
        result = batches("cancel", batch.pk, "--reason", "wrong file")
        batch.refresh_from_db()
        assert (result.code, batch.cancelled, batch.reason) == (0, 3, "wrong file")
        assert "3 jobs cancelled; 1 job in RQ will finish first." in result.out
        again = batches("cancel", batch.pk)
        assert again.code == 1 and "is already being cancelled" in again.err
        ended = batches("cancel", batch_of(succeeded=1).pk)
        assert ended.code == 1 and "has already ended" in ended.err

    def test_a_cancel_while_every_job_runs_succeeds_without_ending_a_job(self):
        result = batches("cancel", batch_of(running=2).pk)
        assert result.code == 0 and "0 jobs cancelled; 2 jobs in RQ" in result.out

    def test_pause_resume_and_seal_exit_with_1_the_second_time(self):
        batch = batch_of(created=1, status="open", sealed_at=None)
        codes = [batches(verb, batch.pk).code for verb in ("pause", "pause", "resume", "resume", "seal", "seal")]
        assert codes == [0, 1, 0, 1, 0, 1]
        batch.refresh_from_db()
        assert batch.sealed_at and not batch.is_paused

    def test_exits_with_1_if_nothing_was_done_for_one_of_several_batches(self):
        first, second = batch_of(created=1), batch_of(created=1, is_paused=True)
        result = batches("pause", first.pk, second.pk, "--json")
        assert result.code == 1 and [line["done"] for line in result.json] == [True, False]
        assert Batch.objects.filter(is_paused=True).count() == 2


class TestStop:
    def test_stopping_a_job_that_is_not_running_exits_with_1_and_says_so(self, redis):
        batch = batch_of(running=1, succeeded=1)
        for name, words in (
            (batch.jobs.get(status="running").pk, "no worker has started it"),
            (batch.jobs.get(status="succeeded").position, "it is not running; its status is succeeded"),
            (7, "no such job"), ("9" * 30, "no such job"), ("x", "no such job"), ("²", "no such job"),
            (batch_of(running=1).jobs.get().pk, "no such job"),
        ):  # fmt: skip
            result = batches("stop", batch.pk, name)
            assert result.code == 1 and words in result.err, name
        assert batches("stop", batch.pk, 0, 7, "--json").json[1] == {
            "job": "7", "done": False, "text": "the batch has no such job.",
        }  # fmt: skip

    def test_redis_is_down(self, settings):
        at("redis://127.0.0.1:1/1", settings)
        result = batches("stop", batch_of(running=1).pk, 0)
        assert result.code == 1 and "Redis does not answer" in result.err


class TestPrune:
    def old(self, days=60, **fields):
        finished_at = timezone.now() - timezone.timedelta(days=days)
        return batch_of(**{"succeeded": 2, **fields}, finished_at=finished_at)

    def test_prunes_by_the_setting(self):
        self.old(8), self.old(8, failed=1), self.old(6)
        result = batches("prune")
        assert result.code == 0 and "succeeded, older than 7 d: 1 deleted" in result.out
        assert "failed, older than 30 d: 0 deleted" in result.out
        assert Batch.objects.count() == 2

    def test_the_options_replace_the_setting(self):
        self.old(3), self.old(3, failed=1), self.old(3, cancelled=1, status="cancelled")
        result = batches("prune", "--succeeded", "2d", "--failed", "12h", "--cancelled", "keep", "--json")
        assert [(line["status"], line["count"]) for line in result.json] == [
            ("succeeded", 1), ("failed", 1), ("cancelled", 0),
        ]  # fmt: skip
        assert Batch.objects.get().status == "cancelled"

    def test_never_prunes_a_batch_with_an_open_callback(self):
        batch = self.old(6_000, open_callbacks=1)
        new_callback(batch)
        result = batches("prune", "--succeeded", "0")
        assert "0 deleted; 1 kept for a callback" in result.out
        assert batch.jobs.count() == 2 and batch.callbacks.count() == 1

    def test_prunes_more_than_a_page(self, monkeypatch):
        monkeypatch.setattr("django_batches.management.batches.maintenance.PAGE", 2)
        for days in range(60, 65):
            self.old(days)
        kept = self.old(62, open_callbacks=1)
        new_callback(kept)
        assert "5 deleted; 1 kept" in batches("prune").out
        assert Batch.objects.get() == kept

    def test_a_dry_run_only_counts(self):
        self.old()
        assert "1 would be deleted" in batches("prune", "--dry-run").out
        assert Batch.objects.count() == 1

    @pytest.mark.parametrize("age", ["7 days", "-1", "d", "1y", "999999d"])
    def test_an_invalid_age_is_refused(self, age):
        result = batches("prune", f"--failed={age}")
        assert result.code == 1 and "is not an age: write 90s" in result.err


class TestWatch:
    def test_shows_how_ended_batches_ended(self):
        good, bad = batch_of("Good", succeeded=3), batch_of("Bad", succeeded=1, failed=2)
        assert batches("watch", good.pk).code == 0
        result = batches("watch", good.pk, bad.pk)
        assert (
            result.code == 1
            and "failed: 1 succeeded, 2 failed" in result.out
            and "manage.py batches show" in result.out
        )

    def test_a_failed_callback_is_not_a_success(self):
        batch = batch_of(succeeded=1)
        new_callback(batch, status="failed")
        result = batches("watch", batch.pk)
        assert result.code == 1 and "1 callback did not succeed" in result.out

    def test_prints_lines_until_the_callbacks_have_ended(self, monkeypatch):
        monkeypatch.setattr("django_batches.management.batches.watching.LINE_INTERVAL", 0.02)
        with Batch.open("Two jobs") as batch:
            batch.on_finish(tasks.ok_callback)
            batch.map(tasks.ok, range(2))
        result = []
        watcher = threading.Thread(target=lambda: result.append(watch(batch.pk)))
        watcher.start()
        applying.record([outcome_of(job) for job in claim(batch)])
        wait_until(lambda: Batch.objects.get().finished_at)
        watcher.join(0.2)
        assert watcher.is_alive()  # it waits for the callback
        applying.record([outcome_of(job) for job in claim(callbacks=True)])
        watcher.join(10)
        assert result[0].code == 0 and "succeeded  2 / 2  100 %" in result[0].out

    def test_stops_after_the_timeout(self):
        result = batches("watch", batch_of(created=1).pk, "--timeout", "0.05")
        assert result.code == 1 and "The batches have not all ended within 0.05 s." in result.err

    def test_a_batch_that_is_deleted_meanwhile_is_not_a_success(self, monkeypatch):
        batch = batch_of(succeeded=1)
        monkeypatch.setattr(type(Batch.objects), "in_bulk", lambda self, keys: {})
        result = batches("watch", batch.pk)
        assert result.code == 1 and "it was deleted" in result.err

    def test_draws_bars_on_a_terminal(self):
        batch = batch_of("Pictures", succeeded=6, failed=2)
        code, out = on_a_terminal("watch", batch.pk.hex)
        assert code == 1 and "━━━━━" in out and "Pictures" in out and "2 failed" in out and "100 %" in out

    def test_without_rich_it_prints_lines_and_names_the_extra(self):
        batch = batch_of("Pictures", succeeded=6)
        code, out = on_a_terminal("watch", batch.pk.hex, without="rich")
        assert code == 0 and "━" not in out and "pip install" in out and "django-batches[cli]" in out


def watch(key):
    try:
        return batches("watch", key)
    finally:
        connection.close()


def on_a_terminal(*args, without=""):
    """Runs the command in a pseudo-terminal; returns its exit code and its output without colours."""
    block = f"import sys; sys.modules[{without!r}] = None; " if without else "import sys; "
    code = f"{block}from django.core.management import execute_from_command_line as run; run(sys.argv)"
    environment = os.environ | {
        "DJANGO_SETTINGS_MODULE": "tests.settings", "PYTHONPATH": str(ROOT), "COLUMNS": "160", "TERM": "xterm",
        "TEST_DATABASE_NAME": str(connection.settings_dict["NAME"]),
    }  # fmt: skip
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code, "batches", *args], cwd=ROOT, env=environment, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    written = b""
    try:
        while chunk := os.read(ours, 65_536):
            written += chunk
    except OSError:  # the other side has closed the terminal
        pass
    finally:
        os.close(ours)
    return process.wait(60), re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written.decode())


class TestCommand:
    def test_options_of_every_command_may_follow_the_verb(self):
        batch_of(succeeded=1)
        assert batches("list", "--no-color", "-v", "2").code == 0

    def test_empty_columns_are_left_out(self):
        assert aligned([["a", "", "b"], ["cc", "", "d"]]) == ["a   b", "cc  d"]
        assert aligned([]) == [] and aligned([["1"], ["10"]], right=(0,)) == [" 1", "10"]

    def test_foreign_text_is_printable(self):
        assert printable("a\x00\x9b\n\tb\u202e") == "a�� b�"

    def test_show_includes_the_error_of_a_failed_run(self, redis):
        with Batch.open("One") as batch:
            batch.enqueue(tasks.ok)
        applying.record([outcome_of(job, Kind.FAILED, error="ValueError: line 1\nline 2") for job in claim(batch)])
        assert "line 2" in batches("show", batch.pk).out and not Lease.objects.exists()
