"""The processes that train together, seen by one of them. Without an mpiexec that is one, and nothing here costs anything."""

from std.ffi import external_call
from std.memory.alloc import unsafe_alloc
from std.sys import size_of
from std.time import perf_counter_ns

from llm.base.memory import Tensor
from llm.dist.link import DATA, ENDED, GIVEN_UP, LEAVING, LOCKED, NUM_MESSAGES, Link, beat
from llm.dist.mpi import Launch

comptime U8 = DType.uint8
comptime LOST_NS = 12_000_000_000
"""Who is not heard of for so long is lost."""
comptime _FAREWELL_NS = 3_000_000_000
comptime _EAGER_NS = 2_000_000
"""Who waits looks without a pause for so long."""
comptime _LOOKS = 8
comptime _LONGEST_SLEEP_US = 250
comptime _HOST_BYTES = 64


struct Ranks(Movable):
    """A process among those that train together: its number, theirs, and messages between them."""

    var rank: Int
    var size: Int
    var hosts: List[String]
    """Where each rank runs."""
    var is_eager: Bool
    """Whether who waits for a message looks without a pause at first."""
    var _link: Optional[Link]
    """Nothing if there is one rank."""
    var _free: List[Int]
    """Numbers for messages to come."""
    var _peers: List[Int]
    """By number of a message, the rank that it comes from; -1 if it goes to one."""

    def __init__(out self):
        """One process by itself."""
        self.rank = 0
        self.size = 1
        self.hosts = [_host_name()]
        self.is_eager = True
        self._link = None
        self._free = List[Int]()
        self._peers = List[Int]()

    def __init__(out self, launch: Launch) raises:
        """Joins the processes that the same mpiexec has started.

        Raises:
            If the library of MPI is not there or does not work.
        """
        self = Self()
        if launch.size == 1:
            return
        var link = Link(launch.family)
        self.rank = link.rank
        self.size = link.size
        for i in range(NUM_MESSAGES):
            self._free.append(NUM_MESSAGES - 1 - i)
            self._peers.append(-1)
        var own_copy = unsafe_alloc[Link](1)
        own_copy.unsafe_write(link.copy())
        self._link = link^
        var thread = 0
        if external_call["pthread_create", Int32](Pointer(to=thread), Int(0), beat, own_copy) != 0:
            raise Error("mpi: the system refuses a thread")
        var host = self.hosts[0]
        self.hosts = self.texts(host)

    @no_inline
    def __deinit__(deinit self):
        """Leaves the link where it is: its thread may still use it."""
        pass

    def leads(self) -> Bool:
        """Tells whether this is rank 0, which decides, speaks and saves."""
        return self.rank == 0

    def name(self, rank: Int) -> String:
        """Returns what to call a rank in a message."""
        return String(t"rank {rank} on {self.hosts[rank]}")

    # ----- messages

    def send[dtype: DType](mut self, tensor: Tensor[dtype], peer: Int) raises -> Int:
        """Begins to send what must stay as it is until `wait` has returned; returns the number to wait for.

        A message has fewer than 2^31 bytes, and at most NUM_MESSAGES are on their way.

        Raises:
            If MPI fails.
        """
        return self._begin(tensor, peer, sends=True)

    def receive[dtype: DType](mut self, tensor: Tensor[dtype], peer: Int) raises -> Int:
        """Begins to receive what another rank sends by the call that belongs to this one.

        Raises:
            If MPI fails.
        """
        return self._begin(tensor, peer, sends=False)

    def wait(mut self, message: Int) raises:
        """Waits until a message has gone or come.

        Raises:
            If MPI fails, or this rank gives up.
        """
        var began = Int(perf_counter_ns())
        while not self._is_done(message):
            self.expect_together()
            var waited = Int(perf_counter_ns()) - began
            if self.is_eager and waited < _EAGER_NS:
                _ = external_call["sched_yield", Int32]()
            else:
                _ = external_call["usleep", Int32](Int32(min(waited // 100_000, _LONGEST_SLEEP_US)))
        if self._peers[message] >= 0:
            # A long message keeps beats waiting behind it.
            self._link.value().hear(self._peers[message])
        self._free.append(message)

    def give_up(self):
        """Ends every wait of this rank, in all of its threads: it will take no further part."""
        if self._link:
            self._link.value().set(GIVEN_UP, 1)

    def expect_together(self) raises:
        """Raises if this rank has given up."""
        if self._link and self._link.value().cell(GIVEN_UP) != 0:
            raise Error("mpi: this rank takes no further part")

    def wait_for_all(mut self, messages: List[Int]) raises:
        """Waits for several messages."""
        for message in messages:
            self.wait(message)

    def share[dtype: DType](mut self, own: Tensor[dtype], all: Tensor[dtype]) raises:
        """Gives every rank what each of them has: `all` has room for size times `own`, rank after rank."""
        for i in range(own.size):
            all[self.rank * own.size + i] = own[i]
        var messages = List[Int]()
        for peer in range(self.size):
            if peer != self.rank:
                messages.append(self.receive(all.slice(peer * own.size, own.size), peer))
                messages.append(self.send(own, peer))
        self.wait_for_all(messages)

    def numbers(mut self, own: List[Float64]) raises -> List[Float64]:
        """Returns the numbers of all ranks, rank after rank; each has as many.

        Raises:
            If MPI fails.
        """
        var mine = own.copy()
        if self.size == 1:
            return mine^
        var all = List[Float64](length=self.size * len(own), fill=0)
        self.share(Tensor(viewing=Span(mine)), Tensor(viewing=Span(all)))
        _ = mine^
        return all^

    def meet(mut self) raises:
        """Waits until every rank has come to this call.

        Raises:
            If MPI fails.
        """
        _ = self.numbers([0])

    def hand_out[dtype: DType](mut self, tensor: Tensor[dtype]) raises:
        """Gives every rank what rank 0 has."""
        if self.rank > 0:
            self.wait(self.receive(tensor, 0))
            return
        var messages = List[Int]()
        for peer in range(1, self.size):
            messages.append(self.send(tensor, peer))
        self.wait_for_all(messages)

    def hand_out_text(mut self, text: String) raises -> String:
        """Returns rank 0's text in every rank."""
        var size = List[Int64](length=1, fill=Int64(text.byte_length()))
        self.hand_out(Tensor(viewing=Span(size)))
        var bytes = List[UInt8](text.as_bytes())
        bytes.resize(Int(size[0]), 0)
        if len(bytes) > 0:
            self.hand_out(Tensor(viewing=Span(bytes)))
        return String(StringSlice(unsafe_from_utf8=Span(bytes)))

    def texts(mut self, own: String) raises -> List[String]:
        """Returns a short text of each rank, of which at most 64 bytes count."""
        var mine = List[UInt8](own.as_bytes())
        mine.resize(_HOST_BYTES, 0)
        var all = List[UInt8](length=self.size * _HOST_BYTES, fill=0)
        self.share(Tensor(viewing=Span(mine)), Tensor(viewing=Span(all)))
        var texts = List[String]()
        for rank in range(self.size):
            var bytes = Span(all)[rank * _HOST_BYTES : (rank + 1) * _HOST_BYTES]
            texts.append(_until_zero(bytes))
        _ = mine^
        return texts^

    def view(self) -> RankView:
        """Returns what any thread may use."""
        return RankView(self.rank, self.size, self.hosts.copy(), self._link.copy())

    # ----- inside

    def _begin[dtype: DType](mut self, tensor: Tensor[dtype], peer: Int, *, sends: Bool) raises -> Int:
        if len(self._free) == 0:
            raise Error(t"mpi: expected at most {NUM_MESSAGES} messages on their way")
        var message = self._free.pop()
        self._peers[message] = -1 if sends else peer
        var bytes = tensor.size * size_of[Scalar[dtype]]()
        ref link = self._link.value()
        link.lock()
        try:
            if sends:
                link.mpi.send(Int(tensor.ptr), bytes, peer, DATA, link.request(message))
            else:
                link.mpi.receive(Int(tensor.ptr), bytes, peer, DATA, link.request(message))
        finally:
            link.unlock()
        return message

    def _is_done(self, message: Int) raises -> Bool:
        ref link = self._link.value()
        link.lock()
        try:
            # Some libraries move 64 KB of all that is on its way whenever they are called.
            for _ in range(_LOOKS):
                if link.mpi.test(link.request(message)):
                    return True
            return False
        finally:
            link.unlock()


@fieldwise_init
struct RankView(Copyable, Movable):
    """What has become of the other ranks, for any thread; and how to take leave of them."""

    var rank: Int
    var size: Int
    var hosts: List[String]
    var _link: Optional[Link]

    def name(self, rank: Int) -> String:
        """Returns what to call a rank in a message."""
        return String(t"rank {rank} on {self.hosts[rank]}")

    def lost(self) -> String:
        """Tells what has happened to another rank, or to MPI; nothing as long as all is well."""
        if not self._link:
            return ""
        ref link = self._link.value()
        # These first: what is noted while this looks at them is not in the future.
        var locked = link.cell(LOCKED)
        if link.cell(ENDED) == 2:
            return link.notice(self.rank)
        if link.cell(LEAVING) != 0:
            return ""
        for peer in range(self.size):
            if peer == self.rank:
                continue
            var heard = link.heard(peer)
            if link.left(peer):
                var notice = link.notice(peer)
                if notice:
                    return String(t"{self.name(peer)} has ended: {notice}")
            elif Int64(perf_counter_ns()) - heard > LOST_NS:
                return String(
                    t"nothing has been heard of {self.name(peer)} for {LOST_NS // 1_000_000_000} seconds: it has died,"
                    t" was stopped, or cannot be reached"
                )
        if locked != 0 and Int64(perf_counter_ns()) - locked > LOST_NS:
            return "MPI does not come back from a call: a host has died or cannot be reached"
        return ""

    def end_all(self):
        """Has the launcher end all ranks, also those that cannot end themselves; it may not return.

        It is the one call that does not wait for others to come back from MPI: they may never do so.
        """
        if self._link:
            self._link.value().mpi.end_all()

    def leave(self, why: String = ""):
        """Takes leave of the other ranks, in the thread that joined them: in order, or with the reason why this one ends.
        """
        if not self._link:
            return
        ref link = self._link.value()
        link.write_notice(why)
        link.set(LEAVING, 1)
        var began = Int(perf_counter_ns())
        while link.cell(ENDED) == 0 and Int(perf_counter_ns()) - began < _FAREWELL_NS:
            _ = external_call["usleep", Int32](Int32(1000))
        if link.cell(ENDED) == 1 and not why:
            try:
                link.mpi.end()
            except error:
                # Nothing is under way any more.
                pass


def _until_zero(bytes: Span[UInt8, _]) -> String:
    var end = 0
    while end < len(bytes) and bytes[end] != 0:
        end += 1
    return String(StringSlice(unsafe_from_utf8=bytes[0:end]))


def _host_name() -> String:
    var name = List[UInt8](length=_HOST_BYTES + 1, fill=0)
    _ = external_call["gethostname", Int32](name.unsafe_ptr(), Int(_HOST_BYTES))
    return _until_zero(Span(name))
