"""llm.c's debug state: one batch with the referee's logits, loss and gradients."""

from llm.base.files import InputFile
from llm.base.memory import Arena, Tensor
from llm.formats.header import DEBUG_STATE_MAGIC, HEADER_BYTES, read_header

comptime F32 = DType.float32
comptime I32 = DType.int32
comptime DEBUG_STATE_VERSION = 2


struct DebugState(Movable):
    """The batch, the logits and the loss; gradients go where the reader wants them."""

    var B: Int
    var T: Int
    var x: Tensor[I32]
    """(B,T)."""
    var y: Tensor[I32]
    """(B,T): the targets."""
    var logits: Tensor[F32]
    """(B,T,V): without the vocabulary's padding."""
    var loss: Float32
    var _arena: Arena

    def __init__(out self, path: String, V: Int, grads: List[Tensor[F32]]) raises:
        """Reads the file, and fills `grads`, the tensors of a model in file order.

        Raises:
            If there is no such file, or it is not of a model of these sizes.
        """
        var file = InputFile("test_gpt2", path)
        var header = read_header(file, DEBUG_STATE_MAGIC, [DEBUG_STATE_VERSION])
        self.B = header[2]
        self.T = header[3]
        var rows = self.B * self.T
        var scalars = 2 * rows + rows * V + 1
        for tensor in grads:
            scalars += tensor.size
        file.expect_size(
            HEADER_BYTES + 4 * scalars, String(t"B={self.B}, T={self.T} and a model like the checkpoint's")
        )
        self._arena = Arena(4 * (2 * rows + rows * V) + 1024)
        self.x = self._arena.carve[I32](rows)
        self.y = self._arena.carve[I32](rows)
        self.logits = self._arena.carve[F32](rows * V)
        var loss = self._arena.carve[F32](1)

        var offset = HEADER_BYTES
        file.read(offset, self.x)
        file.read(offset + 4 * rows, self.y)
        offset += 8 * rows
        file.read(offset, self.logits)
        offset += 4 * rows * V
        file.read(offset, loss)
        self.loss = loss[0]
        offset += 4
        for tensor in grads:
            file.read(offset, tensor)
            offset += 4 * tensor.size
