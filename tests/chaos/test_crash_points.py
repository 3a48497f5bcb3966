"""A part of the sweep over all crash points, by seed; all of it is `make crash-points`."""

import pytest

from .test_chaos import play

pytestmark = pytest.mark.postgresql

FEWEST = 10
"""Points that a part must have reached, or it has shown nothing."""


@pytest.mark.parametrize(
    "modes",
    ["killed (before|after)", "(failed|hung) (before|after)|done twice"],
    ids=["killed before or after", "failing, doubled or hanging"],
)
def test_whatever_happens_at_a_crash_point_nothing_is_lost(modes):
    done = play("--points", 60, "--seconds", 18, "--match", f"^(executor|coordinator|supervisor|creator).*({modes})")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert int(done.stdout.split(" fired")[0]) >= FEWEST, done.stdout
