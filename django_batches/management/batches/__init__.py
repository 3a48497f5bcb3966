"""The verbs of `manage.py batches`. Each reads its options, calls the models or a lower layer, and prints."""
