"""Validates a call: its function, its arguments and its options."""
