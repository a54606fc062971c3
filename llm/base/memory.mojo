"""Host memory: `Tensor`, a view; `Arena`, the owner that views are carved from.

An arena is one private mapping, zero-filled by the system page by page when it is first touched, on huge pages where
the system grants them. Views do not keep their arena alive: they live inside the object that owns it.

A build with `-D CHECKS` checks every access through a view, and gives each tensor of an arena a mapping of its own that
ends at a page which may not be touched: see `llm/base/guarded.mojo`.
"""

from std.ffi import ErrNo, external_call, get_errno
from std.sys import size_of

from llm.base.address_space import address_limit
from llm.base.checks import CHECKS, check_bounds
from llm.base.guarded import guarded_room, release_rooms

comptime CACHE_LINE = 64
"""Every tensor of an arena starts on a multiple of this many bytes."""

comptime _PROT_READ_WRITE = Int32(3)
comptime _MAP_PRIVATE_ANONYMOUS = Int32(0x22)
comptime _MADV_HUGEPAGE = Int32(14)
comptime _MADV_DONTNEED = Int32(4)
comptime _PAGE = 4096
comptime _HUGE_PAGE = 2 * 1024 * 1024


struct Tensor[dtype: DType](TrivialRegisterPassable):
    """A view of `size` contiguous scalars in host memory. The caller knows the shape, as in llm.c."""

    comptime Ptr = Pointer[Scalar[Self.dtype], MutUntrackedOrigin]

    var ptr: Self.Ptr
    """The first scalar."""
    var size: Int
    """Number of scalars."""

    @always_inline
    def __init__(out self, ptr: Self.Ptr, size: Int):
        """Views `size` scalars from `ptr`."""
        self.ptr = ptr
        self.size = size

    def __init__(out self, *, viewing: Span[Scalar[Self.dtype], _]):
        """Views what is in a list or a text, as long as its owner keeps it where it is: a view keeps nothing alive."""
        self.ptr = Self.Ptr(unsafe_from_address=Int(viewing.unsafe_ptr()))
        self.size = len(viewing)

    @always_inline
    def __getitem__(self, i: Int) -> Scalar[Self.dtype]:
        """Reads element i."""
        check_bounds(i, 1, self.size)
        return self.ptr[unsafe_offset=i]

    @always_inline
    def __setitem__(self, i: Int, value: Scalar[Self.dtype]):
        """Writes element i."""
        check_bounds(i, 1, self.size)
        self.ptr[unsafe_offset=i] = value

    @always_inline
    def load[width: Int](self, i: Int) -> SIMD[Self.dtype, width]:
        """Reads elements i .. i + width - 1; no alignment is assumed."""
        check_bounds(i, width, self.size)
        return self.ptr.unsafe_offset(i).unsafe_load[width=width]()

    @always_inline
    def store[width: SIMDLength, //](self, i: Int, value: SIMD[Self.dtype, width]):
        """Writes elements i .. i + width - 1; no alignment is assumed."""
        check_bounds(i, Int(width), self.size)
        self.ptr.unsafe_offset(i).unsafe_store(value)

    @always_inline
    def slice(self, start: Int, size: Int) -> Self:
        """Views elements start .. start + size - 1."""
        check_bounds(start, size, self.size)
        return Self(self.ptr.unsafe_offset(start), size)

    def span(self) -> Span[Scalar[Self.dtype], MutUntrackedOrigin]:
        """Views the same scalars as a standard span."""
        return Span(unsafe_ptr=self.ptr, length=self.size)

    def fill(self, value: Scalar[Self.dtype]):
        """Sets every element."""
        for i in range(self.size):
            self[i] = value

    def release(self):
        """Returns the pages that lie wholly in it to the system; their elements are zero afterwards."""
        var begin = (Int(self.ptr) + _PAGE - 1) // _PAGE * _PAGE
        var end = (Int(self.ptr) + self.size * size_of[Scalar[Self.dtype]]()) // _PAGE * _PAGE
        if begin < end:
            _ = external_call["madvise", Int32](begin, end - begin, _MADV_DONTNEED)


struct Arena(Movable):
    """Owner of one block of zero-filled, 64-byte aligned host memory, carved from front to back.

    The block is reserved at its full size and costs physical memory only where it is written.

    `Arena.counting()` has no memory: what is carved from it are views of nothing, and `used` says how large an arena the
    same calls need. So one function plans a set of tensors, to count them or to carve them.
    """

    var _address: Int
    """Of the block; with CHECKS of the tensor carved last, or 0."""
    var num_bytes: Int
    """Size of the block; 0 if this only counts."""
    var used: Int
    """Bytes handed out so far."""

    def __init__(out self, num_bytes: Int) raises:
        """Reserves `num_bytes` bytes.

        Raises:
            If the system has no room.
        """
        self.num_bytes = max(num_bytes, CACHE_LINE)
        self.used = 0
        comptime if CHECKS:
            self._address = 0
            return
        self._address = external_call["mmap", Int](
            Int(0), self.num_bytes, _PROT_READ_WRITE, _MAP_PRIVATE_ANONYMOUS, Int32(-1), Int(0)
        )
        if self._address == -1:
            # Before the arena is taken down, which asks the system for something else.
            var reason = get_errno()
            self._address = 0
            raise _no_room(num_bytes, reason)
        if self.num_bytes >= _HUGE_PAGE:
            _ = external_call["madvise", Int32](self._address, self.num_bytes, _MADV_HUGEPAGE)

    def __init__(out self, *, _counting: Bool):
        self._address = 0
        self.num_bytes = 0
        self.used = 0

    @staticmethod
    def counting() -> Self:
        """Makes an arena without memory, which counts what is carved from it."""
        return Self(_counting=True)

    def __init__(out self, *, deinit move: Self):
        """Takes over the block of another arena."""
        self._address = move._address
        self.num_bytes = move.num_bytes
        self.used = move.used

    @no_inline
    def __deinit__(deinit self):
        """Returns the block to the system."""
        comptime if CHECKS:
            release_rooms(self._address)
            return
        if self._address != 0:
            _ = external_call["munmap", Int32](self._address, self.num_bytes)

    def carve[dtype: DType](mut self, size: Int) raises -> Tensor[dtype]:
        """Hands out the next `size` scalars, starting on a cache line.

        Raises:
            If the arena was planned too small: a mistake of the program, not of its user.
        """
        var bytes = aligned_bytes[dtype](size)
        if self.num_bytes == 0:
            self.used += bytes
            return Tensor[dtype](Tensor[dtype].Ptr(unsafe_from_address=CACHE_LINE), size)
        if self.used + bytes > self.num_bytes:
            raise Error(t"memory: arena of {self.num_bytes} bytes is full, {bytes} more wanted")
        var address = self._address + self.used
        self.used += bytes
        comptime if CHECKS:
            address = guarded_room(size * size_of[Scalar[dtype]](), bytes, after=self._address)
            if address == -1:
                raise _no_room(bytes, get_errno())
            self._address = address
        return Tensor[dtype](Tensor[dtype].Ptr(unsafe_from_address=address), size)


def _no_room(bytes: Int, reason: ErrNo) -> Error:
    var limit = address_limit()
    var advice = String("use a smaller model, batch or context")
    if limit < Int.MAX:
        advice = String(t"this process may have {limit} bytes of addresses: ulimit -v unlimited before, or {advice}")
    return Error(t"memory: cannot reserve {bytes} bytes: {reason}; {advice}")


def aligned_bytes[dtype: DType](size: Int) -> Int:
    """Returns the bytes that `size` scalars take in an arena."""
    return (size * size_of[Scalar[dtype]]() + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE
