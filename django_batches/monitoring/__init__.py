"""What the admin, the commands and the metrics show about batches. Read-only."""
