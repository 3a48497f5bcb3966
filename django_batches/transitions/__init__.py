"""Every change of a status or a counter, and nothing else: the one place to review for correctness.

These rules hold in each module:

* Lock batch rows before their job rows. With one order everywhere, no two writers can deadlock. A transition that
  changes only jobs (the claim of callbacks, due rows, running rows) skips locked rows or moves no counter.
* Change a job row only by a statement whose WHERE names the status (and dispatch) that it may change from, or after
  reading them under the lock of its batch. The rows that such a statement returns have won. Only they move counters,
  in the same transaction.
* Move counters by relative updates. The CHECK of the table refuses those that do not add up.

The modules use `database` and not `models`, because `models` imports them for its methods.
"""
