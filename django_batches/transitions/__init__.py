"""Every change of a status or a counter, and nothing else: the one place to review for correctness.

Rules that hold in each of these modules:

* Batch rows are locked before their job rows. One order everywhere, so no two writers can deadlock.
* A job row changes only by a statement whose WHERE names the status (and dispatch) it may change from.
  What that statement returns has won, and only winners move counters, in the same transaction.
* Counters move by relative updates; the CHECK of the table refuses what does not add up.

The modules know rows by `rows` and not by `models`, which imports them for its verbs.
"""
