"""`manage.py batches`: what it says, what it does, and its exit codes."""

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
from django_batches.management.batches.verb import aligned, printable
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
    """Two batches whose ids begin and end alike but for one digit."""
    keys = [UUID(f"01a200c9-4bb0-7000-8097-95c1{digit}1c15be5") for digit in (first, second)]
    return [batch_of(f"Twin {digit}", succeeded=1, id=key) for digit, key in zip((first, second), keys, strict=True)]


class TestNaming:
    @pytest.mark.parametrize(
        "cut", [slice(None), slice(-12, None), slice(-20, None), slice(25), slice(28)], ids=lambda cut: str(cut)
    )
    def test_by_the_whole_id_its_end_or_its_beginning(self, cut):
        first, _second = twins()
        said = batches("show", first.pk.hex[cut])
        assert said.code == 0 and "Twin 0" in said.out

    def test_with_hyphens_and_in_capitals(self):
        batch, _ = twins()
        assert "Twin 0" in batches("show", str(batch.pk).upper()).out
        assert "Twin 0" in batches("show", str(batch.pk)[-20:]).out

    def test_that_fits_two_is_refused_and_both_are_named(self):
        first, second = twins()
        for ambiguous in (first.pk.hex[-6:], first.pk.hex[:8]):
            said = batches("cancel", ambiguous)
            assert said.code == 1 and "ambiguous" in said.err
            assert str(first.pk) in said.err and str(second.pk) in said.err and "Twin 1" in said.err

    @pytest.mark.parametrize(
        ("name", "words"),
        [("ffff", "No batch has the id ffff"), ("fff", "at least 4 digits"), ("product 7", "is no id of a batch")],
    )
    def test_of_none_is_refused(self, name, words):
        batch_of(succeeded=1)
        said = batches("show", name)
        assert said.code == 1 and words in said.err

    def test_nothing_is_done_where_one_of_several_is_not_found(self):
        batch = batch_of(created=1)
        assert batches("pause", batch.pk, "ffffffff").code == 1
        batch.refresh_from_db()
        assert not batch.is_paused


class TestList:
    def test_shows_the_newest_first_in_aligned_columns(self):
        batch_of("First", succeeded=1_200), batch_of("Second", failed=2, created=6)
        said = batches("list")
        header, second, first = said.out.splitlines()
        assert header.split() == ["BATCH", "STATUS", "DONE", "FAILED", "TIME", "DESCRIPTION"]
        assert "1,200 / 1,200" in first and "2 / 8" in second and "25 %" in second
        assert first.index("First") == second.index("Second") == header.index("DESCRIPTION")
        assert said.code == 0

    def test_asks_a_constant_number_of_queries(self):
        for _ in range(5):
            batch_of(succeeded=1, created=1)
        with statements() as made:
            batches("list")
        assert len(made) == 2

    def test_by_status_and_at_most_so_many(self):
        for _ in range(3):
            batch_of("Bad", failed=1)
        batch_of("Good", succeeded=1), batch_of("Busy", created=1)
        assert "Bad" not in batches("list", "--status", "running", "--status", "succeeded").out
        said = batches("list", "--status", "failed", "--limit", "2")
        assert said.out.count("Bad") == 2 and "There are more: --limit" in said.out

    def test_as_json(self):
        batch = batch_of("Images", succeeded=3, failed=1)
        (told,) = batches("list", "--json").json
        assert told["id"] == str(batch.pk) and told["description"] == "Images"
        assert (told["total"], told["succeeded"], told["failed"], told["progress"]) == (4, 3, 1, 1.0)
        assert batches("list", "--json", "--status", "open").json == []

    def test_of_none_says_so(self):
        said = batches("list")
        assert (said.code, said.out) == (0, "There are none.\n")

    def test_cannot_make_the_terminal_obey_a_description(self):
        batch_of("red \x1b[31m\r\nnext\x07", succeeded=1)
        said = batches("list")
        assert "red �[31m next�" in said.out and "\x1b" not in said.out

    def test_is_in_english_whatever_the_language(self):
        batch_of(created=2, is_paused=True)
        with translation.override("de"):
            assert "paused" in batches("list").out

    def test_a_limit_of_nothing_is_refused(self):
        assert batches("list", "--limit", "0").code == 1


