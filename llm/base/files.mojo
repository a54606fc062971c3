"""Files as readers and writers need them: whole or not there, checked before use, read without copies.

Errors say who was at work, on which file, what was expected, what was found and what to do.
"""

from std.ffi import ErrNo, external_call, get_errno
from std.os import listdir, makedirs
from std.os.path import basename, dirname, exists, isdir
from std.sys import size_of

from llm.base.checks import check_bounds
from llm.base.file_identity import FileIdentity
from llm.base.memory import Tensor

comptime _AT_FDCWD = Int32(-100)
comptime _CLOSE_ON_EXEC = Int32(0o2000000)
# Opening a pipe would otherwise wait for someone to write to it.
comptime _OPEN_READ = Int32(0o4000) | _CLOSE_ON_EXEC
comptime _OPEN_NEW = Int32(0o302) | _CLOSE_ON_EXEC
# Through a symbolic link we would write to a file that is not ours.
comptime _NO_FOLLOW = Int32(0o400000)
comptime _OPEN_APPEND = Int32(0o2101) | _NO_FOLLOW | _CLOSE_ON_EXEC
comptime _TRUNCATE = Int32(0o1000)
comptime _PROT_READ = Int32(1)
comptime _MAP_PRIVATE = Int32(2)
comptime _MADV_DONTNEED = Int32(4)
comptime _SEEK_END = Int32(2)
comptime _LARGEST_TEXT = 1 << 20
comptime _GLOB_NO_MATCH = 3
comptime _LOCK_EXCLUSIVE_AT_ONCE = Int32(6)
comptime _OPEN_FILES = Int32(7)
comptime _TEMPORARY = ".llm-mojo.tmp"


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
        self._fd = _open(path, _OPEN_READ)
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
        var found = _read_at(self._fd, offset, target)
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

    def release(self, size: Int):
        """Gives back the memory of the first `size` bytes; touched again, they are read again."""
        _ = external_call["madvise", Int32](self._address, size, _MADV_DONTNEED)


struct AtomicFile(Movable, Readable):
    """A file that appears under its name when it is whole: written under another name, flushed to the disk, renamed.

    If `commit` is not reached, the temporary file is removed and what was under the name stays. Its name is this
    process's own, NAME.<8 random digits>.llm-mojo.tmp as in Python's part, and locked: what a killed process has left is
    known by a lock that nobody holds, and is removed by the next one that writes NAME.
    """

    var who: String
    """What is being done, for messages."""
    var path: String
    """Where the file will appear."""
    var size: Int
    """Bytes written so far."""
    var _temporary: String
    var _fd: Int32

    def __init__(out self, who: String, path: String) raises:
        """Starts a file, making its folder if there is none.

        Raises:
            If the name is a folder's, or the file cannot be made there.
        """
        self.who = who
        self.path = path
        self._temporary = String()
        self._fd = -1
        self.size = 0
        if isdir(path):
            raise Error(t"{who}: {path}: expected the name of a file, found a folder; name a file in it")
        make_folder(who, dirname(path))
        _remove_leftovers(path)
        while self._fd < 0:
            self._temporary = String(t"{path}.{_random_digits()}{_TEMPORARY}")
            self._fd = _open(self._temporary, _OPEN_NEW)
            if self._fd < 0 and get_errno() != ErrNo.EEXIST:
                raise Error(t"{who}: cannot write {path}: {get_errno()}; check the folder and its permissions")
            # Until it is locked, another process may take it for what a killed one has left.
            if self._fd >= 0 and not (_lock(self._fd) and exists(self._temporary)):
                _ = external_call["close", Int32](self._fd)
                self._fd = -1

    def __init__(out self, *, deinit move: Self):
        """Takes over a started file."""
        self.who = move.who^
        self.path = move.path^
        self._temporary = move._temporary^
        self._fd = move._fd
        self.size = move.size

    @no_inline
    def __deinit__(deinit self):
        """Removes what was written if it was not committed."""
        if self._fd >= 0:
            _ = external_call["close", Int32](self._fd)
            _ = external_call["unlink", Int32](self._temporary.as_c_string_span().ptr())

    def write[dtype: DType](mut self, source: Tensor[dtype]) raises:
        """Appends the bytes of `source`.

        Raises:
            If the disk is full or fails.
        """
        var address = Int(source.ptr)
        var wanted = source.size * size_of[Scalar[dtype]]()
        var done = 0
        while done < wanted:
            var count = external_call["pwrite", Int](self._fd, address + done, wanted - done, self.size)
            if count <= 0:
                raise self._error()
            done += count
            self.size += count

    def read[dtype: DType](self, offset: Int, target: Tensor[dtype]) raises:
        """Fills `target` with the bytes from `offset` on, which have been written.

        Raises:
            If the disk fails.
        """
        if _read_at(self._fd, offset, target) < target.size * size_of[Scalar[dtype]]():
            raise Error(t"{self.who}: cannot read back {self._temporary}: {get_errno()}; check the disk")

    def write(mut self, var text: String) raises:
        """Appends a text.

        Raises:
            If the disk is full or fails.
        """
        var address = Int(text.unsafe_ptr())
        self.write(Tensor[DType.uint8](Tensor[DType.uint8].Ptr(unsafe_from_address=address), text.byte_length()))
        # An address keeps nothing alive: the text has to outlast the call.
        _ = text^

    def flush(mut self) raises:
        """Brings what was written to the disk; the file is still under its temporary name.

        Raises:
            If the disk is full or fails.
        """
        if external_call["fsync", Int32](self._fd) != 0:
            raise self._error()

    def commit(mut self) raises:
        """Puts the file under its name; it outlives a loss of power from here on.

        Raises:
            If the disk is full or fails.
        """
        self.flush()
        if (
            external_call["rename", Int32](self._temporary.as_c_string_span().ptr(), self.path.as_c_string_span().ptr())
            != 0
        ):
            raise self._error()
        _ = external_call["close", Int32](self._fd)
        self._fd = -1
        _sync_folder(dirname(self.path))

    def _error(self) -> Error:
        var reason = get_errno()
        return Error(
            t"{self.who}: cannot write {self.path}: {reason}; make room or choose another folder (what was there before"
            t" is unchanged)"
        )


