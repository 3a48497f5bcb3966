"""Random faults, reproducible by seed, and the promises that must still hold: `python -m tests.chaos --help`.

A round starts its own servers and batchworkers, puts load on them, injects faults, waits for the recovery, stops
everything and checks the promises. The evidence comes from a file to which the jobs write (`ledger`), from database
triggers (`history`) and from samples of the database (`sampler`). None of it relies on the code under test.
"""
