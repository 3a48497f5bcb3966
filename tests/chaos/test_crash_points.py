"""A part of the sweep over all crash points; `make crash-points` is the full sweep."""

import pytest

from .test_chaos import play

pytestmark = pytest.mark.postgresql

FEWEST = 10
"""Points that a part must reach, or it proves nothing."""


@pytest.mark.parametrize(
    "modes",
    ["killed (before|after)", "(failed|hung) (before|after)|done twice"],
    ids=["killed before or after", "failed, done twice or hung"],
)
def test_a_failure_at_any_crash_point_loses_no_job(modes):
    done = play("--points", 60, "--seconds", 18, "--match", f"^(executor|coordinator|supervisor|creator).*({modes})")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert int(done.stdout.split(" fired")[0]) >= FEWEST, done.stdout
