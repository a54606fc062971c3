"""SHA-256 (FIPS 180-4), to tell whether a file is the one that a manifest speaks of."""

from std.bit import byte_swap
from std.sys import CompilationTarget
from std.sys.intrinsics import llvm_intrinsic

from llm.base.files import InputFile, Readable
from llm.base.memory import Tensor
from llm.base.written_files import AtomicFile

comptime U8 = DType.uint8
comptime Lanes = SIMD[DType.uint32, 4]
comptime _BLOCK = 64
comptime _PIECE_BYTES = 1 << 20
comptime _END_BYTES = 1 << 18
# fmt: off
comptime _ROUNDS = SIMD[DType.uint32, 64](
    0x428A2F98, 0x71374491, 0xB5C0FBCF, 0xE9B5DBA5, 0x3956C25B, 0x59F111F1, 0x923F82A4, 0xAB1C5ED5,
    0xD807AA98, 0x12835B01, 0x243185BE, 0x550C7DC3, 0x72BE5D74, 0x80DEB1FE, 0x9BDC06A7, 0xC19BF174,
    0xE49B69C1, 0xEFBE4786, 0x0FC19DC6, 0x240CA1CC, 0x2DE92C6F, 0x4A7484AA, 0x5CB0A9DC, 0x76F988DA,
    0x983E5152, 0xA831C66D, 0xB00327C8, 0xBF597FC7, 0xC6E00BF3, 0xD5A79147, 0x06CA6351, 0x14292967,
    0x27B70A85, 0x2E1B2138, 0x4D2C6DFC, 0x53380D13, 0x650A7354, 0x766A0ABB, 0x81C2C92E, 0x92722C85,
    0xA2BFE8A1, 0xA81A664B, 0xC24B8B70, 0xC76C51A3, 0xD192E819, 0xD6990624, 0xF40E3585, 0x106AA070,
    0x19A4C116, 0x1E376C08, 0x2748774C, 0x34B0BCB5, 0x391C0CB3, 0x4ED8AA4A, 0x5B9CCA4F, 0x682E6FF3,
    0x748F82EE, 0x78A5636F, 0x84C87814, 0x8CC70208, 0x90BEFFFA, 0xA4506CEB, 0xBEF9A3F7, 0xC67178F2,
)
# fmt: on


def sha256_of_file(path: String) raises -> String:
    """Returns the SHA-256 of a file in hexadecimal.

    Raises:
        If it cannot be read.
    """
    var file = InputFile("sha256", path)
    return _sha256_of(file, file.size)


def sha256_of_text(text: String) -> String:
    """Returns the SHA-256 of a text in hexadecimal."""
    var sha256 = Sha256()
    sha256.update(Tensor[U8](viewing=text.as_bytes()))
    _ = text
    return sha256.hexadecimal()


def sha256_of_ends(path: String) raises -> String:
    """Returns the SHA-256 of a file's size and of its first and last bytes, in hexadecimal: of large files.

    Raises:
        If it cannot be read.
    """
    var file = InputFile("sha256", path)
    var sha256 = Sha256()
    var size = min(file.size, _END_BYTES)
    var buffer = List[UInt8](length=size, fill=0)
    var bytes = Tensor[U8](viewing=Span(buffer))
    file.read(0, bytes)
    sha256.update(bytes)
    file.read(file.size - size, bytes)
    sha256.update(bytes)
    _ = buffer^
    return sha256_of_text(String(t"{file.size} {sha256.hexadecimal()}"))


def sha256_of_written(file: AtomicFile) raises -> String:
    """Returns the SHA-256 of what has been written to a file so far, in hexadecimal.

    Raises:
        If it cannot be read back.
    """
    return _sha256_of(file, file.size)


def _sha256_of[File: Readable](file: File, size: Int) raises -> String:
    var sha256 = Sha256()
    var buffer = List[UInt8](length=min(size, _PIECE_BYTES), fill=0)
    var bytes = Tensor[U8](viewing=Span(buffer))
    for start in range(0, size, _PIECE_BYTES):
        var piece = bytes.slice(0, min(_PIECE_BYTES, size - start))
        file.read(start, piece)
        sha256.update(piece)
    _ = buffer^
    return sha256.hexadecimal()


