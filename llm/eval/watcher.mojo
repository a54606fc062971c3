"""Whoever waits for something long: is told how far it is, and may end it early."""


trait Watcher(Deinitable, Movable):
    """Watches one job of many parts, which calls it in its own thread between two parts."""

    def stopped(self) -> Bool:
        """Tells whether the job is to end now; what it has done so far is its caller's to use or to leave."""
        return False

    def show(mut self, done: Int, total: Int, what: String):
        """Is told how many parts are done, and what has come out so far."""
        pass


struct Unwatched(Watcher):
    """Nobody waits: the job runs to its end."""

    def __init__(out self):
        """Has nothing to do."""
        pass
