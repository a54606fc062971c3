"""Memory for tensors in a build with `-D CHECKS`: an overrun meets a page that may not be touched.

Bounds of views say nothing of what kernels do through pointers. So each tensor gets a mapping of its own,

    note | filling | tensor | filling | page without access

in which the tensor ends within a cache line of that page. The filling before and behind it is a pattern that must still
be there when the tensor goes; the address sanitizer (a build with `-D SANITIZED` too) is told not to let it be touched
at all.
"""

from std.ffi import external_call
from std.sys import is_defined

from llm.base.checks import check_that

comptime SANITIZED = is_defined["SANITIZED"]()
"""With `mojo build --sanitize address -D CHECKS -D SANITIZED` fillings are poisoned: a read of one shows, too."""

comptime _SC_PAGESIZE = Int32(30)
comptime _PROT_NONE = Int32(0)
comptime _PROT_READ_WRITE = Int32(3)
comptime _MAP_PRIVATE_ANONYMOUS = Int32(0x22)
comptime _PATTERN = Int32(0xA5)
comptime _Note = Pointer[_Room, MutUntrackedOrigin]
comptime _Bytes = Pointer[UInt8, MutUntrackedOrigin]


@fieldwise_init
struct _Room(TrivialRegisterPassable):
    """What stands at the beginning of a mapping."""

    var before: Int
    """Address of the tensor made before this one, or 0."""
    var mapped: Int
    """Bytes of the mapping."""
    var tensor: Int
    """Address of the tensor."""
    var size: Int
    """Its bytes."""


def guarded_room(size: Int, bytes: Int, *, after: Int) -> Int:
    """Makes room for a tensor of `size` bytes that takes `bytes` in an arena, a multiple of a cache line.

    `after` is the address of the tensor made before it, or 0.

    Returns:
        Its address, zero-filled; -1 if the system has no room.
    """
    var page = Int(external_call["sysconf", Int](_SC_PAGESIZE))
    # Whatever the size, the note is in the page before the one that the tensor begins in, where it is found again.
    var mapped = page + (bytes + page - 1) // page * page + page
    var address = external_call["mmap", Int](
        Int(0), mapped, _PROT_READ_WRITE, _MAP_PRIVATE_ANONYMOUS, Int32(-1), Int(0)
    )
    if address == -1:
        return -1
    var end = address + mapped - page
    if external_call["mprotect", Int32](end, page, _PROT_NONE) != 0:
        return -1
    var room = _Room(after, mapped, end - bytes, size)
    _Note(unsafe_from_address=address)[] = room
    for filling in _fillings(address, room, page):
        _ = external_call["memset", Int](filling[0], _PATTERN, filling[1])
        comptime if SANITIZED:
            external_call["__asan_poison_memory_region", NoneType](filling[0], filling[1])
    return room.tensor


def release_rooms(last: Int):
    """Gives the rooms back, from the one made last to the first, and checks that nothing was written beside them."""
    var page = Int(external_call["sysconf", Int](_SC_PAGESIZE))
    var tensor = last
    while tensor != 0:
        var address = tensor // page * page - page
        var room = _Note(unsafe_from_address=address)[]
        for filling in _fillings(address, room, page):
            comptime if SANITIZED:
                external_call["__asan_unpoison_memory_region", NoneType](filling[0], filling[1])
            var bytes = _Bytes(unsafe_from_address=filling[0])
            for i in range(filling[1]):
                check_that(Int32(bytes[unsafe_offset=i]) == _PATTERN, "something was written beside a tensor")
        _ = external_call["munmap", Int32](address, room.mapped)
        tensor = room.before


def _fillings(address: Int, room: _Room, page: Int) -> List[Tuple[Int, Int]]:
    """Returns begin and bytes of what lies before and behind a tensor."""
    var end = address + room.mapped - page
    return [(address + page, room.tensor - address - page), (room.tensor + room.size, end - room.tensor - room.size)]
