"""`manage.py batches` in this process."""

import io
import json
from dataclasses import dataclass

from django.core.management import CommandError, call_command


@dataclass
class Said:
    """What the command said, and its exit code."""

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
    except SystemExit as left:
        code = left.code
    except CommandError as error:
        code = error.returncode
        err.write(str(error))
    return Said(code, out.getvalue(), err.getvalue())
