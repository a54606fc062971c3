"""Host memory: `Tensor`, a view; `Arena`, the owner that views are carved from.

An arena is one private mapping, zero-filled by the system page by page when it is first touched, on huge pages where
the system grants them. Views do not keep their arena alive: they live inside the object that owns it.
"""

from std.ffi import external_call, get_errno
from std.sys import size_of

comptime CACHE_LINE = 64
"""Every tensor of an arena starts on a multiple of this many bytes."""

comptime _PROT_READ_WRITE = Int32(3)
comptime _MAP_PRIVATE_ANONYMOUS = Int32(0x22)
comptime _MADV_HUGEPAGE = Int32(14)
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

    @always_inline
    def __getitem__(self, i: Int) -> Scalar[Self.dtype]:
        """Reads element i, unchecked."""
        return self.ptr[unsafe_offset=i]

    @always_inline
    def __setitem__(self, i: Int, value: Scalar[Self.dtype]):
        """Writes element i, unchecked."""
        self.ptr[unsafe_offset=i] = value

    @always_inline
    def load[width: Int](self, i: Int) -> SIMD[Self.dtype, width]:
        """Reads elements i .. i + width - 1; no alignment is assumed."""
        return self.ptr.unsafe_offset(i).unsafe_load[width=width]()

    @always_inline
    def store[width: SIMDLength, //](self, i: Int, value: SIMD[Self.dtype, width]):
        """Writes elements i .. i + width - 1; no alignment is assumed."""
        self.ptr.unsafe_offset(i).unsafe_store(value)

    @always_inline
    def slice(self, start: Int, size: Int) -> Self:
        """Views elements start .. start + size - 1."""
        return Self(self.ptr.unsafe_offset(start), size)

    def span(self) -> Span[Scalar[Self.dtype], MutUntrackedOrigin]:
        """Views the same scalars as a standard span."""
        return Span(unsafe_ptr=self.ptr, length=self.size)

    def fill(self, value: Scalar[Self.dtype]):
        """Sets every element."""
        for i in range(self.size):
            self[i] = value


struct Arena(Movable):
    """Owner of one block of zero-filled, 64-byte aligned host memory, carved from front to back.

    The block is reserved at its full size and costs physical memory only where it is written.

    `Arena.counting()` has no memory: what is carved from it are views of nothing, and `used` says how large an arena the
    same calls need. So one function plans a set of tensors, to count them or to carve them.
    """

    var _address: Int
    """0 if this only counts."""
    var num_bytes: Int
    """Size of the block."""
    var used: Int
    """Bytes handed out so far."""

    def __init__(out self, num_bytes: Int) raises:
        """Reserves `num_bytes` bytes.

        Raises:
            If the system has no room.
        """
        self.num_bytes = max(num_bytes, CACHE_LINE)
        self.used = 0
        self._address = external_call["mmap", Int](
            Int(0), self.num_bytes, _PROT_READ_WRITE, _MAP_PRIVATE_ANONYMOUS, Int32(-1), Int(0)
        )
        if self._address == -1:
            raise Error(
                t"memory: cannot reserve {num_bytes} bytes: {get_errno()}; use a smaller model, batch or context"
            )
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
        if self._address != 0:
            _ = external_call["munmap", Int32](self._address, self.num_bytes)

    def carve[dtype: DType](mut self, size: Int) raises -> Tensor[dtype]:
        """Hands out the next `size` scalars, starting on a cache line.

        Raises:
            If the arena was planned too small: a mistake of the program, not of its user.
        """
        var bytes = aligned_bytes[dtype](size)
        if self._address == 0:
            self.used += bytes
            return Tensor[dtype](Tensor[dtype].Ptr(unsafe_from_address=CACHE_LINE), size)
        if self.used + bytes > self.num_bytes:
            raise Error(t"memory: arena of {self.num_bytes} bytes is full, {bytes} more wanted")
        var view = Tensor[dtype](Tensor[dtype].Ptr(unsafe_from_address=self._address + self.used), size)
        self.used += bytes
        return view


def aligned_bytes[dtype: DType](size: Int) -> Int:
    """Returns the bytes that `size` scalars take in an arena."""
    return (size * size_of[Scalar[dtype]]() + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE
