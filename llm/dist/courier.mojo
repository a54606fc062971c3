"""A thread that adds gradients up over the ranks while a backward pass still computes those of earlier blocks.

It is none of the threads that compute. What becomes final together is a stage; the pass counts the stages that are.
"""

from std.ffi import external_call
from std.memory.alloc import unsafe_alloc

from llm.base.memory import Tensor
from llm.base.shared_counter import count_at
from llm.dist.ranks import Ranks
from llm.dist.reduction import Chunks, Exchange, add

comptime F32 = DType.float32
comptime _LOOK_US = Int32(200)


@fieldwise_init
struct Stage(Copyable, Movable):
    """What is added up at once."""

    var after: Int
    """The count from which on it is final."""
    var sums: List[Tensor[F32]]
    """To which this rank first adds what stands at the same place of `parts`."""
    var parts: List[Tensor[F32]]
    var chunks: Chunks


struct _Errand(Movable):
    """What the thread needs, at an address that stays as long as it runs."""

    var ranks: Pointer[Ranks, MutUntrackedOrigin]
    var exchange: Pointer[Exchange, MutUntrackedOrigin]
    var counter: Int
    var stages: List[Stage]
    var failure: String

    def __init__(out self, ranks: Int, exchange: Int, counter: Int, var stages: List[Stage]):
        self.ranks = Pointer[Ranks, MutUntrackedOrigin](unsafe_from_address=ranks)
        self.exchange = Pointer[Exchange, MutUntrackedOrigin](unsafe_from_address=exchange)
        self.counter = counter
        self.stages = stages^
        self.failure = String()

    def run(mut self) raises:
        ref ranks = self.ranks[]
        for ref stage in self.stages:
            while count_at(self.counter) < stage.after:
                ranks.expect_together()
                _ = external_call["usleep", Int32](_LOOK_US)
            for i in range(len(stage.sums)):
                add(stage.sums[i], stage.parts[i])
            self.exchange[].sum(ranks, stage.chunks)


struct Courier(Movable):
    """At most one such thread."""

    var _errand: Optional[Pointer[_Errand, MutUntrackedOrigin]]
    var _thread: Int
    var _has_thread: Bool

    def __init__(out self):
        """Nobody is under way."""
        self._errand = None
        self._thread = 0
        self._has_thread = False

    def send(mut self, mut ranks: Ranks, mut exchange: Exchange, var stages: List[Stage], counter: Int) raises:
        """Has the stages added up, each once the counter at this address says so. Until `join` the thread alone uses `ranks`.

        A single stage waits for `join`, which needs no thread.

        Raises:
            If the system refuses a thread.
        """
        var errand = unsafe_alloc[_Errand](1)
        errand.unsafe_write(_Errand(Int(Pointer(to=ranks)), Int(Pointer(to=exchange)), counter, stages^))
        self._errand = errand
        self._has_thread = len(errand[].stages) > 1
        if not self._has_thread:
            return
        # Those that compute need the processors.
        ranks.is_eager = False
        if external_call["pthread_create", Int32](Pointer(to=self._thread), Int(0), _work, errand) != 0:
            raise Error("mpi: the system refuses a thread")

    def join(mut self, mut ranks: Ranks) raises:
        """Waits until all stages are added up; nothing to do if nobody is under way.

        Raises:
            If MPI has failed.
        """
        if not self._errand:
            return
        var errand = self._errand.value()
        # The processors have nothing else to do any more.
        ranks.is_eager = True
        if self._has_thread:
            _ = external_call["pthread_join", Int32](self._thread, Int(0))
        else:
            _ = _work(errand)
        self._errand = None
        var failure = errand[].failure
        errand.unsafe_deinit_pointee()
        errand.unsafe_free()
        if failure:
            raise Error(failure)


def _work(errand: Pointer[_Errand, MutUntrackedOrigin]) abi("C") -> Int:
    """The life of that thread."""
    try:
        errand[].run()
    except error:
        errand[].failure = String(error)
    return 0