struct Sha256(Movable):
    """The hash of bytes that come in pieces."""

    var _state: Array[UInt32, 8]
    var _size: Int
    var _rest: List[UInt8]
    """The last `_size` % 64 bytes."""

    def __init__(out self):
        """Starts with no bytes."""
        self._state = [
            0x6A09E667,
            0xBB67AE85,
            0x3C6EF372,
            0xA54FF53A,
            0x510E527F,
            0x9B05688C,
            0x1F83D9AB,
            0x5BE0CD19,
        ]
        self._size = 0
        self._rest = List[UInt8](length=_BLOCK, fill=0)

    def update(mut self, bytes: Tensor[U8]):
        """Takes more bytes."""
        var at = 0
        while at < bytes.size:
            var filled = self._size % _BLOCK
            if filled == 0 and bytes.size - at >= _BLOCK:
                self._mix(bytes.slice(at, _BLOCK))
                at += _BLOCK
                self._size += _BLOCK
                continue
            self._rest[filled] = bytes[at]
            at += 1
            self._size += 1
            if filled == _BLOCK - 1:
                self._mix(self._pending())

    def hexadecimal(mut self) -> String:
        """Ends the bytes and returns their hash."""
        var bits = UInt64(self._size) * 8
        var padding = List[UInt8](length=2 * _BLOCK, fill=0)
        padding[0] = 0x80
        # A one, zeros, and in the last eight bytes of a block the number of bits.
        var length = _BLOCK - self._size % _BLOCK
        if length < 9:
            length += _BLOCK
        for i in range(8):
            padding[length - 1 - i] = (bits >> UInt64(8 * i) & 0xFF).cast[U8]()
        self.update(Tensor[U8](viewing=Span(padding)).slice(0, length))
        _ = padding^
        var digits = String("0123456789abcdef")
        var text = String()
        for i in range(64):
            text += digits[byte=Int((self._state[i // 8] >> UInt32(28 - 4 * (i % 8))) & 0xF)]
        return text^

    def _pending(mut self) -> Tensor[U8]:
        return Tensor[U8](viewing=Span(self._rest)).slice(0, _BLOCK)

    def _mix(mut self, block: Tensor[U8]):
        """Takes a whole block."""
        comptime if CompilationTarget.is_x86() and CompilationTarget._has_feature["sha"]():
            self._mix_by_hardware(block)
        else:
            self._mix_by_arithmetic(block)

    def _mix_by_hardware(mut self, block: Tensor[U8]):
        """The processor's instructions do two rounds at a time, on the state as two vectors: f, e, b, a and h, g, d, c.
        """
        ref s = self._state
        var feba = Lanes(s[5], s[4], s[1], s[0])
        var hgdc = Lanes(s[7], s[6], s[3], s[2])
        var w = Array[Lanes, 16](fill=Lanes(0))
        comptime for i in range(16):
            comptime if i < 4:
                w[i] = byte_swap(
                    block.ptr.unsafe_offset(16 * i).unsafe_bitcast[UInt32]().unsafe_load[width=4, alignment=1]()
                )
            else:
                var sums = llvm_intrinsic["llvm.x86.sha256msg1", Lanes](w[i - 4], w[i - 3])
                sums += w[i - 2].join(w[i - 1]).slice[4, offset=1]()
                w[i] = llvm_intrinsic["llvm.x86.sha256msg2", Lanes](sums, w[i - 1])
            var added = w[i] + _ROUNDS.slice[4, offset=4 * i]()
            hgdc = llvm_intrinsic["llvm.x86.sha256rnds2", Lanes](hgdc, feba, added)
            feba = llvm_intrinsic["llvm.x86.sha256rnds2", Lanes](feba, hgdc, added.rotate_left[2]())
        s[0] += feba[3]
        s[1] += feba[2]
        s[2] += hgdc[3]
        s[3] += hgdc[2]
        s[4] += feba[1]
        s[5] += feba[0]
        s[6] += hgdc[1]
        s[7] += hgdc[0]

    def _mix_by_arithmetic(mut self, block: Tensor[U8]):
        """The rounds as the standard writes them."""
        var w = Array[UInt32, 64](fill=0)
        comptime for i in range(16):
            w[i] = byte_swap(block.ptr.unsafe_offset(4 * i).unsafe_bitcast[UInt32]().unsafe_load[alignment=1]())
        comptime for i in range(16, 64):
            var s0 = _rotated[7](w[i - 15]) ^ _rotated[18](w[i - 15]) ^ (w[i - 15] >> 3)
            var s1 = _rotated[17](w[i - 2]) ^ _rotated[19](w[i - 2]) ^ (w[i - 2] >> 10)
            w[i] = w[i - 16] + s0 + w[i - 7] + s1
        var a, b, c, d = self._state[0], self._state[1], self._state[2], self._state[3]
        var e, f, g, h = self._state[4], self._state[5], self._state[6], self._state[7]
        comptime for i in range(64):
            var s1 = _rotated[6](e) ^ _rotated[11](e) ^ _rotated[25](e)
            var t1 = h + s1 + ((e & f) ^ (~e & g)) + _ROUNDS[i] + w[i]
            var s0 = _rotated[2](a) ^ _rotated[13](a) ^ _rotated[22](a)
            var t2 = s0 + ((a & b) ^ (a & c) ^ (b & c))
            h, g, f, e = g, f, e, d + t1
            d, c, b, a = c, b, a, t1 + t2
        self._state[0] += a
        self._state[1] += b
        self._state[2] += c
        self._state[3] += d
        self._state[4] += e
        self._state[5] += f
        self._state[6] += g
        self._state[7] += h


@always_inline
def _rotated[count: UInt32](x: UInt32) -> UInt32:
    return x >> count | x << (32 - count)
