"""The Redis side: the client, messages to workers, outcomes back, and the scripts that run inside Redis."""
