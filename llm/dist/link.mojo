"""What the thread that trains and the one that beats share: the library of MPI under one lock, and who was last heard of when.

MPI itself says nothing of a process that was killed or stopped, or of a cable that was cut. So each rank lets every other
know twice a second that it lives; what is to be done about one that is silent is `Ranks`'s business.

All that is shared lies at plain addresses, of which each thread has its own copy in a `Link`.
"""

from std.atomic import Atomic, Ordering
from std.ffi import external_call
from std.memory.alloc import unsafe_alloc
from std.time import perf_counter_ns

from llm.dist.mpi import MPI

comptime NOTICE_BYTES = 1024
"""Longest text that a rank leaves when it ends."""
comptime NUM_MESSAGES = 1024
"""Messages of data on their way at a time."""

# Kinds of messages, told apart by their tags.
comptime DATA = 1
comptime _BEAT = 2
comptime _NOTICE = 3

comptime _LIVES = Int64(1)
comptime _LEAVES = Int64(2)
"""The last beat of a rank."""
comptime _BEAT_US = Int32(500_000)
comptime _LEAVING_US = Int32(1_000)
comptime _MUTEX_BYTES = 128
"""More than a pthread_mutex_t takes anywhere."""

# Cells that both threads read and write; after them HEARD and LEFT of each rank.
comptime LEAVING = 0
"""1: this rank takes its leave."""
comptime ENDED = 1
"""1: the thread that beats has ended; 2: because MPI failed, and the notice of this rank itself says why."""
comptime LOCKED = 2
"""When MPI was last called by a thread that is still in the call; 0 if none is."""
comptime GIVEN_UP = 3
"""1: this rank takes no further part."""
comptime _CELLS = 4


