"""Runs `manage.py batches` in this process."""

import io
import json
from dataclasses import dataclass

from django.core.management import CommandError, call_command


@dataclass
class Result:
    """The exit code and the output of the command."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


def batches(*args, **options):
    out, err = io.StringIO(), io.StringIO()
    code = 0
    try:
        call_command("batches", *map(str, args), stdout=out, stderr=err, **options)
    except SystemExit as exit:
        code = exit.code
    except CommandError as error:
        code = error.returncode
        err.write(str(error))
    return Result(code, out.getvalue(), err.getvalue())
