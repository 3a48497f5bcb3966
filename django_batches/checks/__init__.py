"""System checks of the settings and of the Redis server in use."""
