"""What llm/files.mojo promises: a file is whole or not there, lines go to the end, patterns list files in order."""

from std.os.path import exists
from std.tempfile import mkdtemp
from std.testing import TestSuite, assert_equal, assert_false, assert_raises, assert_true

from llm.base.files import InputFile, MappedFile, glob_files
from llm.base.memory import Arena
from llm.base.written_files import AppendedFile, AtomicFile, make_folder
from llm.model.checkpoints import read_config, read_parameters, write_checkpoint
from llm.model.config import GPT2Config
from llm.model.tensors import WTE, ParameterTensors

comptime U8 = DType.uint8
comptime F32 = DType.float32


def write_text(path: String, text: String) raises:
    with open(path, "w") as file:
        file.write(text)


def read_text(path: String) raises -> String:
    with open(path, "r") as file:
        return file.read()


def test_an_uncommitted_file_leaves_nothing() raises:
    var path = mkdtemp() + "/file"
    write_text(path, "before")
    var arena = Arena(64)
    var bytes = arena.carve[U8](3)
    bytes.fill(65)
    with assert_raises(contains="stop"):
        var file = AtomicFile("test", path)
        file.write(bytes)
        raise Error("stop")
    assert_equal(read_text(path), "before")
    assert_false(exists(path + ".tmp"))
    _ = arena^


def test_a_committed_file_is_whole() raises:
    var path = mkdtemp() + "/new/folders/file"
    var arena = Arena(128)
    var bytes = arena.carve[U8](3)
    bytes.fill(65)
    var words = arena.carve[DType.uint16](1)
    words.fill(0x4342)
    var file = AtomicFile("test", path)
    file.write(bytes)
    file.write(words)
    assert_false(exists(path))
    file.commit()
    assert_equal(read_text(path), "AAABC")
    assert_false(exists(path + ".tmp"))
    _ = arena^


def test_reading_and_mapping() raises:
    var path = mkdtemp() + "/file"
    write_text(path, "abcdef")
    var file = InputFile("test", path)
    assert_equal(file.size, 6)
    var arena = Arena(64)
    var bytes = arena.carve[U8](4)
    file.read(2, bytes)
    assert_equal(String(StringSlice(unsafe_from_utf8=bytes.span())), "cdef")
    with assert_raises(contains="expected 4 bytes at 3, found 3; the file is cut off"):
        file.read(3, bytes)
    var mapped = MappedFile(file)
    assert_equal(mapped.view[U8](1, 2)[1], UInt8(ord("c")))
    assert_equal(mapped.view[DType.uint16](4, 1)[0], UInt16(0x6665))
    _ = mapped^
    write_text(path, "")
    with assert_raises(contains="the file is empty"):
        _ = MappedFile(InputFile("test", path))
    _ = arena^


def test_appending() raises:
    var path = mkdtemp() + "/log"
    write_text(path, "old\n")
    AppendedFile("test", path, keep=True).write("one\n")
    assert_equal(read_text(path), "old\none\n")
    var file = AppendedFile("test", path, keep=False)
    file.write("two\n")
    assert_equal(read_text(path), "two\n")
    file.write("three\n")
    assert_equal(read_text(path), "two\nthree\n")
    with assert_raises(contains="test: cannot write /dev/full: No space left on device"):
        AppendedFile("test", "/dev/full", keep=True).write("x")


def test_folders() raises:
    var folder = mkdtemp()
    make_folder("test", folder + "/a/b")
    make_folder("test", folder + "/a/b")
    make_folder("test", "")
    write_text(folder + "/file", "")
    with assert_raises(contains="/file: expected a folder, found a file"):
        make_folder("test", folder + "/file")


def test_patterns() raises:
    var folder = mkdtemp()
    for name in ["b_2", "b_10", "a", "[x]"]:
        write_text(folder + "/" + name, "")
    assert_equal(len(glob_files(folder + "/none*")), 0)
    assert_equal(len(glob_files(folder + "/none")), 0)
    assert_equal(", ".join(glob_files(folder + "/b_*")), folder + "/b_10, " + folder + "/b_2")
    assert_equal(len(glob_files(folder + "/*")), 4)
    assert_equal(glob_files(folder + "/[x]")[0], folder + "/[x]")


def test_a_checkpoint_of_another_model() raises:
    var path = mkdtemp() + "/model.bin"
    var config = GPT2Config(max_seq_len=5, vocab_size=7, num_layers=2, num_heads=2, channels=6)
    var params = ParameterTensors[F32](config)
    params[WTE].fill(1.5)
    write_checkpoint(path, config, params)
    assert_true(read_config(path) == config)
    config.num_layers = 3
    var larger = ParameterTensors[F32](config)
    with assert_raises(contains="expected ln1w of shape (3, 1, 6), found (2, 1, 6)"):
        read_parameters(path, larger)
    assert_equal(larger.layer(WTE, 0)[0], 0)
    _ = larger^


def main() raises:
    TestSuite.discover_tests[__functions_in_module()]().run()