class TestStuck:
    def test_lists_what_does_not_move_and_why_and_leaves_with_1(self, redis):
        batchworker_is_there()
        batch_of("Stuck", created=3, queue="nobody")
        said = batches("list", "--stuck")
        assert said.code == 1 and "Stuck" in said.out and "No worker listens on the queue “nobody”." in said.out
        (told,) = batches("list", "--stuck", "--json").json
        assert [finding["code"] for finding in told["why"]] == ["no_worker"]

    def test_leaves_with_0_where_all_moves(self, redis, keys):
        batchworker_is_there()
        redis.sadd(keys.workers_of("default"), keys.worker("one"))
        redis.hset(keys.worker("one"), "birth", "now")
        batch_of("Moves", running=1, created=3)
        batch_of("Over", succeeded=1)
        said = batches("list", "--stuck")
        assert (said.code, said.out) == (0, "There are none.\n")

    def test_a_paused_batch_is_as_somebody_wished(self, redis):
        batch_of("Paused", created=3, is_paused=True)
        assert batches("list", "--stuck").code == 0

    def test_an_ended_batch_whose_callback_waits_for_a_worker_is_stuck(self, redis):
        batchworker_is_there()
        batch = batch_of("Ended", succeeded=1, open_callbacks=1)
        new_callback(batch, queue="nobody")
        assert "queue “nobody”" in batches("list", "--stuck").out
        database.jobs().filter(callback_of=batch).update(status="running")
        assert "queue “nobody”" in batches("list", "--stuck").out

    def test_redis_is_asked_once_for_many_batches(self, redis, monkeypatch):
        asked, ask = [], probe.ask
        monkeypatch.setattr(probe, "ask", lambda queues: asked.append(queues) or ask(queues))
        for _ in range(6):
            batch_of(created=1)
        assert batches("list", "--stuck").code == 1
        assert len(asked) == 1


