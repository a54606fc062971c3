"""What an optimizer is: the state that it keeps for each parameter, and how it changes a tensor."""

from llm.base.memory import Tensor
from llm.model.gpt2 import TensorUpdate

comptime F32 = DType.float32


@fieldwise_init
struct StateSlot(Copyable, Movable):
    """One of the numbers that an optimizer keeps for each parameter."""

    var name: String
    var tensors: List[Tensor[F32]]
    """Views, by number of the parameter tensor."""


trait Optimizer(Deinitable, Movable, TensorUpdate):
    """A rule that turns gradients into new parameters. `GPT2.update` has it change tensor by tensor."""

    def name(self) -> String:
        """Returns its name as `--optimizer` and checkpoints spell it."""
        ...

    def prepare(mut self, *, step: Int, learning_rate: Float32, grad_scale: Float32):
        """Sets what the next update takes: its number, from 1, its rate, and a factor for the gradients."""
        ...

    def slots(self) -> List[StateSlot]:
        """Views the state, which checkpoints keep, in the order of their files."""
        ...
