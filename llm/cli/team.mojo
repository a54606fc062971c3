"""Training on several ranks, as a person sees it: who joins, whether all have the same, who is lost. Rank 0 alone speaks."""

from std.ffi import external_call
from std.memory.alloc import unsafe_alloc
from std.sys import exit

from llm.base.files import glob_files
from llm.base.numbers import parse_integer
from llm.base.sha256 import sha256_of_ends, sha256_of_file, sha256_of_text
from llm.cli.arguments import Arguments, command_line, parse_arguments
from llm.cli.options import options
from llm.cli.screen import complain
from llm.cpu.threads.cores import available_threads, usable_cpus
from llm.dist.mpi import Launch, family_name
from llm.dist.ranks import RankView, Ranks
from llm.model.config import GPT2Config
from llm.model.tensors import ParameterTensors

comptime F32 = DType.float32
comptime _SC_NPROCESSORS_ONLN = Int32(84)

# Where a run begins.
comptime AT_FIRST = 0
comptime AT_CHECKPOINT = 1
comptime NOT_AT_ALL = 2

comptime _STATUS_LOST = Int32(1)
comptime _GRACE_S = UInt32(5)
comptime _LAST_WORDS_US = Int32(500_000)


def join(launch: Optional[Launch]) raises -> Ranks:
    """Joins the other processes, if there are any, and from here on ends this one when another is lost.

    Raises:
        If MPI does not work.
    """
    if not launch or launch.value().size == 1:
        return Ranks()
    var ranks = Ranks(launch.value())
    var watch = unsafe_alloc[RankView](1)
    watch.unsafe_write(ranks.view())
    var thread = 0
    if external_call["pthread_create", Int32](Pointer(to=thread), Int(0), _watch, watch) != 0:
        raise Error("mpi: the system refuses a thread")
    return ranks^


def _watch(view: Pointer[RankView, MutUntrackedOrigin]) abi("C") -> Int:
    """The life of the thread that looks after the other ranks."""
    while True:
        _ = external_call["usleep", Int32](Int32(100_000))
        var lost = view[].lost()
        if lost:
            var own = view[].name(view[].rank)
            complain(
                String(t"train_gpt2: {own} ends: {lost}; a checkpoint that counts is whole: go on with --resume 1")
            )
            # Whatever becomes of the next call.
            _ = external_call["alarm", UInt32](_GRACE_S)
            # The launcher ends who was stopped, which itself can do nothing; and drops words that come with the end.
            _ = external_call["usleep", Int32](_LAST_WORDS_US)
            view[].end_all()
            external_call["_exit", NoneType](_STATUS_LOST)


def be_silent():
    """From here on what is printed goes nowhere: rank 0 shows it."""
    var null = String("/dev/null")
    var fd = external_call["openat", Int32](Int32(-100), null.as_c_string_span().ptr(), Int32(1), Int32(0))
    _ = external_call["dup2", Int32](fd, Int32(1))


