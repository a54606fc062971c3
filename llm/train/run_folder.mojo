"""The folder of a run: checkpoints that are complete or do not count.

A checkpoint is `model_STEP.bin`, `state_STEP_00000.bin` and `extra_STEP.json`, and counts when `DONE_STEP` is there. Of ranks
that share a disk each may write its part of the state, `state_STEP_RANK.bin`.
"""

from std.os import listdir, remove
from std.os.path import basename, dirname, exists, getsize, isdir

from llm.base.memory import Tensor
from llm.base.numbers import parse_integer
from llm.base.strings import part
from llm.base.written_files import AtomicFile
from llm.formats.training_state import RANDOM_WINDOWS, DataPosition, count_parts, read_state, state_file
from llm.model.checkpoints import checkpoint_file, read_config, read_parameters
from llm.model.config import GPT2Config
from llm.model.tensors import ParameterTensors
from llm.optim.optimizer import Optimizer
from llm.train.replicas import SAVE
from llm.train.run_state import RunState, read_sidecar, sidecar_file, sidecar_tokenizer
from llm.train.shares import share_of
from llm.train.trainer import Trainer

comptime F32 = DType.float32
comptime _DIGITS = 8
comptime _RANK_DIGITS = 5


def checkpoint_model(folder: String, step: Int) -> String:
    """Returns the name of a checkpoint's model."""
    return _name(folder, "model_", step, ".bin")


def complete_checkpoints(folder: String) raises -> List[Int]:
    """Lists the steps of the complete checkpoints, oldest first; none if there is no such folder.

    Raises:
        If the folder cannot be read.
    """
    var steps = List[Int]()
    if not isdir(folder):
        return steps^
    for name in _names(folder):
        if name.startswith("DONE_") and name.byte_length() == 5 + _DIGITS:
            try:
                steps.append(Int(name.removeprefix("DONE_")))
            except:
                pass
    sort(steps)
    return steps^


def save_checkpoint[
    dtype: DType, O: Optimizer, //
](
    folder: String,
    mut run: Trainer[dtype, O],
    keep: Int = 0,
    in_bfloat16: Bool = False,
    *,
    makes_folder: Bool = False,
) raises:
    """Writes a checkpoint and then removes the oldest, so that `keep` stay (0: all).

    With `in_bfloat16` the model's file is rounded, and the state holds the parameters in float32 as well.

    All files are on the disk in full before the first gets its name, and `DONE_` comes last: whenever the run is
    killed, the newest complete checkpoint is a good one.

    Raises:
        If the disk is full or fails, or the folder is gone; the checkpoints from before are unchanged.
    """
    if not isdir(folder) and not makes_folder:
        raise Error(t"save: the folder {folder} is gone; nothing was saved: make it again and resume from a copy")
    run.state.data = run.train_data.position()
    ref state = run.state
    ref model = run.model
    var step = state.step
    var model_file = checkpoint_file(checkpoint_model(folder, step), model.config, model.params, in_bfloat16)
    var exact = model.params.tensors() if in_bfloat16 else List[Tensor[F32]]()
    # Another folder than the run's is known to this rank alone.
    var in_parts = run.replicas.saves_parts and not makes_folder
    run.replicas.lead(SAVE, Int(in_parts))
    var parts = run.replicas.ranks.size if in_parts else 1
    if not in_parts:
        run.replicas.collect(slots(run.optimizer))
    var own = share_of(slots(run.optimizer), 0, parts)
    var states = state_file(_state(folder, step), step, own, exact, state.data, rank=0, parts=parts)
    if not in_parts:
        run.replicas.release_others(slots(run.optimizer))
    var sidecar = sidecar_file(_extra(folder, step), state)
    # While files of an earlier run are being replaced, they are no checkpoint.
    _remove(_done(folder, step))
    if in_parts:
        # All parts are on the disk, then all have their names.
        run.replicas.ranks.meet()
    model_file.commit()
    states.commit()
    sidecar.commit()
    if in_parts:
        run.replicas.ranks.meet()
    var done = AtomicFile("save", _done(folder, step))
    done.commit()
    remove_oldest(folder, keep)