class TestShow:
    def test_tells_counts_limits_callbacks_failures_and_why(self, redis):
        batch = batch_of(
            "Images", succeeded=3, failed=2, created=3, running=1, concurrency=5, max_failures=20, max_attempts=3,
            backoff='[5.0, 60.0]', key="images-7", metadata={"product": 7},
        )  # fmt: skip
        new_callback(batch, event="failure", status="failed", error="Traceback\nOSError: no mail")
        said = batches("show", batch.pk)
        for words in (
            "5 / 9, 55 %: 3 succeeded, 2 failed, 4 pending (1 in RQ)", "concurrency 5", "max_failures 20", "3 attempts",
            "backoff 5.0 s, 1 min", "images-7", '{"product": 7}', "Why it does not move", "No batchworker has ever run",
            "OSError: no mail", "shop.errors.TooLarge", "TooLarge: 21 MB", "job 3  tests.tasks.ok  1 attempt on host",
        ):  # fmt: skip
            assert words in said.out, words
        assert "Traceback" not in said.out and '"large"' not in said.out and said.code == 0

    def test_as_json(self, redis):
        batch = batch_of(failed=7, created=1)
        told = batches("show", batch.pk, "--json", "--failures", "2").json
        assert [job["position"] for job in told["first_failures"]] == [0, 1]
        assert told["failure_groups"] == [
            {"count": 7, "error_type": "shop.errors.TooLarge", "sample": "TooLarge: 21 MB"}
        ]
        assert told["why"][0]["level"] == "error" and told["limits"]["max_attempts"] == 1

    def test_tells_who_opened_it_and_what_its_jobs_and_callbacks_have_opened(self, redis):
        root = batch_of("Import", waiting=2)
        below = child_of(root.jobs.get(position=1), "Pages", waiting=1, succeeded=2)
        leaf = child_of(below.jobs.get(status="waiting"), "Lines\n", failed=1, succeeded=1)
        callback = new_callback(below, event="failure", status="waiting")
        done = [child_of(below.jobs.get(status="waiting"), f"Done {number}", succeeded=1) for number in range(11)]
        child_of(callback, "Letters", created=4)
        said = batches("show", below.pk)
        assert f"Opened by  job 1 of Import ({root.pk.hex[-12:]})" in said.out
        assert "Children   13: 11 succeeded, 1 failed, 1 running" in said.out
        shown = [line.split() for line in said.out.partition("Child batches\n")[2].splitlines()[:10]]
        assert shown[0] == [leaf.pk.hex[-12:], "failed", "2", "/", "2", "job", "2", "Lines"]
        assert shown[1][1:] == ["running", "0", "/", "4", "callback", "failure", "Letters"]
        assert [line[-2:] for line in shown[2:]] == [["Done", str(number)] for number in range(8)]
        above = f"job {leaf.parent.position} of Pages ({below.pk.hex[-12:]}), opened by job 1 of Import"
        assert above in batches("show", leaf.pk).out
        told = batches("show", below.pk, "--json").json
        assert [(parent["id"], parent["opened_by"]["position"]) for parent in told["parents"]] == [(str(root.pk), 1)]
        assert told["children"]["total"] == 13 and told["children"]["failed"] == 1
        assert told["children"]["first"][0]["id"] == str(leaf.pk) and len(done) == 11

    def test_asks_as_many_queries_for_many_children_as_for_few(self, redis):
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
    def test_tells_the_deadline(self, left, fields, text, redis):
        due = timezone.now() + timedelta(seconds=left)
        batch = batch_of(deadline=300, deadline_at=due, **fields)
        said = batches("show", batch.pk)
        (line,) = [line for line in said.out.splitlines() if line.strip().startswith("Deadline")]
        assert text in line and "deadline 5 min" in said.out
        assert batches("show", batch.pk, "--json").json["limits"]["deadline"] == 300

    def test_says_nothing_about_why_once_it_is_over(self, redis):
        assert "Why" not in batches("show", batch_of(succeeded=1).pk).out

    def test_asks_as_many_queries_for_many_jobs_as_for_few(self, redis):
        few, many = batch_of(failed=6, created=2), batch_of(failed=600, created=200)
        with statements() as for_few:
            batches("show", few.pk)
        with statements() as for_many:
            batches("show", many.pk)
        assert len(for_few) == len(for_many)


class TestActing:
    def test_retry_runs_failed_jobs_again(self):
        batch = batch_of(succeeded=1, failed=2)
        said = batches("retry", batch.pk)
        batch.refresh_from_db()
        assert (said.code, batch.status, batch.pending) == (0, "running", 2) and "2 jobs will run again." in said.out

    def test_retry_of_nothing_is_1_and_names_the_option_for_cancelled_jobs(self):
        batch = batch_of(succeeded=1, cancelled=2)
        said = batches("retry", batch.pk)
        assert said.code == 1 and "--include-cancelled" in said.err
        assert batches("retry", batch.pk, "--include-cancelled").code == 0
        assert batches("retry", batch_of(succeeded=1).pk).code == 1

    def test_retry_under_a_cancel_is_refused(self):
        batch = batch_of(running=1, failed=1, cancelled_at=timezone.now())
        said = batches("retry", batch.pk)
        assert said.code == 1 and "is being cancelled: retry once it has ended" in said.err

    def test_cancel_once(self):
        batch = batch_of(created=3, running=1)
        said = batches("cancel", batch.pk, "--reason", "wrong file")
        batch.refresh_from_db()
        assert (said.code, batch.cancelled, batch.reason) == (0, 3, "wrong file")
        assert "3 jobs cancelled; 1 job in RQ will finish first." in said.out
        again = batches("cancel", batch.pk)
        assert again.code == 1 and "is being cancelled already" in again.err
        ended = batches("cancel", batch_of(succeeded=1).pk)
        assert ended.code == 1 and "has ended already" in ended.err

    def test_cancel_of_a_batch_of_which_all_runs_is_done_although_no_job_ended(self):
        said = batches("cancel", batch_of(running=2).pk)
        assert said.code == 0 and "0 jobs cancelled; 2 jobs in RQ" in said.out

    def test_pause_resume_and_seal_say_what_they_did_and_1_the_second_time(self):
        batch = batch_of(created=1, status="open", sealed_at=None)
        codes = [batches(verb, batch.pk).code for verb in ("pause", "pause", "resume", "resume", "seal", "seal")]
        assert codes == [0, 1, 0, 1, 0, 1]
        batch.refresh_from_db()
        assert batch.sealed_at and not batch.is_paused

    def test_several_at_once_and_1_where_one_of_them_was_left_alone(self):
        first, second = batch_of(created=1), batch_of(created=1, is_paused=True)
        said = batches("pause", first.pk, second.pk, "--json")
        assert said.code == 1 and [line["done"] for line in said.json] == [True, False]
        assert Batch.objects.filter(is_paused=True).count() == 2