def threads_of_rank(args: Arguments, launch: Optional[Launch]) -> Int:
    """Returns the threads of this process: as many as the flag says, or its part of the cores that it may use."""
    if args.int("threads") > 0:
        return args.int("threads")
    var threads = available_threads()
    # A launcher that binds has parted the processors already.
    if launch and len(usable_cpus()) == external_call["sysconf", Int](_SC_NPROCESSORS_ONLN):
        return max(threads // launch.value().on_this_host, 1)
    return threads


def set_replicas(mut args: Arguments, ranks: Ranks) raises:
    """Has the run as many replicas as ranks, unless it says how many; and every rank the whole state of Muon.

    Raises:
        If the ranks are to share the state out that they cannot.
    """
    if ranks.size > 1 and args.bool("zero-stage") and args.choice("optimizer") == "muon":
        if args.given("zero-stage"):
            raise Error("muon: it needs whole matrices, so the ranks cannot share its state out; use --zero-stage 0")
        args.set("zero-stage", "0", "")
    if not args.given("replicas") and ranks.size > 1:
        args.set("replicas", String(ranks.size), "")


def describe_ranks(launch: Optional[Launch], ranks: Ranks, threads: Int) -> String:
    """Says who trains; nothing of a single process."""
    if ranks.size == 1:
        return ""
    var hosts = String()
    for rank in range(ranks.size):
        hosts += (", " if rank > 0 else "") + ranks.hosts[rank]
    return String(
        t"ranks       {ranks.size} ({hosts}) by {family_name(launch.value().family)}, {threads} threads here\n"
    )


# ----- what rank 0 gives the others at the start


@fieldwise_init
struct Start(Movable):
    """What every rank knows before it makes a model."""

    var args: Arguments
    var config: GPT2Config
    var begins: Int
    """AT_FIRST, AT_CHECKPOINT or NOT_AT_ALL."""
    var steps: Int


def announce(mut ranks: Ranks, args: Arguments, config: GPT2Config, begins: Int, steps: Int) raises:
    """Gives the other ranks the settings of the run, whose files they may not have.

    Raises:
        If MPI fails.
    """
    if ranks.size == 1:
        return
    var text = String(t"{begins} {steps} {config.max_seq_len} {config.vocab_size} {config.padded_vocab_size}")
    text += String(t" {config.num_layers} {config.num_heads} {config.channels}")
    for option in args.options:
        if args.given(option.name):
            text += String(t"\x01{option.name}\x02{args.string(option.name)}")
    _ = ranks.hand_out_text(text)


def hear(mut ranks: Ranks) raises -> Start:
    """Returns what rank 0 has announced.

    Raises:
        If MPI fails.
    """
    var parts = ranks.hand_out_text("").split("\x01")
    var args = Arguments("train_gpt2", "", options())
    for i in range(1, len(parts)):
        var setting = parts[i].split("\x02")
        args.set(String(setting[0]), String(setting[1]), "")
    var numbers = List[Int]()
    for word in parts[0].split(" "):
        numbers.append(parse_integer(word).value())
    var config = GPT2Config(numbers[2], numbers[3], numbers[4], numbers[5], numbers[6], numbers[7])
    return Start(args^, config^, numbers[0], numbers[1])


def expect_same(mut ranks: Ranks, args: Arguments) raises:
    """Raises in every rank, with the name of one, if that one has another program, flags or data than rank 0.

    Of data the sizes of the files count, and the first and last bytes of each.
    """
    if ranks.size == 1:
        return
    var words = String()
    for word in command_line():
        words += word + "\n"
    _expect_same(ranks, "program", sha256_of_file("/proc/self/exe"), "copy rank 0's there")
    _expect_same(ranks, "flags", sha256_of_text(words), "give all ranks the same")
    var kinds: List[StaticString] = ["train-data", "val-data", "hellaswag"]
    for kind in kinds:
        var ends = String()
        if args.given(kind) or kind != "hellaswag":
            for path in glob_files(args.string(kind)):
                ends += sha256_of_ends(path)
        _expect_same(ranks, String(t"--{kind}"), sha256_of_text(ends), "copy rank 0's files there")


def expect_same_model(mut ranks: Ranks, params: ParameterTensors[F32]) raises:
    """Raises in every rank, with the name of one, if that one starts from another model than rank 0."""
    if ranks.size == 1:
        return
    var hash = UInt64(0)
    for tensor in params.tensors():
        for i in range(tensor.size):
            hash = (hash ^ UInt64(tensor[i].to_bits())) * 0x9E3779B97F4A7C15
            hash ^= hash >> 29
    _expect_same(ranks, "model", String(hash), "copy the file of --init there")


def _expect_same(mut ranks: Ranks, what: String, own: String, advice: String) raises:
    var all = ranks.texts(own)
    for rank in range(1, ranks.size):
        if all[rank] != all[0]:
            raise Error(t"{ranks.name(rank)} differs from {ranks.name(0)} in {what}: {advice}; nothing was trained")