def save_part[dtype: DType, O: Optimizer, //](folder: String, mut run: Trainer[dtype, O]) raises:
    """Writes this rank's part of the state of a checkpoint, while rank 0 writes the rest by `save_checkpoint`.

    Raises:
        If the disk is full or fails, or does not have the run's folder.
    """
    if not isdir(folder):
        raise Error(
            t"save: the folder {folder} is not here: with --state-parts 1 every rank writes into it, so it has to be on"
            t" a disk that they share; go on with --state-parts 0"
        )
    ref ranks = run.replicas.ranks
    var path = _state(folder, run.state.step, ranks.rank)
    var own = share_of(slots(run.optimizer), ranks.rank, ranks.size)
    var no_params = List[Tensor[F32]]()
    var part = state_file(path, run.state.step, own, no_params, DataPosition(), rank=ranks.rank, parts=ranks.size)
    # As rank 0 does: before the first gets its name, and after the last has it.
    ranks.meet()
    part.commit()
    ranks.meet()


def remove_oldest(folder: String, keep: Int) raises:
    """Removes the oldest checkpoints, so that `keep` stay (0: all).

    Raises:
        If the folder does not allow it.
    """
    if keep > 0:
        var steps = complete_checkpoints(folder)
        for i in range(len(steps) - keep):
            remove_checkpoint(folder, steps[i])


def size_of_checkpoints(folder: String) raises -> Int:
    """Returns the bytes of all complete checkpoints in a folder.

    Raises:
        If the folder cannot be read.
    """
    var bytes = 0
    for step in complete_checkpoints(folder):
        var files = _states_of(folder, step)
        files.append(checkpoint_model(folder, step))
        for path in files:
            bytes += getsize(path) if exists(path) else 0
    return bytes


def save_sidecar[dtype: DType, O: Optimizer, //](folder: String, mut run: Trainer[dtype, O]) raises:
    """Replaces the sidecar of the checkpoint that the run stands at: its evaluation has been made up for.

    Raises:
        If the file cannot be written; the checkpoint is unchanged then.
    """
    run.state.data = run.train_data.position()
    var sidecar = sidecar_file(_extra(folder, run.state.step), run.state)
    sidecar.commit()


def read_saved_config(folder: String, step: Int) raises -> GPT2Config:
    """Reads the sizes of the model in a checkpoint.

    Raises:
        If its file is gone or damaged.
    """
    try:
        return read_config(checkpoint_model(folder, step))
    except error:
        raise Error(t"{error}{_to_go_on_from_an_earlier_one(folder, step)}")


def _to_go_on_from_an_earlier_one(folder: String, step: Int) -> String:
    return String(t" (to go on from an earlier checkpoint, remove {_done(folder, step)})")


def load_checkpoint[dtype: DType, O: Optimizer, //](folder: String, step: Int, mut run: Trainer[dtype, O]) raises:
    """Brings model, optimizer, data and state to where a checkpoint left them. llm.c's own checkpoints have no sidecar.

    Raises:
        If the checkpoint is damaged, or was made with another model, optimizer or data.
    """
    try:
        var kept = slots(run.optimizer)
        var position = DataPosition()

        def read(params: ParameterTensors[F32]) raises {mut position, imm}:
            read_parameters(checkpoint_model(folder, step), params)
            _read_state_in_parts(folder, step, kept, params.tensors(), position)

        run.state = RunState(DataPosition(), run.config.seed)
        run.state.step = step
        run.state.evaluated = True
        if exists(_extra(folder, step)):
            read_sidecar(_extra(folder, step), run.state)
        if run.state.optimizer != run.optimizer.name():
            raise Error(
                t"resume: the run was saved with the optimizer {run.state.optimizer}, this one has"
                t" {run.optimizer.name()}; use the same, or start from the model alone (--init"
                t" {checkpoint_model(folder, step)})"
            )
        if run.state.replicas != run.replicas.count:
            raise Error(
                t"resume: the run was saved with --replicas {run.state.replicas}, this one has {run.replicas.count};"
                t" use the same (any number of ranks that shares them out evenly will do)"
            )
        run.model.write_parameters(read)
        # What llm.c's state file does not hold of the place in the data comes from the sidecar.
        position.epoch = run.state.data.epoch
        if run.state.data.order == RANDOM_WINDOWS:
            position.order = RANDOM_WINDOWS
        run.state.data = position^
        try:
            if run.replicas.count > 1:
                # Shards differ in length, and each replica has them in an order of its own.
                run.replicas.batches = run.train_data.batches_until(run.state.data)
                for i in range(len(run.replicas.loaders)):
                    run.replicas.loaders[i].catch_up(run.replicas.batches)
            run.train_data.resume(run.state.data)
        except error:
            raise Error(t"resume: {_state(folder, step)}: {error}")
    except error:
        raise Error(t"{error}{_to_go_on_from_an_earlier_one(folder, step)}")


def _read_state_in_parts(
    folder: String,
    step: Int,
    slots: List[List[Tensor[F32]]],
    params: List[Tensor[F32]],
    mut position: DataPosition,
) raises:
    """Reads the state of a checkpoint, whoever has written it."""
    var parts = count_parts(_state(folder, step))
    for rank in range(1, parts):
        if not exists(_state(folder, step, rank)):
            raise Error(
                t"resume: {_state(folder, step, rank)} is missing: the state after {step} steps has {parts} parts, one"
                t" of each rank; bring it here too"
            )
    read_state(_state(folder, step), step, share_of(slots, 0, parts), params, position, parts=parts)
    for rank in range(1, parts):
        var nowhere = DataPosition()
        var path = _state(folder, step, rank)
        read_state(path, step, share_of(slots, rank, parts), List[Tensor[F32]](), nowhere, rank=rank, parts=parts)


def tokenizer_of_checkpoint(model: String) raises -> Optional[String]:
    """Returns the SHA-256 of the tokenizer that a checkpoint was trained with, by the name of its model; none if it has
    no sidecar, or that says nothing.

    Raises:
        If the sidecar is damaged.
    """
    var step = _step_of(String(basename(model)))
    var folder = String(dirname(model))
    var path = _extra(folder if folder else String("."), step.or_else(0))
    return sidecar_tokenizer(path) if step and exists(path) else Optional[String](None)


def slots[O: Optimizer, //](optimizer: O) -> List[List[Tensor[F32]]]:
    """Views the tensors that an optimizer keeps, by slot."""
    var tensors = List[List[Tensor[F32]]]()
    for ref slot in optimizer.slots():
        tensors.append(slot.tensors.copy())
    return tensors^


def remove_checkpoint(folder: String, step: Int) raises:
    """Removes a checkpoint, so that at no moment a part of it counts as a whole.

    Raises:
        If the folder does not allow it.
    """
    _remove(_done(folder, step))
    _remove(checkpoint_model(folder, step))
    for path in _states_of(folder, step):
        _remove(path)
    _remove(_extra(folder, step))


def clear_folder(folder: String, *, keep_checkpoints: Bool, is_ours: Bool) raises:
    """Removes what a killed run left unfinished under temporary names, and the checkpoints of a run that is replaced.

    In a folder `is_ours` that goes for the files of checkpoints without `DONE_` too: a kill has interrupted their removal,
    or their first save.

    Raises:
        If the folder cannot be read or does not allow it.
    """
    var complete = complete_checkpoints(folder)
    for name in _names(folder):
        var step = _step_of(name)
        if is_ours and step and step.value() not in complete:
            _remove(folder + "/" + name)
        for prefix in ["model_", "state_", "extra_", "DONE_", "best.bin"]:
            if name.startswith(prefix) and name.endswith(".tmp"):
                _remove(folder + "/" + name)
    if not keep_checkpoints:
        for step in complete:
            remove_checkpoint(folder, step)
        _remove(folder + "/best.bin")


def _step_of(name: String) -> Optional[Int]:
    """Returns the step of a checkpoint's file by its name; none if it is no such file."""
    # Behind the step stands the rank of a state.
    var kinds: List[Tuple[String, Int, String]] = [
        ("model_", 0, ".bin"),
        ("state_", 1 + _RANK_DIGITS, ".bin"),
        ("extra_", 0, ".json"),
    ]
    for ref kind in kinds:
        var size = kind[0].byte_length() + _DIGITS + kind[1] + kind[2].byte_length()
        if name.byte_length() == size and name.startswith(kind[0]) and name.endswith(kind[2]):
            return parse_integer(part(name, kind[0].byte_length(), kind[0].byte_length() + _DIGITS))
    return None


def _names(folder: String) raises -> List[String]:
    try:
        return listdir(folder)
    except error:
        raise Error(t"run: cannot read the folder {folder}: {error}; check its permissions")


def _remove(path: String) raises:
    if exists(path):
        try:
            remove(path)
        except error:
            raise Error(t"save: cannot remove {path}: {error}; check the folder's permissions")


def _state(folder: String, step: Int, rank: Int = 0) -> String:
    return _name(folder, "state_", step, String(t"_{String(rank).ascii_rjust(_RANK_DIGITS, '0')}.bin"))


def _states_of(folder: String, step: Int) raises -> List[String]:
    """Lists the files of a checkpoint's state that are there, rank 0's last: without it they are none."""
    var files = List[String]()
    for name in _names(folder):
        if (
            name.startswith("state_")
            and _step_of(name).or_else(-1) == step
            and folder + "/" + name != _state(folder, step)
        ):
            files.append(folder + "/" + name)
    files.append(_state(folder, step))
    return files^


def _extra(folder: String, step: Int) -> String:
    return _name(folder, "extra_", step, ".json")


def _done(folder: String, step: Int) -> String:
    return _name(folder, "DONE_", step, "")


def _name(folder: String, prefix: String, step: Int, suffix: String) -> String:
    return String(t"{folder}/{prefix}{String(step).ascii_rjust(_DIGITS, '0')}{suffix}")
