"""AdamW (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019)."""

from std.math import isfinite

from llm.base.memory import Tensor
from llm.cpu.adamw import AdamWSettings, adamw_update
from llm.cpu.threads.crew import Team
from llm.model.config import GPT2Config
from llm.model.tensors import ParameterSpec, ParameterTensors
from llm.optim.optimizer import Optimizer, StateSlot

comptime F32 = DType.float32


struct AdamW(Optimizer):
    """Keeps m and v, the running means of each gradient and of its square."""

    comptime COMPUTES_NORM = True

    var settings: AdamWSettings
    """The learning rate is that of the last step."""
    var decay_all: Bool
    """Weight decay on every tensor, as llm.c's CPU program has it, not on matrices and embeddings alone."""
    var m: ParameterTensors[F32]
    var v: ParameterTensors[F32]
    var _step: Int
    var grad_scale: Float32
    """That of the last step."""

    def __init__(out self, config: GPT2Config, settings: AdamWSettings, *, decay_all: Bool = False) raises:
        """Starts with zeros, which cost memory once they are written.

        Raises:
            If a setting makes no sense, or the system has no room.
        """
        _check("beta1", settings.beta1, settings.beta1 >= 0 and settings.beta1 < 1, "from 0 to below 1")
        _check("beta2", settings.beta2, settings.beta2 >= 0 and settings.beta2 < 1, "from 0 to below 1")
        _check("eps", settings.eps, isfinite(settings.eps) and settings.eps > 0, "above 0")
        var decay = settings.weight_decay
        _check("weight_decay", decay, isfinite(decay) and decay >= 0, "of at least 0")
        self.settings = settings
        self.decay_all = decay_all
        self.m = ParameterTensors[F32](config, place=2)
        self.v = ParameterTensors[F32](config, place=3)
        self._step = 0
        self.grad_scale = 1

    @no_inline
    def __deinit__(deinit self):
        """Frees what it owns. Not inlined, because every call that may raise is followed by a copy."""
        pass

    def prepare(mut self, *, step: Int, learning_rate: Float32, grad_scale: Float32 = 1):
        self.settings.learning_rate = learning_rate
        self._step = step
        self.grad_scale = grad_scale

    def name(self) -> String:
        return "adamw"

    def slots(self) -> List[StateSlot]:
        return [StateSlot("m", self.m.tensors()), StateSlot("v", self.v.tensors())]

    def update[
        dtype: DType
    ](
        self,
        team: Team,
        tensor: Int,
        spec: ParameterSpec,
        start: Int,
        params: Tensor[F32],
        rounded: Tensor[dtype],
        grads: Tensor[F32],
        block_sums: Tensor[F32],
        gemm_workspace: Tensor[F32],
    ):
        var settings = self.settings
        if not (self.decay_all or spec.is_matrix()):
            settings.weight_decay = 0
        var m = self.m[tensor].slice(start, params.size)
        var v = self.v[tensor].slice(start, params.size)
        if spec.is_product:
            adamw_update(team, params, rounded, grads, m, v, block_sums, settings, self._step, self.grad_scale)
        else:
            adamw_update(team, params, params, grads, m, v, block_sums, settings, self._step, self.grad_scale)


def _check(name: StaticString, value: Float32, is_good: Bool, expected: StaticString) raises:
    if not is_good:
        raise Error(t"adamw: expected {name} {expected}, got {value}")
