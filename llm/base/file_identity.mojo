"""Which file it is, and in which state: what tells that a file is no longer the one that was checked."""

from std.ffi import external_call, get_errno

comptime _AT_EMPTY_PATH = Int32(0x1000)
comptime _BASIC_STATS = UInt32(0x7FF)
# A struct statx is the same on every processor: 256 bytes, of which we read these, by their place.
comptime _STATX_WORDS = 32
comptime _INODE = 4
comptime _SIZE = 5
comptime _CHANGED_SECONDS = 14
comptime _CHANGED_NANOSECONDS = 15
comptime _DEVICE = 17


@fieldwise_init
struct FileIdentity(Copyable, Equatable, Movable):
    """Device, inode, size and time of the last change of a file: two files, or two states of one, differ in them."""

    var device: Int
    var inode: Int
    var size: Int
    """Bytes."""
    var seconds: Int
    """When its bytes were last changed (mtime)."""
    var nanoseconds: Int

    def __init__(out self, fd: Int32) raises:
        """Asks for that of an open file.

        Raises:
            If the system does not tell.
        """
        var answer = Array[Int, _STATX_WORDS](fill=0)
        var nothing = String("")
        var status = external_call["statx", Int32](
            fd, nothing.as_c_string_span().ptr(), _AT_EMPTY_PATH, _BASIC_STATS, answer.unsafe_ptr()
        )
        if status != 0:
            raise Error(t"cannot ask for its size: {get_errno()}; check the disk")
        self.device = answer[_DEVICE]
        self.inode = answer[_INODE]
        self.size = answer[_SIZE]
        self.seconds = answer[_CHANGED_SECONDS]
        self.nanoseconds = answer[_CHANGED_NANOSECONDS] & 0xFFFFFFFF

    def difference(self, now: Self) -> String:
        """Says what has happened to a file that was this once; nothing if it still is."""
        if now.device != self.device or now.inode != self.inode:
            return "it has been replaced by another file"
        if now.size != self.size:
            var how = "shorter" if now.size < self.size else "longer"
            return String(t"it has become {how}: {now.size} bytes instead of {self.size}")
        if now != self:
            return "it has been written to"
        return ""
