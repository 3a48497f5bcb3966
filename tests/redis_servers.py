"""Redis servers of many kinds, each started for one test and ended with it."""

from contextlib import contextmanager

from example_project.servers import free_port, redis_program, server, temporary_folder

PLAIN = ("--save", "", "--appendonly", "no")


@contextmanager
def redis_with(*options, program=None, port=None):
    """A server with these options on a free port of this machine (`port=0`: none); gives its port and folder."""
    port = free_port() if port is None else port
    with temporary_folder() as folder:
        given = [word for option in (options or PLAIN) for word in option.format(folder=folder).split() or [""]]
        command = [program or redis_program(), "--port", port, "--bind", "127.0.0.1", *given]
        with server("Redis", command, folder):
            yield port, folder


def cache(location, **options):
    """The setting CACHES with the queues there."""
    backend = "django_redis.cache.RedisCache"
    default = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
    return {"default": default, "batches": {"BACKEND": backend, "LOCATION": location, "OPTIONS": options}}
