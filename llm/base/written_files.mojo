"""Files that are written: whole or not there, by one writer at a time, never through a symbolic link."""

from std.ffi import ErrNo, external_call, get_errno
from std.os import listdir, makedirs
from std.os.path import basename, dirname, exists, isdir, isfile
from std.sys import CompilationTarget, size_of

from llm.base.file_identity import FileIdentity
from llm.base.files import CLOSE_ON_EXEC, OPEN_READ, Readable, beside, open_at, read_at, read_text
from llm.base.memory import Tensor

comptime _OPEN_NEW = Int32(0o302) | CLOSE_ON_EXEC
# Through a symbolic link we would write to a file that is not ours. (The number is another on ARM.)
comptime _NO_FOLLOW = Int32(0o400000) if CompilationTarget.is_x86() else Int32(0o100000)
comptime _OPEN_APPEND = Int32(0o2101) | _NO_FOLLOW | CLOSE_ON_EXEC
comptime _TRUNCATE = Int32(0o1000)
comptime _LOCK_EXCLUSIVE_AT_ONCE = Int32(6)
comptime _LARGEST_COPY = 1 << 32
comptime _TEMPORARY = ".llm-mojo.tmp"


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
            If the name is a folder's or a device's, or the file cannot be made there.
        """
        self.who = who
        self.path = path
        self._temporary = String()
        self._fd = -1
        self.size = 0
        if isdir(path):
            raise Error(t"{who}: {path}: expected the name of a file, found a folder; name a file in it")
        if exists(path) and not isfile(path):
            # Renaming a file over a device would replace it.
            raise Error(t"{who}: {path}: expected an ordinary file, found a device or a pipe; name a file on a disk")
        make_folder(who, dirname(path))
        _remove_leftovers(path)
        while self._fd < 0:
            self._temporary = String(t"{path}.{_random_digits()}{_TEMPORARY}")
            self._fd = open_at(self._temporary, _OPEN_NEW)
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
        if read_at(self._fd, offset, target) < target.size * size_of[Scalar[dtype]]():
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
        self._fd = open_at(path, _OPEN_APPEND if keep else _OPEN_APPEND | _TRUNCATE)
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

    def copy_to(self, path: String) raises:
        """Writes what the file holds to another, also if it has no name any more.

        Raises:
            If it cannot be read, or the other not be written.
        """
        var copy = AtomicFile(self.who, path)
        copy.write(read_text(self.who, String(t"/proc/self/fd/{self._fd}"), _LARGEST_COPY))
        copy.commit()


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
        self._fd = open_at(path, OPEN_READ)
        if self._fd < 0:
            raise Error(t"{who}: cannot open the folder {path}: {get_errno()}; check its permissions")

    def __init__(out self, path: String, fd: Int32):
        """Takes over a descriptor of a folder."""
        self.path = path
        self._fd = fd

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
        # Opened without a look before: between the two it may go.
        var fd = open_at(self.path, OPEN_READ)
        if fd < 0:
            if get_errno() == ErrNo.ENOENT or get_errno() == ErrNo.ENOTDIR:
                return False
            raise Error(t"folder: cannot open {self.path}: {get_errno()}; check its permissions")
        var now = HeldFolder(self.path, fd)
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
            var fd = open_at(leftover, OPEN_READ | _NO_FOLLOW)
            if fd >= 0:
                if _lock(fd):
                    _ = external_call["unlink", Int32](leftover.as_c_string_span().ptr())
                _ = external_call["close", Int32](fd)
    except:
        # A folder that cannot be read may still be written to.
        pass


def _sync_folder(path: String):
    """Flushes a folder's list of names; file systems that cannot do that are left as they are."""
    var fd = open_at(path if path.byte_length() > 0 else String("."), OPEN_READ)
    if fd >= 0:
        _ = external_call["fsync", Int32](fd)
        _ = external_call["close", Int32](fd)