class TestStop:
    def test_of_what_no_worker_runs_is_1_and_says_so(self, redis):
        batch = batch_of(running=1, succeeded=1)
        for name, words in (
            (batch.jobs.get(status="running").pk, "no worker has begun with it"),
            (batch.jobs.get(status="succeeded").position, "it is succeeded, so there is nothing to stop"),
            (7, "no such job"), ("9" * 30, "no such job"), ("x", "no such job"), ("²", "no such job"),
            (batch_of(running=1).jobs.get().pk, "no such job"),
        ):  # fmt: skip
            said = batches("stop", batch.pk, name)
            assert said.code == 1 and words in said.err, name
        assert batches("stop", batch.pk, 0, 7, "--json").json[1] == {
            "job": "7", "done": False, "text": "the batch has no such job.",
        }  # fmt: skip

    def test_where_redis_is_away(self, settings):
        at("redis://127.0.0.1:1/1", settings)
        said = batches("stop", batch_of(running=1).pk, 0)
        assert said.code == 1 and "Redis does not answer" in said.err


class TestPrune:
    def old(self, days=60, **fields):
        finished_at = timezone.now() - timezone.timedelta(days=days)
        return batch_of(**{"succeeded": 2, **fields}, finished_at=finished_at)

    def test_by_the_setting(self):
        self.old(8), self.old(8, failed=1), self.old(6)
        said = batches("prune")
        assert said.code == 0 and "succeeded, older than 7 d: 1 deleted" in said.out
        assert "failed, older than 30 d: 0 deleted" in said.out
        assert Batch.objects.count() == 2

    def test_by_ages_of_its_own(self):
        self.old(3), self.old(3, failed=1), self.old(3, cancelled=1, status="cancelled")
        said = batches("prune", "--succeeded", "2d", "--failed", "12h", "--cancelled", "keep", "--json")
        assert [(line["status"], line["count"]) for line in said.json] == [
            ("succeeded", 1), ("failed", 1), ("cancelled", 0),
        ]  # fmt: skip
        assert Batch.objects.get().status == "cancelled"

    def test_never_a_batch_with_an_open_callback_however_old(self):
        batch = self.old(6_000, open_callbacks=1)
        new_callback(batch)
        said = batches("prune", "--succeeded", "0")
        assert "0 deleted; 1 held by a callback" in said.out
        assert batch.jobs.count() == 2 and batch.callbacks.count() == 1

    def test_of_more_than_a_page(self, monkeypatch):
        monkeypatch.setattr("django_batches.management.batches.keeping.PAGE", 2)
        for days in range(60, 65):
            self.old(days)
        held = self.old(62, open_callbacks=1)
        new_callback(held)
        assert "5 deleted; 1 held" in batches("prune").out
        assert Batch.objects.get() == held

    def test_a_dry_run_only_counts(self):
        self.old()
        assert "1 would be deleted" in batches("prune", "--dry-run").out
        assert Batch.objects.count() == 1

    @pytest.mark.parametrize("age", ["7 days", "-1", "d", "1y", "999999d"])
    def test_an_age_that_is_none_is_refused(self, age):
        said = batches("prune", f"--failed={age}")
        assert said.code == 1 and "is no age: write 90s" in said.err


