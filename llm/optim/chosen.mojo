"""The optimizer that a run has chosen: AdamW for all tensors, or Muon for the matrices of the blocks and AdamW for the rest.

One type for both, chosen when it is made: the trainer is compiled once.
"""

from llm.base.memory import Tensor
from llm.cpu.adamw import AdamWSettings
from llm.cpu.threads.crew import Team
from llm.model.config import GPT2Config
from llm.model.tensors import ParameterSpec
from llm.optim.adamw import AdamW
from llm.optim.muon import Muon, takes_muon
from llm.optim.optimizer import Optimizer, StateSlot

comptime F32 = DType.float32


struct ChosenOptimizer(Optimizer):
    """AdamW, beside which Muon may update the matrices of the blocks."""

    comptime COMPUTES_NORM = True

    var adamw: AdamW
    """Its m is Muon's momentum for what Muon updates; v costs no memory there."""
    var muon: Optional[Muon]
    var muon_rate: Float32
    """Learning rate of Muon in units of AdamW's."""

    def __init__(out self, var adamw: AdamW):
        """Chooses AdamW."""
        self.adamw = adamw^
        self.muon = None
        self.muon_rate = 0

    def __init__(out self, var adamw: AdamW, var muon: Muon, *, muon_rate: Float32):
        """Chooses Muon, whose learning rate is so many times AdamW's."""
        self.adamw = adamw^
        self.muon = muon^
        self.muon_rate = muon_rate

    @no_inline
    def __deinit__(deinit self):
        """Frees what it owns. Not inlined, because every call that may raise is followed by a copy."""
        pass

    def name(self) -> String:
        return "muon" if self.muon else "adamw"

    def prepare(mut self, *, step: Int, learning_rate: Float32, grad_scale: Float32 = 1):
        self.adamw.prepare(step=step, learning_rate=learning_rate, grad_scale=grad_scale)

    def slots(self) -> List[StateSlot]:
        var slots = self.adamw.slots()
        if self.muon:
            for i, ref spec in enumerate(self.adamw.m.specs):
                if takes_muon(i, spec):
                    slots[1].tensors[i] = slots[1].tensors[i].slice(0, 0)
        return slots^

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
        if not (self.muon and takes_muon(tensor, spec)):
            self.adamw.update(team, tensor, spec, start, params, rounded, grads, block_sums, gemm_workspace)
            return
        self.muon.value().update(
            team,
            tensor,
            spec,
            params,
            rounded,
            grads,
            self.adamw.m[tensor],
            block_sums,
            gemm_workspace,
            self.adamw.settings.learning_rate * self.muon_rate,
            self.adamw.grad_scale,
        )
