"""Files as readers need them: checked before use, read without copies. `written_files.mojo` has the writers.

Errors say who was at work, on which file, what was expected, what was found and what to do.
"""

from std.ffi import external_call, get_errno
from std.os.path import dirname, exists, isdir
from std.sys import size_of

from llm.base.checks import check_bounds
from llm.base.file_identity import FileIdentity
from llm.base.memory import Tensor

comptime CLOSE_ON_EXEC = Int32(0o2000000)
# Opening a pipe would otherwise wait for someone to write to it.
comptime OPEN_READ = Int32(0o4000) | CLOSE_ON_EXEC
comptime _AT_FDCWD = Int32(-100)
comptime _PROT_READ = Int32(1)
comptime _MAP_PRIVATE = Int32(2)
comptime _SEEK_END = Int32(2)
comptime _LARGEST_TEXT = 1 << 20
comptime _GLOB_NO_MATCH = 3
comptime _OPEN_FILES = Int32(7)


trait Readable:
    """What can be read at given offsets."""

    def read[dtype: DType](self, offset: Int, target: Tensor[dtype]) raises:
        """Fills `target` with the bytes from `offset` on."""
        ...


struct InputFile(Movable, Readable):
    """A file opened for reading at given offsets."""

    var who: String
    """What is being done, for messages."""
    var path: String
    """The file, for messages."""
    var size: Int
    """Bytes in the file."""
    var _fd: Int32

    def __init__(out self, who: String, path: String) raises:
        """Opens a file.

        Raises:
            If there is none, it is a folder or a pipe, or may not be read.
        """
        self.who = who
        self.path = path
        self.size = -1
        self._fd = -1
        if isdir(path):
            raise self.error("expected a file, found a folder; name the file itself")
        self._fd = open_at(path, OPEN_READ)
        if self._fd < 0:
            raise Error(t"{who}: cannot open {path}: {get_errno()}; check the path or make the file")
        self.size = Int(external_call["lseek", Int64](self._fd, Int64(0), _SEEK_END))
        if self.size < 0:
            raise self.error("expected an ordinary file, found a pipe or a device; give a file on a disk")

    def __init__(out self, *, deinit move: Self):
        """Takes over an open file."""
        self.who = move.who^
        self.path = move.path^
        self.size = move.size
        self._fd = move._fd

    @no_inline
    def __deinit__(deinit self):
        """Closes the file."""
        if self._fd >= 0:
            _ = external_call["close", Int32](self._fd)

    def read[dtype: DType](self, offset: Int, target: Tensor[dtype]) raises:
        """Fills `target` with the bytes from `offset` on.

        Raises:
            If the file ends before, or the disk fails.
        """
        var wanted = target.size * size_of[Scalar[dtype]]()
        var found = read_at(self._fd, offset, target)
        if found < 0:
            raise self.error(String(t"cannot read: {get_errno()}; check the disk"))
        if found < wanted:
            raise self.error(
                String(t"expected {wanted} bytes at {offset}, found {found}; the file is cut off: make it again")
            )

    def identity(self) raises -> FileIdentity:
        """Returns what tells this file and its state from others.

        Raises:
            If the disk fails.
        """
        try:
            return FileIdentity(self._fd)
        except error:
            raise self.error(String(error))

    def expect_unchanged(self, expected: FileIdentity) raises:
        """Raises unless this is still the file of that identity, and nothing has been written to it since."""
        var difference = expected.difference(self.identity())
        if difference:
            raise self.error(
                String(t"the file has changed since it was checked: {difference}; leave data alone while it is in use")
            )

    def expect_size(self, expected: Int, because: String) raises:
        """Raises unless the file has exactly this many bytes."""
        if self.size != expected:
            var what = "cut off" if self.size < expected else "too long"
            raise self.error(
                String(
                    t"expected {expected} bytes ({because}), found {self.size} bytes; the file is {what}: make it or"
                    t" download it again"
                )
            )

    def error(self, message: String) -> Error:
        """Makes an error about this file."""
        return Error(t"{self.who}: {self.path}: {message}")


struct MappedFile(Movable):
    """A file mapped read-only: its pages are read when they are touched, and cost no memory of their own."""

    var size: Int
    """Bytes in the file."""
    var _address: Int

    def __init__(out self, file: InputFile) raises:
        """Maps a whole file, which may be closed afterwards.

        Raises:
            If the file is empty or the system cannot map it.
        """
        self.size = file.size
        if self.size == 0:
            raise file.error("the file is empty; make it again")
        self._address = external_call["mmap", Int](Int(0), self.size, _PROT_READ, _MAP_PRIVATE, file._fd, Int(0))
        if self._address == -1:
            raise file.error(String(t"cannot map: {get_errno()}; put the file on a local disk"))

    def __init__(out self, *, deinit move: Self):
        """Takes over a mapping."""
        self.size = move.size
        self._address = move._address

    @no_inline
    def __deinit__(deinit self):
        """Gives the mapping back."""
        _ = external_call["munmap", Int32](self._address, self.size)

    def view[dtype: DType](self, offset: Int, count: Int) -> Tensor[dtype]:
        """Views `count` scalars from byte `offset` on, which the caller has checked to lie in the file. Never write."""
        check_bounds(offset, count * size_of[Scalar[dtype]](), self.size)
        return Tensor[dtype](Tensor[dtype].Ptr(unsafe_from_address=self._address + offset), count)


