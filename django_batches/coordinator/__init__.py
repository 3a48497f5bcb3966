"""The coordinator: applies outcomes to the rows, dispatches due rows to RQ, repairs. One is active at a time."""
