"""The verbs of `manage.py batches`. Each parses its options, calls the model or a lower wing, and prints."""
