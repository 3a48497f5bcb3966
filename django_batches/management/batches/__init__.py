"""The verbs of `manage.py batches`: each parses, asks the model or a module below, and prints."""
