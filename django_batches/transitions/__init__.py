"""All code that changes the status of a job or batch, or a counter. Review correctness here.

Each module follows these rules:

* Lock batch rows before their job rows. With the same order everywhere, no two writers can deadlock. A transition that
  changes only jobs (such as claiming a callback) must skip locked rows or change no counter.
* Change a job row only with an UPDATE whose WHERE clause names the status (and dispatch number) that it expects, or
  after reading both under the lock of the job's batch. Only the rows that the UPDATE really changed may change
  counters, and only in the same transaction.
* Change counters by relative updates. A CHECK constraint of the table rejects counters that do not add up.

These modules import `database` and not `models`, because `models` imports them for its methods.
"""
