"""Injects random faults at random times, reproducible by seed."""

import random
import threading
import time
from collections.abc import Iterable

import psycopg
from redis.exceptions import RedisError

from .faults import KINDS, Fault, Kind
from .stage import Host, Stage


class Injector:
    """Injects faults of the chosen kinds; several at once if they need different things."""

    def __init__(self, stage: Stage, kinds: Iterable[str], pause: float) -> None:
        self.stage, self.pause = stage, pause
        self.kinds = [KINDS[name] for name in kinds]
        self.random = random.Random(stage.seed)
        self.injected: list[Fault] = []
        self._threads: list[threading.Thread] = []

    def run(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, self.random.expovariate(1 / self.pause)))
            self.stage.restart_dead_hosts()
            if not self.kinds:
                continue
            kind = self.random.choices(self.kinds, [kind.weight for kind in self.kinds])[0]
            self.inject(kind, random.Random(self.random.random()))
        for thread in self._threads:
            thread.join(60)

    def inject(self, kind: Kind, rng: random.Random) -> None:
        """Runs a fault in a thread of its own; skips it if another fault uses the same thing."""
        host = rng.choice([host for host in self.stage.hosts if not host.lock.locked()] or self.stage.hosts)
        lock = {"host": host.lock, "redis": self.stage.redis_lock, "postgres": self.stage.postgres_lock,
                "load": self.stage.load_lock, "nothing": threading.Lock()}[kind.needs]  # fmt: skip
        if lock.acquire(blocking=False):
            thread = threading.Thread(target=self._inject, args=(kind, rng, host, lock), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _inject(self, kind: Kind, rng: random.Random, host: Host, lock: threading.Lock) -> None:
        done = Fault(kind.name, time.time(), target=f"host{host.number}" if kind.needs == "host" else kind.needs)
        self.injected.append(done)
        try:
            kind.run(self.stage, done, rng, host)
        except (psycopg.Error, RedisError, OSError) as error:
            done.error = f"{type(error).__name__}: {error}"  # another fault has broken what this one needs
        except IndexError:
            self.injected.remove(done)  # there was nothing to hit
        finally:
            done.ended = time.time()
            lock.release()