class TestWatch:
    def test_of_what_is_over_says_how_it_ended(self):
        good, bad = batch_of("Good", succeeded=3), batch_of("Bad", succeeded=1, failed=2)
        assert batches("watch", good.pk).code == 0
        said = batches("watch", good.pk, bad.pk)
        assert said.code == 1 and "failed: 1 succeeded, 2 failed" in said.out and "manage.py batches show" in said.out

    def test_a_failed_callback_is_no_success(self):
        batch = batch_of(succeeded=1)
        new_callback(batch, status="failed")
        said = batches("watch", batch.pk)
        assert said.code == 1 and "1 of its callbacks did not succeed" in said.out

    def test_prints_lines_until_the_callbacks_have_ended(self, monkeypatch):
        monkeypatch.setattr("django_batches.management.batches.watching.LINES", 0.02)
        with Batch.open("Two jobs") as batch:
            batch.on_finish(tasks.ok_callback)
            batch.map(tasks.ok, range(2))
        said = []
        watcher = threading.Thread(target=lambda: said.append(watch(batch.pk)))
        watcher.start()
        applying.record([outcome_of(job) for job in claim(batch)])
        wait_until(lambda: Batch.objects.get().finished_at)
        watcher.join(0.2)
        assert watcher.is_alive()  # for the callback
        applying.record([outcome_of(job) for job in claim(callbacks=True)])
        watcher.join(10)
        assert said[0].code == 0 and "succeeded  2 / 2  100 %" in said[0].out

    def test_no_longer_than_its_time(self):
        said = batches("watch", batch_of(created=1).pk, "--timeout", "0.05")
        assert said.code == 1 and "Not ended within 0.05 s." in said.err

    def test_a_batch_that_is_deleted_meanwhile_is_no_success(self, monkeypatch):
        batch = batch_of(succeeded=1)
        monkeypatch.setattr(type(Batch.objects), "in_bulk", lambda self, keys: {})
        said = batches("watch", batch.pk)
        assert said.code == 1 and "it was deleted" in said.err

    def test_draws_bars_on_a_terminal(self):
        batch = batch_of("Pictures", succeeded=6, failed=2)
        code, out = on_a_terminal("watch", batch.pk.hex)
        assert code == 1 and "━━━━━" in out and "Pictures" in out and "2 failed" in out and "100 %" in out

    def test_without_rich_prints_lines_and_names_the_extra(self):
        batch = batch_of("Pictures", succeeded=6)
        code, out = on_a_terminal("watch", batch.pk.hex, without="rich")
        assert code == 0 and "━" not in out and "pip install" in out and "django-batches[cli]" in out


def watch(key):
    try:
        return batches("watch", key)
    finally:
        connection.close()


def on_a_terminal(*args, without=""):
    """Runs the command as a process on a pseudo-terminal; its exit code and what it wrote, without colours."""
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
    except OSError:  # the terminal is closed on their side
        pass
    finally:
        os.close(ours)
    return process.wait(60), re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written.decode())


class TestOfTheCommand:
    def test_options_of_every_command_may_follow_the_verb(self):
        batch_of(succeeded=1)
        assert batches("list", "--no-color", "-v", "2").code == 0

    def test_columns_of_nothing_are_left_out(self):
        assert aligned([["a", "", "b"], ["cc", "", "d"]]) == ["a   b", "cc  d"]
        assert aligned([]) == [] and aligned([["1"], ["10"]], right=(0,)) == [" 1", "10"]

    def test_text_of_others_is_printable(self):
        assert printable("a\x00\x9b\n\tb\u202e") == "a�� b�"

    def test_a_failed_run_of_a_job_is_in_show(self, redis):
        with Batch.open("One") as batch:
            batch.enqueue(tasks.ok)
        applying.record([outcome_of(job, Kind.FAILED, error="ValueError: line 1\nline 2") for job in claim(batch)])
        assert "line 2" in batches("show", batch.pk).out and not Lease.objects.exists()
