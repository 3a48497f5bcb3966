"""What people install: the wheel and the sdist, and the README followed in an empty folder with the wheel."""

import ast
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import distributions
from pathlib import PurePosixPath

import pytest

from example_project.processes import running

from .processes import ROOT
from .redis_servers import redis_with

pytestmark = pytest.mark.once
SECONDS = 300


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the sdist, the wheel built from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def ours():
    """The files of the package as they are here."""
    files = [path.relative_to(ROOT) for path in (ROOT / "django_batches").rglob("*") if path.is_file()]
    return {path.as_posix() for path in files if "__pycache__" not in path.parts}


def test_the_wheel_holds_the_package_and_nothing_else(built):
    with zipfile.ZipFile(built[0]) as wheel:
        names = set(wheel.namelist())
        (info,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
        written = {f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")}
        metadata = wheel.read(f"{info}/METADATA").decode()
    assert names == ours() | written
    kinds = {PurePosixPath(name).suffix for name in names}
    assert {".py", ".html", ".css", ".js", ".lua", ".mo"} <= kinds and "django_batches/py.typed" in names
    needed = re.findall(r"^Requires-Dist: ([\w-]+)(?!.*extra ==)", metadata, re.MULTILINE)
    assert needed == ["django-redis", "django", "redis", "rq"]


def test_the_sdist_holds_what_the_wheel_is_built_from_and_no_tests(built):
    with tarfile.open(built[1]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    about = {"README.md", "CHANGELOG.md", "SECURITY.md", "LICENSE", "pyproject.toml", "PKG-INFO", ".gitignore"}
    assert names == ours() | about


README = (ROOT / "README.md").read_text()
TASKS = """
from pathlib import Path

def write(*what):
    with Path("ledger").open("a") as file:
        print(*what, file=file)
"""


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands():
    """The lines of the README that a user types to install it, in their order, up to the one that starts a worker."""
    lines = re.findall(r"^\$ (.*?)\s*(?:  #.*)?$", "".join(blocks("console")), re.MULTILINE)
    typed = re.compile(r"(python -m )?pip install|python manage.py (migrate|batchworker)")
    wanted = [line for line in lines if typed.match(line)]
    return wanted[: next(index for index, line in enumerate(wanted) if "batchworker" in line) + 1]


class Filled(ast.NodeTransformer):
    """Settings as a reader completes them: dots are what was there before, and Redis is where his is."""

    def __init__(self, redis):
        self.redis = redis

    def visit_Assign(self, node):
        if ast.unparse(node.targets[0]) == "INSTALLED_APPS":
            node.value = ast.parse(ast.unparse(node.value).replace("...", "*INSTALLED_APPS, 'shop'"), mode="eval").body
        return self.generic_visit(node)

    def visit_Set(self, node):
        return ast.parse("{'BACKEND': 'django.core.cache.backends.locmem.LocMemCache'}", mode="eval").body

    def visit_Constant(self, node):
        value = node.value
        return ast.Constant(re.sub("^redis://localhost:6379", self.redis, value)) if isinstance(value, str) else node


def settings(redis):
    block = next(block for block in blocks("python") if re.search("^DJANGO_BATCHES = ", block, re.MULTILINE))
    found = ast.unparse(Filled(redis).visit(ast.parse(block)))
    assert redis in found and "'shop'" in found
    (options,) = re.findall(r'"OPTIONS": (\{[^}]*"transaction_mode"[^}]*\})', README)
    return f"\n{found}\nDATABASES['default']['OPTIONS'] = {options}\n"


def files():
    """The blocks that are whole files of an app, by their names in the first line."""
    found = (re.match(r"# (shop/\w+\.py)\n", block) for block in blocks("python"))
    return {match[1]: match.string for match in found if match}


def example():
    """The first example, and the functions whose heads stand beside it, which here write down their arguments."""
    block = next(block for block in blocks("python") if "Batch.open(" in block)
    heads = re.findall(r"def (\w+)\((.*?)\): \.\.\.", block)
    assert len(heads) == 2, block
    bodies = [
        f"def {name}({arguments}):\n    write({name!r}, {arguments.replace('batch', 'batch.status')})\n"
        for name, arguments in heads
    ]
    return block, TASKS + "\n".join(bodies)


@pytest.fixture
def shell(tmp_path):
    """Runs a line as it is typed, in an empty folder, with a virtual environment of its own."""
    versions = "\n".join(f"{each.name}=={each.version}" for each in distributions() if each.name != "django-batches")
    (tmp_path / "constraints.txt").write_text(versions)  # those of this corner of the matrix
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True, timeout=SECONDS)
    kept = {name: value for name, value in os.environ.items() if name.partition("_")[0] not in ("DJANGO", "PYTHONPATH")}
    environment = kept | {
        "PATH": f"{tmp_path}/venv/bin:{os.environ['PATH']}",
        "PIP_CONSTRAINT": str(tmp_path / "constraints.txt"),
    }
    folder = tmp_path / "mysite"
    folder.mkdir()

    def run(*words):
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run.folder, run.environment = folder, environment
    return run


def test_who_follows_the_readme_in_an_empty_folder_has_a_batch_that_ends(built, shell):
    install, *prepare, start = commands()
    assert install.endswith("pip install django-batches") and len(prepare) == 1, commands()
    shell(*install.replace("django-batches", str(built[0])).split())
    shell("django-admin", "startproject", "mysite", ".")
    shell("python", "manage.py", "startapp", "shop")
    block, tasks = example()
    for name, text in {"shop/heads.py": tasks, **files()}.items():
        (shell.folder / name).write_text(text)
    (shell.folder / "typed.txt").write_text("\n".join(blocks("pycon")))
    with redis_with() as (port, _):
        with (shell.folder / "mysite" / "settings.py").open("a") as file:
            file.write(settings(f"redis://127.0.0.1:{port}"))
        assert "no issues" in shell("python", "manage.py", "check")
        shell(*prepare[0].split())
        queue = re.findall(r'queue="(\w+)"', block)
        with (shell.folder / "log").open("wb") as log:
            options = {"cwd": shell.folder, "env": shell.environment, "stdout": log, "stderr": log}
            with running([f"{shell.folder.parent}/venv/bin/python", *start.split()[1:]], **options) as worker:
                ending = "print(batch.wait(60), Batch.objects.get().status, batch.queue)"
                given = "from shop.heads import *\nimage_ids = [1, 2, 3]\n"
                said = shell("python", "manage.py", "shell", "--verbosity", "0", "-c", f"{given}{block}\n{ending}")
                typed = "import doctest; print(doctest.testfile('typed.txt', module_relative=False).failed)"
                typed = shell("python", "manage.py", "shell", "--verbosity", "0", "-c", typed)
        assert said == f"True succeeded {(queue or ['default'])[0]}\n", (shell.folder / "log").read_text()
        assert typed == "0\n", typed
        assert worker.returncode == 0
    *jobs, callback = (shell.folder / "ledger").read_text().splitlines()
    assert sorted(jobs) == [f"upload_image {pk} large" for pk in (1, 2, 3)]
    assert callback == "mark_visible succeeded 7"
