"""RQ itself, its `SimpleWorker`, which does not fork; no batch: the clock stops when the last job has finished."""

from benchmarks.peers.rq_worker import PACKAGES, rq_workers, start, wait

__all__ = ["PACKAGES", "start", "wait", "workers"]


def workers() -> list[list[str]]:
    return rq_workers("rq.worker.SimpleWorker")
