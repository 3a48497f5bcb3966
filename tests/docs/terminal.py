"""A reader who follows a page: writes its files, runs its commands and types its `>>>` lines into a shell."""

import doctest
import json
import os
import re
import subprocess
import sys
from contextlib import suppress

from example_project.servers import free_port

from .pages import ROOT

SKIPPED = re.compile(r"python -m venv|\. \.venv/bin/activate|pip install|make ")
"""Commands that the test environment has run already."""
LONG_RUNNING = re.compile(r"manage\.py (batchworker(?!.*--burst)|runserver)")
"""Commands that keep running in another terminal."""
LOCAL_CACHE = '{"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}'
_SHELL = """
import django, doctest, json, sys
django.setup()
flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
names = {"__name__": "__main__"}
for line in sys.stdin:
    name, text = json.loads(line)
    test = doctest.DocTestParser().get_doctest(text, {}, name, name, 0)
    test.globs = names
    output = []
    doctest.DocTestRunner(optionflags=flags, verbose=False).run(test, out=output.append, clear_globs=False)
    print(json.dumps("".join(output)), flush=True)
"""


class Reader:
    """Follows the blocks of a page in an empty folder."""

    def __init__(self, folder, redis_url, settings="settings.py"):
        self.folder = folder
        self._settings = settings
        self.port = free_port()
        self._redis_url = redis_url
        self._running = {}
        project = {"DJANGO_SETTINGS_MODULE", "TEST_DATABASE_NAME", "DATABASE_URL", "REDIS_URL", "DATA_DIR"}
        self._environment = {key: value for key, value in os.environ.items() if key not in project} | {
            "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore",
            "PYTHONUNBUFFERED": "1",
            "DJANGO_SUPERUSER_USERNAME": "admin",
            "DJANGO_SUPERUSER_PASSWORD": "admin",
            "DJANGO_SUPERUSER_EMAIL": "admin@example.com",
        }

    def follow(self, block):
        if block.language == "console":
            for line in block.text.splitlines():
                if line.startswith("$ "):
                    self.run(line.removeprefix("$ ").split("  # ")[0])
        elif block.language == "pycon":
            self.type(block)
        elif block.language == "python":
            self.write(block)

    def write(self, block):
        """Writes a Python block that begins with a comment: `# shop/models.py` or `# at the end of shop/settings.py`.

        `# settings.py` shows a part of the existing settings: its dots stand for what was there before.
        """
        match = re.match(r"# (at the end of )?([\w/]+\.py)\b", block.text)
        assert match, f"{block.name} does not say where it belongs"
        is_part = match[2] == "settings.py"
        path = self.folder / (self._settings if is_part else match[2])
        text = block.text.replace("redis://localhost:6379/1", self._redis_url)
        if is_part:
            text = text.replace("[...,", "[*INSTALLED_APPS,").replace("{...}", LOCAL_CACHE)
        before = path.read_text() + "\n\n" if match[1] or is_part else ""
        path.write_text(before + text)

    def run(self, command):
        if SKIPPED.search(command):
            return ""
        if LONG_RUNNING.search(command):
            return self._start(command)
        if "createsuperuser" in command:
            command += " --noinput"
        made = subprocess.run(
            command, shell=True, cwd=self.folder, env=self._environment, capture_output=True, text=True, timeout=120
        )
        assert made.returncode == 0, f"$ {command}\n{made.stdout}{made.stderr}\n{self.logs()}"
        return made.stdout

    def type(self, block):
        """Types `>>>` lines into the shell, which stays open; its output must match the page."""
        assert doctest.DocTestParser().get_examples(block.text)
        if "shell" not in self._running:
            settings = re.search(r"DJANGO_SETTINGS_MODULE\W+([\w.]+)", (self.folder / "manage.py").read_text())[1]
            self._running["shell"] = subprocess.Popen(
                [sys.executable, "-c", _SHELL],
                cwd=self.folder, env=self._environment | {"DJANGO_SETTINGS_MODULE": settings},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
        shell = self._running["shell"]
        shell.stdin.write(json.dumps([block.name, block.text]) + "\n")
        shell.stdin.flush()
        output = json.loads(shell.stdout.readline() or '"the shell has died"')
        assert output == "", f"{output}\n{self.logs()}"

    def stop(self, what):
        """Stops a command that runs in another terminal."""
        process = self._running.pop(what)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        if process.poll() is None:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()

    def close(self):
        for what in list(self._running):
            self.stop(what)

    def logs(self):
        return "\n".join(path.read_text() for path in self.folder.glob("*.log"))

    def _start(self, command):
        what = LONG_RUNNING.search(command)[1].split()[0]
        command = command.replace("runserver", f"runserver --noreload 127.0.0.1:{self.port}")
        with (self.folder / f"{what}.log").open("ab") as log:
            self._running[what] = subprocess.Popen(
                f"exec {command}", shell=True, cwd=self.folder, env=self._environment, stdout=log, stderr=log
            )
        return ""
