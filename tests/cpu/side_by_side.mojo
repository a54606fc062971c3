"""Runs a kernel as a model does: in threads at the same time. The kernels' tests know crews through this file alone."""

from llm.cpu.threads.crew import Crew, Team


def side_by_side[Body: def(Team) -> None, //](threads: Int, body: Body) raises:
    """Calls body(team) in so many threads at once and waits for all.

    A kernel that is called with Team(threads) does the shares of all threads too, but one after another.
    """
    Crew(threads).run(body)
