"""Threads for work outside a model. A file of its own: an empty program that imports MAX compiles 0.3 s longer."""

from max.algorithm import sync_parallelize


def fork_join[Body: def(Int) -> None](body: Body, threads: Int):
    """Calls body(member) for every member 0 .. threads - 1, in so many threads if there are as many cores, and returns
    when all are done. The body cannot raise.

    For work that takes much longer than the fork and join, and needs no barriers.
    """
    sync_parallelize(body, threads)
