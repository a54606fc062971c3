"""A run that goes on from a checkpoint: rank 0 reads it and gives the others what is theirs, so they need no shared disk."""

from llm.base.memory import Tensor
from llm.optim.optimizer import Optimizer
from llm.train.run_folder import slots
from llm.train.run_state import parse_state
from llm.train.trainer import Trainer
from llm.model.tensors import ParameterTensors

comptime F32 = DType.float32


def hand_out_run[dtype: DType, O: Optimizer, //](mut run: Trainer[dtype, O]) raises:
    """Gives the other ranks the run that rank 0 has loaded.

    Raises:
        If MPI fails.
    """
    if run.replicas.ranks.size == 1:
        return
    _ = run.replicas.ranks.hand_out_text(String(t"{run.state.step} {run.replicas.batches}"))
    _ = run.replicas.ranks.hand_out_text(run.state.json())
    run.replicas.hand_out(run.model.params.tensors())
    run.replicas.deal(slots(run.optimizer))
    run.replicas.release_others(slots(run.optimizer))


def receive_run[dtype: DType, O: Optimizer, //](mut run: Trainer[dtype, O]) raises:
    """Takes the run that rank 0 has loaded.

    Raises:
        If MPI fails, or the data has changed.
    """
    var place = run.replicas.ranks.hand_out_text("").split(" ")
    run.state.step = Int(place[0])
    run.train_data.catch_up(Int(place[1]))
    for i in range(len(run.replicas.loaders)):
        run.replicas.loaders[i].catch_up(Int(place[1]))
    parse_state(run.replicas.ranks.hand_out_text(""), run.state)
    run.replicas.hand_out(run.model.params.tensors())

    def arrived(params: ParameterTensors[F32]) raises {imm}:
        pass

    # They are in place; only the model has to know.
    run.model.write_parameters(arrived)
    run.replicas.deal(slots(run.optimizer))
