"""Encodes many texts with one vocabulary. Run by the Python tests.

    encode TOKENIZER TEXTS TOKENS ordinary|special

TEXTS holds, as 64-bit integers, the number of texts and where each begins and the last ends, then their bytes; TOKENS
gets the places and int32 tokens in the same way. Decoding the tokens must give the bytes back.
"""

from std.sys import argv, size_of

from llm.base.files import InputFile, MappedFile
from llm.base.memory import Tensor
from llm.base.written_files import AtomicFile
from llm.text.tokenizer import Tokenizer

comptime I32 = DType.int32
comptime I64 = DType.int64
comptime U8 = DType.uint8


def main() raises:
    var tokenizer = Tokenizer(String(argv()[1]))
    var file = MappedFile(InputFile("encode", String(argv()[2])))
    var count = Int(file.view[I64](0, 1)[0])
    var starts = file.view[I64](8, count + 1)
    var bytes = file.view[U8](8 * (count + 2), Int(starts[count]))
    var places: List[Int64] = [0]
    var tokens = List[Int32]()
    for i in range(count):
        var text = bytes.slice(Int(starts[i]), Int(starts[i + 1] - starts[i]))
        var encoded = tokenizer.encode(text.span(), allow_special=argv()[4] == "special")
        check_round_trip(tokenizer, text, encoded)
        tokens.extend(encoded^)
        places.append(Int64(len(tokens)))
    var output = AtomicFile("encode", String(argv()[3]))
    output.write(Tensor[I64](Tensor[I64].Ptr(unsafe_from_address=Int(places.unsafe_ptr())), len(places)))
    output.write(Tensor[I32](Tensor[I32].Ptr(unsafe_from_address=Int(tokens.unsafe_ptr())), len(tokens)))
    output.commit()
    _ = places^
    _ = tokens^
    # Views keep nothing alive.
    _ = file^


def check_round_trip(tokenizer: Tokenizer, text: Tensor[U8], tokens: List[Int32]) raises:
    var at = 0
    for token in tokens:
        for byte in tokenizer.decode(Int(token)):
            if at == text.size or text[at] != byte:
                raise Error(t"byte {at} of {text.size} does not come back")
            at += 1
    if at != text.size:
        raise Error(t"{at} of {text.size} bytes come back")