struct AppendedFile(Movable):
    """A text file that grows line by line; each write is on its way to the disk when it returns."""

    var who: String
    """What is being done, for messages."""
    var path: String
    """The file, for messages."""
    var _fd: Int32

    def __init__(out self, who: String, path: String, *, keep: Bool) raises:
        """Opens a file to append to; without `keep` it starts empty.

        Raises:
            If the file cannot be made or opened.
        """
        self.who = who
        self.path = path
        self._fd = _open(path, _OPEN_APPEND if keep else _OPEN_APPEND | _TRUNCATE)
        if self._fd < 0:
            if get_errno() == ErrNo.ELOOP:
                raise Error(t"{who}: {path} is a symbolic link; move it away, or choose another folder")
            raise Error(t"{who}: cannot write {path}: {get_errno()}; check the folder and its permissions")

    def __init__(out self, *, deinit move: Self):
        """Takes over an open file."""
        self.who = move.who^
        self.path = move.path^
        self._fd = move._fd

    @no_inline
    def __deinit__(deinit self):
        """Closes the file."""
        if self._fd >= 0:
            _ = external_call["close", Int32](self._fd)

    def write(self, text: String) raises:
        """Appends text.

        Raises:
            If the disk is full or fails.
        """
        var wanted = text.byte_length()
        # The file is open for appending, so the offset does not count; `write` clashes with the standard library's.
        if external_call["pwrite", Int](self._fd, Int(text.unsafe_ptr()), wanted, 0) != wanted:
            raise Error(t"{self.who}: cannot write {self.path}: {get_errno()}; make room on the disk")

    def flush(self) raises:
        """Brings what was written to the disk.

        Raises:
            If the disk is full or fails.
        """
        if external_call["fsync", Int32](self._fd) != 0:
            raise Error(t"{self.who}: cannot write {self.path}: {get_errno()}; make room on the disk")

    def lock(self) -> Bool:
        """Claims the file for this process until it ends; tells whether no other has claimed it."""
        return _lock(self._fd)

    def truncate(self, size: Int) raises:
        """Cuts the file off after `size` bytes.

        Raises:
            If the disk fails.
        """
        if external_call["ftruncate", Int32](self._fd, size) != 0:
            raise Error(t"{self.who}: cannot shorten {self.path}: {get_errno()}; check the disk")


struct HeldFolder(Movable):
    """A folder that is known again: one that is made anew under its name is another."""

    var path: String
    var _fd: Int32

    def __init__(out self, who: String, path: String) raises:
        """Opens a folder.

        Raises:
            If it cannot be read.
        """
        self.path = path
        self._fd = _open(path, _OPEN_READ)
        if self._fd < 0:
            raise Error(t"{who}: cannot open the folder {path}: {get_errno()}; check its permissions")

    def __init__(out self, *, deinit move: Self):
        """Takes over an open folder."""
        self.path = move.path^
        self._fd = move._fd

    @no_inline
    def __deinit__(deinit self):
        """Closes the folder."""
        if self._fd >= 0:
            _ = external_call["close", Int32](self._fd)

    def is_there(self) raises -> Bool:
        """Tells whether the name still leads to this folder.

        Raises:
            If the disk fails.
        """
        if not isdir(self.path):
            return False
        var now = HeldFolder("folder", self.path)
        var ours = FileIdentity(self._fd)
        var theirs = FileIdentity(now._fd)
        # A number keeps no file open.
        _ = now^
        return ours.device == theirs.device and ours.inode == theirs.inode


def lock_folder(who: String, path: String) raises -> AppendedFile:
    """Makes a folder if there is none, and claims it until what is returned is gone; `prepare` respects that, as we do.

    Raises:
        If another process is at work there, or the folder cannot be written to.
    """
    make_folder(who, path)
    var file = AppendedFile(who, path + "/.lock", keep=True)
    if not file.lock():
        raise Error(t"{who}: another process is at work in {path}; wait for it, or choose another folder")
    return file^


