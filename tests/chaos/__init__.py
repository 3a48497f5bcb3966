"""Faults at random times by seed, and what must hold all the same: `python -m tests.chaos --help`.

A round starts servers and batchworkers of its own, loads them, breaks them, waits until they have recovered, ends them
and judges. What ran is told by a file that the jobs write (`ledger`); what the database said at every moment by
triggers (`history`) and by samples (`sampler`). None of these asks the code under test.
"""
