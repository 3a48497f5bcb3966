"""RQ itself with its `SimpleWorker`, which does not fork. No batch: the time ends with the last job."""

from benchmarks.peers.rq_worker import PACKAGES, rq_workers, start, wait

__all__ = ["PACKAGES", "start", "wait", "workers"]


def workers() -> list[list[str]]:
    return rq_workers("rq.worker.SimpleWorker")
