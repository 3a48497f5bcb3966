"""What pages, commands and metrics say about batches. Read-only."""
