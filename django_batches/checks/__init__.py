"""System checks: what is wrong with the settings, and with the Redis in use."""