def allow_many_files():
    """Lets the process have as many files open as the system allows it, rather than the 1,024 that are common."""
    # A struct rlimit: what holds, and how far it may be raised.
    var limit = Array[Int, 2](fill=0)
    if external_call["getrlimit", Int32](_OPEN_FILES, limit.unsafe_ptr()) == 0:
        limit[0] = limit[1]
        _ = external_call["setrlimit", Int32](_OPEN_FILES, limit.unsafe_ptr())


def beside(path: String, name: String) -> String:
    """Returns the path of another file in the folder of one."""
    var folder = String(dirname(path))
    return folder + "/" + name if folder.byte_length() > 0 else name


def absolute_path(path: String) -> String:
    """Returns a path that means the same file in every working directory; where that one is no UTF-8, the path itself.
    """
    var here = _working_directory()
    return here + "/" + path if here and not path.startswith("/") else path


def absolute_pattern(pattern: String) -> String:
    """Returns a pattern for `glob_files` that matches the same files in every working directory, likewise."""
    var here = _working_directory()
    if not here or pattern.startswith("/"):
        return pattern
    if exists(pattern):
        return here + "/" + pattern
    for special in ["\\", "*", "?", "["]:
        here = here.replace(special, "\\" + special)
    return here + "/" + pattern


def _working_directory() -> String:
    """Returns the working directory; empty if it has none any more, or its name is no UTF-8."""
    var buffer = List[UInt8](length=4096, fill=0)
    if external_call["getcwd", Int](buffer.unsafe_ptr(), len(buffer)) == 0:
        return ""
    try:
        return String(from_utf8=Span(buffer)[: buffer.index(0)])
    except:
        return ""


def free_bytes(path: String) -> Optional[Int]:
    """Returns how much this user may still write to the disk where a folder is or will be; none if the system does not
    tell.
    """
    # A struct statvfs: the size of a fragment is its second number, the free ones for us the fifth.
    var numbers = List[Int](length=16, fill=0)
    var name = path
    while name and not exists(name):
        name = String(dirname(name))
    if not name:
        name = "."
    if external_call["statvfs", Int32](name.as_c_string_span().ptr(), numbers.unsafe_ptr()) != 0:
        return None
    return numbers[1] * numbers[4]


def glob_files(pattern: String) raises -> List[String]:
    """Lists what matches a pattern of `*`, `?` and `[...]`, in byte order; a name that exists stands for itself.

    Raises:
        If a folder on the way cannot be read.
    """
    if exists(pattern):
        return [pattern]
    # glob_t: the number of names, the address of their addresses, and room for the rest.
    var result = List[Int](length=16, fill=0)
    var c_pattern = pattern
    var status = external_call["glob", Int32](
        c_pattern.as_c_string_span().ptr(), Int32(0), Int(0), Int(result.unsafe_ptr())
    )
    var names = List[String]()
    if status == 0:
        var addresses = Tensor[DType.int64](Tensor[DType.int64].Ptr(unsafe_from_address=result[1]), result[0])
        for i in range(result[0]):
            names.append(_string_at(Int(addresses[i])))
        external_call["globfree", NoneType](Int(result.unsafe_ptr()))
        # An address keeps nothing alive: the list has to outlast the call.
        _ = result^
    elif status != _GLOB_NO_MATCH:
        raise Error(t"glob: cannot look for {pattern}: status {status}; check the folders in it")
    return names^


def read_text(who: String, path: String, largest: Int = _LARGEST_TEXT) raises -> String:
    """Reads a text file.

    Raises:
        If there is none under this name, or it has more than `largest` bytes, or they are no text.
    """
    var file = InputFile(who, path)
    if file.size > largest:
        raise file.error(String(t"expected a short text, found {file.size} bytes; give the right file"))
    if file.size == 0:
        return ""
    var bytes = List[UInt8](length=file.size, fill=0)
    file.read(0, Tensor[DType.uint8](viewing=Span(bytes)))
    try:
        return String(from_utf8=Span(bytes))
    except:
        raise file.error("expected a text in UTF-8, found other bytes; give the right file")


def read_system_text(path: String) -> Optional[String]:
    """Reads a file of /proc or /sys, which has no size until it is read; none if it cannot be read, or is no text."""
    var fd = open_at(path, OPEN_READ)
    if fd < 0:
        return None
    var bytes = List[UInt8]()
    var count = 0
    while count == len(bytes):
        bytes.resize(2 * count + 4096, 0)
        var target = Tensor[DType.uint8](viewing=Span(bytes))
        count = read_at(fd, 0, target)
    _ = external_call["close", Int32](fd)
    try:
        return String(from_utf8=Span(bytes)[: max(count, 0)])
    except:
        return None


def _string_at(address: Int) -> String:
    var length = external_call["strlen", Int](address)
    var bytes = Tensor[DType.uint8](Tensor[DType.uint8].Ptr(unsafe_from_address=address), length)
    return String(StringSlice(unsafe_from_utf8=bytes.span()))


def open_at(path: String, flags: Int32) -> Int32:
    """Opens a file and returns its descriptor, or -1."""
    var name = path
    return external_call["openat", Int32](_AT_FDCWD, name.as_c_string_span().ptr(), flags, Int32(0o666))


def read_at[dtype: DType](fd: Int32, offset: Int, target: Tensor[dtype]) -> Int:
    """Returns how many bytes could be read before the file's end; -1 if the disk fails."""
    var wanted = target.size * size_of[Scalar[dtype]]()
    var done = 0
    while done < wanted:
        var count = external_call["pread", Int](fd, Int(target.ptr) + done, wanted - done, offset + done)
        if count < 0:
            return -1
        if count == 0:
            break
        done += count
    return done