@fieldwise_init
struct Link(Copyable, Movable):
    """The connection to the other ranks, for one thread; copies are the same connection."""

    var mpi: MPI
    var rank: Int
    var size: Int
    var _mutex: Int
    var _cells: Pointer[Atomic[Int64], MutUntrackedOrigin]
    var _requests: Int
    """MPI's handles of the messages of data, then four for each rank: beats out and in, notices out and in."""
    var _beats: Pointer[Int64, MutUntrackedOrigin]
    """For each rank what goes out and what comes in."""
    var _notices: Pointer[UInt8, MutUntrackedOrigin]
    """One of each rank, with a zero at the end."""

    def __init__(out self, family: Int) raises:
        """Connects this process with the others that the same mpiexec has started.

        Raises:
            If the library of MPI is not there or does not work.
        """
        self.mpi = MPI(family)
        self.rank, self.size = self.mpi.begin()
        var mutex = unsafe_alloc[UInt8](_MUTEX_BYTES)
        self._mutex = Int(mutex)
        _ = external_call["pthread_mutex_init", Int32](self._mutex, Int(0))
        self._cells = unsafe_alloc[Atomic[Int64]](_CELLS + 2 * self.size)
        var now = Int64(perf_counter_ns())
        for i in range(_CELLS + 2 * self.size):
            self._cells.unsafe_offset(i).unsafe_write(
                Atomic[Int64](now if i >= _CELLS and i < _CELLS + self.size else 0)
            )
        var requests = unsafe_alloc[Int](NUM_MESSAGES + 4 * self.size)
        self._requests = Int(requests)
        self._beats = unsafe_alloc[Int64](2 * self.size)
        self._notices = unsafe_alloc[UInt8](NOTICE_BYTES * self.size)
        for i in range(NOTICE_BYTES * self.size):
            self._notices[unsafe_offset=i] = 0

    # ----- for any thread

    def cell(self, number: Int) -> Int64:
        """Returns one of the cells above."""
        return self._cells[unsafe_offset=number].load[ordering=Ordering.ACQUIRE]()

    def set(self, number: Int, value: Int64):
        """Changes one of the cells above."""
        self._cells[unsafe_offset=number].store(value)

    def heard(self, peer: Int) -> Int64:
        """Returns when another rank was last heard of, in nanoseconds of `perf_counter_ns`."""
        return self.cell(_CELLS + peer)

    def hear(self, peer: Int):
        """Notes that another rank lives."""
        self.set(_CELLS + peer, Int64(perf_counter_ns()))

    def left(self, peer: Int) -> Bool:
        """Tells whether another rank has taken its leave; its notice is there then."""
        return self.cell(_CELLS + self.size + peer) != 0

    def notice(self, peer: Int) -> String:
        """Returns why a rank has taken its leave; nothing if in order."""
        var length = 0
        while length < NOTICE_BYTES and self._notices[unsafe_offset=peer * NOTICE_BYTES + length] != 0:
            length += 1
        var bytes = List[UInt8]()
        for i in range(length):
            bytes.append(self._notices[unsafe_offset=peer * NOTICE_BYTES + i])
        return String(StringSlice(unsafe_from_utf8=Span(bytes)))

    def write_notice(self, why: String):
        """Sets the notice of this rank, cut where it is too long."""
        var bytes = why.as_bytes()
        for i in range(min(len(bytes), NOTICE_BYTES - 1)):
            self._notices[unsafe_offset=self.rank * NOTICE_BYTES + i] = bytes[i]

    def request(self, message: Int) -> Int:
        """Returns the address of the handle of a message of data."""
        return self._requests + 8 * message

    def lock(self):
        """Waits until no other thread calls MPI."""
        _ = external_call["pthread_mutex_lock", Int32](self._mutex)
        self.set(LOCKED, Int64(perf_counter_ns()))

    def unlock(self):
        """Lets other threads call MPI."""
        self.set(LOCKED, 0)
        _ = external_call["pthread_mutex_unlock", Int32](self._mutex)

    # ----- the thread that beats

    def beat(self):
        """The life of that thread: until all ranks have taken their leave, or MPI fails."""
        var failed = String()
        self.lock()
        try:
            for peer in range(self.size):
                if peer != self.rank:
                    self._listen(peer)
                    self.mpi.receive(self._notice_of(peer), NOTICE_BYTES, peer, _NOTICE, self._side(peer, 3))
        except error:
            failed = String(error)
        self.unlock()
        # What is on its way to each rank: nothing, a beat, or the last beat.
        var sent = List[Int64](length=self.size, fill=0)
        while not failed:
            var leaving = self.cell(LEAVING) != 0
            var all_left = leaving
            self.lock()
            try:
                for peer in range(self.size):
                    if peer != self.rank:
                        self._beat(peer, leaving, sent)
                        all_left = all_left and self.left(peer) and sent[peer] == _LEAVES
                        all_left = (
                            all_left and self.mpi.test(self._side(peer, 0)) and self.mpi.test(self._side(peer, 2))
                        )
            except error:
                failed = String(error)
            self.unlock()
            if all_left:
                break
            self._sleep(leaving)
        if failed:
            self.write_notice(failed)
        self.set(ENDED, Int64(2) if failed else Int64(1))

    def _beat(self, peer: Int, leaving: Bool, mut sent: List[Int64]) raises:
        if sent[peer] == _LIVES and self.mpi.test(self._side(peer, 0)):
            sent[peer] = 0
        if sent[peer] == 0:
            sent[peer] = _LEAVES if leaving else _LIVES
            self._beats[unsafe_offset=2 * peer] = sent[peer]
            if leaving:
                self.mpi.send(self._notice_of(self.rank), NOTICE_BYTES, peer, _NOTICE, self._side(peer, 2))
            self.mpi.send(Int(self._beats.unsafe_offset(2 * peer)), 8, peer, _BEAT, self._side(peer, 0))
        while not self.left(peer) and self.mpi.test(self._side(peer, 1)):
            self.hear(peer)
            if self._beats[unsafe_offset=2 * peer + 1] == _LEAVES:
                # Its notice was sent before.
                while not self.mpi.test(self._side(peer, 3)):
                    pass
                self.set(_CELLS + self.size + peer, 1)
            else:
                self._listen(peer)

    def _listen(self, peer: Int) raises:
        self.mpi.receive(Int(self._beats.unsafe_offset(2 * peer + 1)), 8, peer, _BEAT, self._side(peer, 1))

    def _sleep(self, leaving: Bool):
        """Until the next beat, or until this rank takes its leave."""
        var slept = Int32(0)
        while slept < (_LEAVING_US if leaving else _BEAT_US):
            _ = external_call["usleep", Int32](Int32(_LEAVING_US))
            slept += _LEAVING_US
            if not leaving and self.cell(LEAVING) != 0:
                return

    def _notice_of(self, rank: Int) -> Int:
        return Int(self._notices) + rank * NOTICE_BYTES

    def _side(self, peer: Int, which: Int) -> Int:
        """Address of one of the four handles of a rank."""
        return self._requests + 8 * (NUM_MESSAGES + 4 * peer + which)


def beat(link: Pointer[Link, MutUntrackedOrigin]) abi("C") -> Int:
    """Where the thread that beats begins."""
    link[].beat()
    return 0
