"""All changes of statuses and counters, and nothing else: the one place to review for correctness.

Every module of this wing follows these rules:

* It locks batch rows before their job rows, so that no two writers deadlock. Statements that change jobs alone (claims
  of callbacks, due jobs, started jobs) skip locked rows or move no counter.
* It changes a job row only by a statement whose WHERE names the status (and dispatch) to change from, or whose rows
  were read under the lock of their batch. Only the rows that the statement returns move counters, in the same
  transaction.
* It moves counters by relative updates. A CHECK of the table refuses counters that do not add up.

The modules access rows through `database`, not through `models`, which imports this wing for its verbs.
"""
