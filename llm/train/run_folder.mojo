"""The folder of a run: checkpoints that are complete or do not count.

A checkpoint is `model_STEP.bin`, `state_STEP_00000.bin` and `extra_STEP.json`, and counts when `DONE_STEP` is there.
"""

from std.os import listdir, remove
from std.os.path import exists, isdir

from llm.base.files import AtomicFile
from llm.base.memory import Tensor
from llm.data.loader import DataLoader
from llm.formats.training_state import RANDOM_WINDOWS, DataPosition, read_state, state_file
from llm.model.checkpoints import checkpoint_file, read_parameters
from llm.model.gpt2 import GPT2
from llm.model.tensors import ParameterTensors
from llm.optim.optimizer import Optimizer
from llm.train.run_state import Progress, progress_file, read_progress

comptime F32 = DType.float32
comptime _DIGITS = 8


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
    model: GPT2[dtype],
    optimizer: O,
    data: DataLoader,
    mut progress: Progress,
    keep: Int,
    in_bfloat16: Bool,
) raises:
    """Writes a checkpoint and then removes the oldest, so that `keep` stay (0: all).

    With `in_bfloat16` the model's file is rounded, and the state holds the parameters in float32 as well.

    All files are on the disk in full before the first gets its name, and `DONE_` comes last: whenever the run is
    killed, the newest complete checkpoint is a good one.

    Raises:
        If the disk is full or fails, or the folder is gone; the checkpoints from before are unchanged.
    """
    if not isdir(folder):
        raise Error(t"save: the folder {folder} is gone; nothing was saved: make it again and resume from a copy")
    var step = progress.step
    var position = data.position()
    progress.epoch = data.epoch
    progress.order = position.order
    progress.optimizer = String(O.NAME)
    var model_file = checkpoint_file(checkpoint_model(folder, step), model.config, model.params, in_bfloat16)
    var exact = model.params.tensors() if in_bfloat16 else List[Tensor[F32]]()
    var states = state_file(_state(folder, step), step, _states(optimizer), exact, position)
    var sidecar = progress_file(_extra(folder, step), progress)
    # While files of an earlier run are being replaced, they are no checkpoint.
    _remove(_done(folder, step))
    model_file.commit()
    states.commit()
    sidecar.commit()
    var done = AtomicFile("save", _done(folder, step))
    done.commit()
    if keep > 0:
        var steps = complete_checkpoints(folder)
        for i in range(len(steps) - keep):
            remove_checkpoint(folder, steps[i])


def load_checkpoint[
    dtype: DType, O: Optimizer, //
](folder: String, step: Int, mut model: GPT2[dtype], mut optimizer: O, mut data: DataLoader) raises -> Progress:
    """Brings model, optimizer and data to where a checkpoint left them. llm.c's own checkpoints have no sidecar.

    Raises:
        If the checkpoint is damaged, or was made with another model, optimizer or data.
    """
    var progress = Progress()
    progress.step = step
    progress.evaluated = True
    try:
        if exists(_extra(folder, step)):
            progress = read_progress(_extra(folder, step), step)
        if progress.optimizer != O.NAME:
            raise Error(
                t"resume: the run was saved with --optimizer {progress.optimizer}, this one has --optimizer {O.NAME}; use"
                t" the same, or start from the model alone (--init {checkpoint_model(folder, step)})"
            )
        var states = _states(optimizer)
        var position = DataPosition()

        def read(params: ParameterTensors[F32]) raises {mut position, imm}:
            read_parameters(checkpoint_model(folder, step), params)
            read_state(_state(folder, step), step, states, params.tensors(), position)

        model.write_parameters(read)
        if progress.order == RANDOM_WINDOWS:
            position.order = RANDOM_WINDOWS
        try:
            data.resume(position^)
        except error:
            raise Error(t"resume: {_state(folder, step)}: {error}")
    except error:
        raise Error(t"{error} (to go on from an earlier checkpoint, remove {_done(folder, step)})")
    data.epoch = progress.epoch
    return progress^


def _states[O: Optimizer, //](optimizer: O) -> List[Tensor[F32]]:
    """Views all tensors that an optimizer keeps, slot after slot."""
    var tensors = List[Tensor[F32]]()
    for ref slot in optimizer.slots():
        tensors.extend(slot.tensors.copy())
    return tensors^


def remove_checkpoint(folder: String, step: Int) raises:
    """Removes a checkpoint, so that at no moment a part of it counts as a whole.

    Raises:
        If the folder does not allow it.
    """
    _remove(_done(folder, step))
    _remove(checkpoint_model(folder, step))
    _remove(_state(folder, step))
    _remove(_extra(folder, step))


def clear_folder(folder: String, *, keep_checkpoints: Bool) raises:
    """Removes what a killed run left unfinished under temporary names, and the checkpoints of a run that is replaced.

    Raises:
        If the folder cannot be read or does not allow it.
    """
    for name in _names(folder):
        for prefix in ["model_", "state_", "extra_", "DONE_", "best.bin"]:
            if name.startswith(prefix) and name.endswith(".tmp"):
                _remove(folder + "/" + name)
    if not keep_checkpoints:
        for step in complete_checkpoints(folder):
            remove_checkpoint(folder, step)
        _remove(folder + "/best.bin")


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


def _state(folder: String, step: Int) -> String:
    return _name(folder, "state_", step, "_00000.bin")


def _extra(folder: String, step: Int) -> String:
    return _name(folder, "extra_", step, ".json")


def _done(folder: String, step: Int) -> String:
    return _name(folder, "DONE_", step, "")


def _name(folder: String, prefix: String, step: Int, suffix: String) -> String:
    return String(t"{folder}/{prefix}{String(step).ascii_rjust(_DIGITS, '0')}{suffix}")
