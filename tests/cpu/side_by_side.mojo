"""Runs a kernel as a model does: in threads at the same time. The kernels' tests know crews through this file alone."""

from llm.cpu.threads.crew import Crew, Team


trait Kernel:
    """A kernel and what it works on."""

    def run(self, team: Team):
        """Does the work, as a member of the team or as all of it."""
        ...


def _run[K: Kernel](context: Int, team: Team):
    Pointer[K, MutUntrackedOrigin](unsafe_from_address=context)[].run(team)


def side_by_side[K: Kernel, //](threads: Int, kernel: K) raises:
    """Runs the kernel in so many threads at once and waits for all.

    `kernel.run(Team(threads))` does the shares of all threads too, but one after another.
    """
    var crew = Crew(threads)
    crew.run(_run[K], Int(Pointer(to=kernel)))
