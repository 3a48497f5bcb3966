"""Every change of a status or a counter, and nothing else: the one place to review for correctness.

Rules that hold in each of these modules:

* Batch rows are locked before their job rows. One order everywhere, so no two writers can deadlock. What changes jobs
  alone (the claim of callbacks, what is due, what is seen to run) passes over locked rows, or moves no counter.
* A job row changes only by a statement whose WHERE names the status (and dispatch) it may change from, or where that
  was read under the lock of its batch. What such a statement returns has won, and only winners move counters, in the
  same transaction.
* Counters move by relative updates; the CHECK of the table refuses what does not add up.

The modules know rows by `rows` and not by `models`, which imports them for its verbs.
"""
