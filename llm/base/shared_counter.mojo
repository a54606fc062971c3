"""A number that one thread writes and others read."""

from std.atomic import Atomic, Ordering
from std.memory.alloc import unsafe_alloc

comptime _Cell = Pointer[Atomic[Int64], MutUntrackedOrigin]


struct SharedCounter(Movable):
    """A number at an address that stays. Who reads it sees what was written to memory before it was set."""

    var _cell: _Cell

    def __init__(out self):
        """Starts at zero."""
        self._cell = unsafe_alloc[Atomic[Int64]](1)
        self._cell.unsafe_write(Atomic[Int64](0))

    def __init__(out self, *, deinit move: Self):
        """Takes over another one's number."""
        self._cell = move._cell

    @no_inline
    def __deinit__(deinit self):
        """Frees it."""
        self._cell.unsafe_free()

    def set(self, value: Int):
        """Changes the number."""
        self._cell[].store[ordering=Ordering.RELEASE](Int64(value))

    def address(self) -> Int:
        """Returns what `count_at` takes, for threads that outlive no counter."""
        return Int(self._cell)


def count_at(address: Int) -> Int:
    """Reads the counter at an address."""
    return Int(_Cell(unsafe_from_address=address)[].load[ordering=Ordering.ACQUIRE]())
