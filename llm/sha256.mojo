"""SHA-256 (FIPS 180-4), to tell whether a file is the one that a manifest speaks of."""

from llm.files import InputFile
from llm.memory import Tensor

comptime U8 = DType.uint8
comptime _BLOCK = 64
# fmt: off
comptime _ROUNDS: List[UInt32] = [
    0x428A2F98, 0x71374491, 0xB5C0FBCF, 0xE9B5DBA5, 0x3956C25B, 0x59F111F1, 0x923F82A4, 0xAB1C5ED5,
    0xD807AA98, 0x12835B01, 0x243185BE, 0x550C7DC3, 0x72BE5D74, 0x80DEB1FE, 0x9BDC06A7, 0xC19BF174,
    0xE49B69C1, 0xEFBE4786, 0x0FC19DC6, 0x240CA1CC, 0x2DE92C6F, 0x4A7484AA, 0x5CB0A9DC, 0x76F988DA,
    0x983E5152, 0xA831C66D, 0xB00327C8, 0xBF597FC7, 0xC6E00BF3, 0xD5A79147, 0x06CA6351, 0x14292967,
    0x27B70A85, 0x2E1B2138, 0x4D2C6DFC, 0x53380D13, 0x650A7354, 0x766A0ABB, 0x81C2C92E, 0x92722C85,
    0xA2BFE8A1, 0xA81A664B, 0xC24B8B70, 0xC76C51A3, 0xD192E819, 0xD6990624, 0xF40E3585, 0x106AA070,
    0x19A4C116, 0x1E376C08, 0x2748774C, 0x34B0BCB5, 0x391C0CB3, 0x4ED8AA4A, 0x5B9CCA4F, 0x682E6FF3,
    0x748F82EE, 0x78A5636F, 0x84C87814, 0x8CC70208, 0x90BEFFFA, 0xA4506CEB, 0xBEF9A3F7, 0xC67178F2,
]
# fmt: on


def sha256_of_file(path: String) raises -> String:
    """Returns the SHA-256 of a file in hexadecimal.

    Raises:
        If it cannot be read.
    """
    var file = InputFile("sha256", path)
    var bytes = List[UInt8](length=file.size, fill=0)
    file.read(0, Tensor[U8](Tensor[U8].Ptr(unsafe_from_address=Int(bytes.unsafe_ptr())), file.size))
    return sha256(bytes^)


def sha256(var bytes: List[UInt8]) -> String:
    """Returns the SHA-256 of bytes in hexadecimal."""
    var bits = UInt64(len(bytes)) * 8
    bytes.append(0x80)
    while len(bytes) % _BLOCK != _BLOCK - 8:
        bytes.append(0)
    for i in range(8):
        bytes.append(((bits >> UInt64(56 - 8 * i)) & 0xFF).cast[U8]())
    var rounds = materialize[_ROUNDS]()
    var state: List[UInt32] = [
        0x6A09E667,
        0xBB67AE85,
        0x3C6EF372,
        0xA54FF53A,
        0x510E527F,
        0x9B05688C,
        0x1F83D9AB,
        0x5BE0CD19,
    ]
    var w = List[UInt32](length=64, fill=0)
    for start in range(0, len(bytes), _BLOCK):
        for i in range(16):
            w[i] = 0
            for j in range(4):
                w[i] = w[i] << 8 | bytes[start + 4 * i + j].cast[DType.uint32]()
        for i in range(16, 64):
            var s0 = _rotated(w[i - 15], 7) ^ _rotated(w[i - 15], 18) ^ (w[i - 15] >> 3)
            var s1 = _rotated(w[i - 2], 17) ^ _rotated(w[i - 2], 19) ^ (w[i - 2] >> 10)
            w[i] = w[i - 16] + s0 + w[i - 7] + s1
        var a, b, c, d = state[0], state[1], state[2], state[3]
        var e, f, g, h = state[4], state[5], state[6], state[7]
        for i in range(64):
            var s1 = _rotated(e, 6) ^ _rotated(e, 11) ^ _rotated(e, 25)
            var t1 = h + s1 + ((e & f) ^ (~e & g)) + rounds[i] + w[i]
            var s0 = _rotated(a, 2) ^ _rotated(a, 13) ^ _rotated(a, 22)
            var t2 = s0 + ((a & b) ^ (a & c) ^ (b & c))
            h, g, f, e = g, f, e, d + t1
            d, c, b, a = c, b, a, t1 + t2
        var sums: List[UInt32] = [a, b, c, d, e, f, g, h]
        for i in range(8):
            state[i] += sums[i]
    var digits = String("0123456789abcdef")
    var text = String()
    for i in range(64):
        text += digits[byte=Int((state[i // 8] >> UInt32(28 - 4 * (i % 8))) & 0xF)]
    return text^


def _rotated(x: UInt32, count: UInt32) -> UInt32:
    return x >> count | x << (32 - count)