def allow_many_files():
    """Lets the process have as many files open as the system allows it, rather than the 1,024 that are common."""
    # A struct rlimit: what holds, and how far it may be raised.
    var limit = Array[Int, 2](fill=0)
    if external_call["getrlimit", Int32](_OPEN_FILES, limit.unsafe_ptr()) == 0:
        limit[0] = limit[1]
        _ = external_call["setrlimit", Int32](_OPEN_FILES, limit.unsafe_ptr())


def make_folder(who: String, path: String) raises:
    """Makes a folder and those above it, if they are not there; the empty path is the current folder.

    Raises:
        If that is not possible.
    """
    if path.byte_length() == 0 or isdir(path):
        return
    if exists(path):
        raise Error(t"{who}: {path}: expected a folder, found a file; choose another folder")
    try:
        makedirs(path, exist_ok=True)
    except:
        raise Error(t"{who}: cannot make the folder {path}; check the folder above it and its permissions")


def has_unfinished(path: String) raises -> Bool:
    """Tells whether a file is on its way to this name, or was when its process was killed.

    Raises:
        If its folder cannot be read.
    """
    return len(_temporary_names(path)) > 0


def beside(path: String, name: String) -> String:
    """Returns the path of another file in the folder of one."""
    var folder = String(dirname(path))
    return folder + "/" + name if folder.byte_length() > 0 else name


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
    file.read(0, Tensor[DType.uint8](Tensor[DType.uint8].Ptr(unsafe_from_address=Int(bytes.unsafe_ptr())), file.size))
    try:
        return String(from_utf8=Span(bytes))
    except:
        raise file.error("expected a text in UTF-8, found other bytes; give the right file")


def read_system_text(path: String) -> Optional[String]:
    """Reads a file of /proc or /sys, which has no size until it is read; none if it cannot be read, or is no text."""
    var fd = _open(path, _OPEN_READ)
    if fd < 0:
        return None
    var bytes = List[UInt8]()
    var count = 0
    while count == len(bytes):
        bytes.resize(2 * count + 4096, 0)
        var target = Tensor[DType.uint8](
            Tensor[DType.uint8].Ptr(unsafe_from_address=Int(bytes.unsafe_ptr())), len(bytes)
        )
        count = _read_at(fd, 0, target)
    _ = external_call["close", Int32](fd)
    try:
        return String(from_utf8=Span(bytes)[: max(count, 0)])
    except:
        return None


def _lock(fd: Int32) -> Bool:
    return external_call["flock", Int32](fd, _LOCK_EXCLUSIVE_AT_ONCE) == 0


def _random_digits() -> String:
    var number = Array[UInt32, 1](fill=0)
    _ = external_call["getrandom", Int](number.unsafe_ptr(), Int(size_of[UInt32]()), UInt32(0))
    return hex(Int(number[0]), prefix="").ascii_rjust(8, "0")


def _temporary_names(path: String) raises -> List[String]:
    """Lists the temporary files of a file."""
    var folder = String(dirname(path))
    var beginning = String(basename(path)) + "."
    var length = beginning.byte_length() + 8 + _TEMPORARY.byte_length()
    var names = List[String]()
    for name in listdir(folder if folder.byte_length() > 0 else String(".")):
        if name.byte_length() == length and name.startswith(beginning) and name.endswith(_TEMPORARY):
            names.append(beside(path, name))
    return names^


def _remove_leftovers(path: String):
    """Removes what processes that were killed have left under temporary names of a file."""
    try:
        for ref name in _temporary_names(path):
            var leftover = name
            var fd = _open(leftover, _OPEN_READ | _NO_FOLLOW)
            if fd >= 0:
                if _lock(fd):
                    _ = external_call["unlink", Int32](leftover.as_c_string_span().ptr())
                _ = external_call["close", Int32](fd)
    except:
        # A folder that cannot be read may still be written to.
        pass


def _string_at(address: Int) -> String:
    var length = external_call["strlen", Int](address)
    var bytes = Tensor[DType.uint8](Tensor[DType.uint8].Ptr(unsafe_from_address=address), length)
    return String(StringSlice(unsafe_from_utf8=bytes.span()))


def _open(path: String, flags: Int32) -> Int32:
    var name = path
    return external_call["openat", Int32](_AT_FDCWD, name.as_c_string_span().ptr(), flags, Int32(0o666))


def _read_at[dtype: DType](fd: Int32, offset: Int, target: Tensor[dtype]) -> Int:
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


def _sync_folder(path: String):
    """Flushes a folder's list of names; file systems that cannot do that are left as they are."""
    var fd = _open(path if path.byte_length() > 0 else String("."), _OPEN_READ)
    if fd >= 0:
        _ = external_call["fsync", Int32](fd)
        _ = external_call["close", Int32](fd)
