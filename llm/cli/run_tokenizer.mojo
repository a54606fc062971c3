"""The vocabulary that a run owns: a copy in its folder, and its SHA-256 in run.toml and in every checkpoint's sidecar."""

from std.os.path import dirname, exists

from llm.base.files import InputFile, beside
from llm.base.memory import Tensor
from llm.base.sha256 import sha256_of_file
from llm.base.written_files import AtomicFile
from llm.cli.settings import RUN_SETTINGS, RUN_TOKENIZER, TOKENIZER_NOTE, read_note
from llm.train.run_folder import tokenizer_of_checkpoint


def trained_with(checkpoint: String) raises -> Optional[String]:
    """Returns the SHA-256 of the tokenizer file that a checkpoint was trained with, as its sidecar or its run's settings
    tell it; none if they do not.

    Raises:
        If one of them is damaged.
    """
    var own = tokenizer_of_checkpoint(checkpoint)
    return own if own else read_note(beside(checkpoint, RUN_SETTINGS), TOKENIZER_NOTE)


def own_tokenizer(checkpoint: String) raises -> Optional[String]:
    """Returns the tokenizer file in the folder of a checkpoint's run, if the run has kept one.

    Raises:
        If sidecar or settings are damaged.
    """
    var path = beside(checkpoint, RUN_TOKENIZER)
    return Optional(path) if trained_with(checkpoint) and exists(path) else Optional[String](None)


def expect_own_tokenizer(tokenizer: String, checkpoint: String) raises:
    """Raises if a checkpoint was trained with another tokenizer than this file: its ids would mean other texts."""
    var expected = trained_with(checkpoint)
    if not expected:
        return
    var found = sha256_of_file(tokenizer)
    if found != expected.value():
        raise Error(
            t"the tokenizer {tokenizer} (SHA-256 {found[byte=:12]}...) is not the one that {checkpoint} was trained"
            t" with ({expected.value()[byte=:12]}...): the same ids would mean other texts; give that one with"
            t" --tokenizer (a run keeps it as {RUN_TOKENIZER} in its folder)"
        )


struct RunTokenizer(Movable):
    """A tokenizer file as it was when the run began."""

    var path: String
    var sha256: String
    var _bytes: List[UInt8]

    def __init__(out self, path: String) raises:
        """Reads the file.

        Raises:
            If it cannot be read.
        """
        self.path = path
        self.sha256 = sha256_of_file(path)
        var file = InputFile("tokenizer", path)
        self._bytes = List[UInt8](length=file.size, fill=0)
        file.read(0, self._view())

    def keep(self, folder: String, *, is_ours: Bool) raises:
        """Writes a copy into the folder of a run, where `is_ours` tells that what is there is a run's.

        Raises:
            If another one is there that no run of ours has written, or the copy cannot be written.
        """
        var path = folder + "/" + RUN_TOKENIZER
        if exists(path) and sha256_of_file(path) == self.sha256:
            return
        if exists(path) and not is_ours:
            raise Error(
                t"{path} is there and is not the tokenizer of this run ({self.path}); choose another --out, or move it"
                t" away"
            )
        var copy = AtomicFile("tokenizer", path)
        copy.write(self._view())
        copy.commit()

    def _view(self) -> Tensor[DType.uint8]:
        """Views the bytes, as long as they are there."""
        return Tensor[DType.uint8](viewing=Span(self._bytes))
