"""What a run remembers beside the model and its moments, and the sidecar `extra_STEP.json` of a checkpoint, which holds
what llm.c's state has no place for.
"""

from std.math import isfinite

from llm.base.files import read_text
from llm.base.json import JsonObject, json_number, json_numbers, json_text
from llm.base.written_files import AtomicFile
from llm.formats.training_state import IN_ORDER, RANDOM_WINDOWS, DataPosition
from llm.infer.sampler import Sampler
from llm.train.outliers import WINDOW, OutlierDetector

comptime _LLM_C_OPTIMIZER = "adamw"


struct RunState(Movable):
    """How far a run is, and what it remembers of the way."""

    var step: Int
    """Steps done."""
    var evaluated: Bool
    """Whether the validation and the sample that are due after these steps have been made."""
    var data: DataPosition
    """Where the run was in the training data when it began, was saved or resumed: between these the loader knows."""
    var optimizer: String
    """Name of the optimizer whose state belongs to the run."""
    var tokenizer: String
    """SHA-256 of the tokenizer file that the data was made with; empty if that is not known."""
    var replicas: Int
    """Parts of each batch that are trained on side by side."""
    var sampler: Sampler
    """Draws the samples."""
    var best_loss: Optional[Float32]
    """Lowest validation loss so far."""
    var best_step: Int
    """Steps done when it was measured."""
    var bad_validations: Int
    """Validations since then."""
    var losses: OutlierDetector
    var norms: OutlierDetector

    def __init__(out self, var data: DataPosition, seed: Int) raises:
        """Starts a run; the seed is that of the samples."""
        self.step = 0
        self.evaluated = False
        self.data = data^
        self.optimizer = _LLM_C_OPTIMIZER
        self.tokenizer = String()
        self.replicas = 1
        self.sampler = Sampler(seed=seed)
        self.best_loss = None
        self.best_step = 0
        self.bad_validations = 0
        self.losses = OutlierDetector()
        self.norms = OutlierDetector()

    @no_inline
    def __deinit__(deinit self):
        """Frees what it owns. Not inlined, because every call that may raise is followed by a copy."""
        pass

    def validated(mut self, loss: Float32) -> Bool:
        """Takes a validation loss and tells whether it is the lowest so far; NaN never is."""
        if not isfinite(loss) or (self.best_loss and not (loss < self.best_loss.value())):
            self.bad_validations += 1
            return False
        self.best_loss = loss
        self.best_step = self.step
        self.bad_validations = 0
        return True

    def json(self) -> String:
        """Writes the object that `read_sidecar` reads."""
        # A checkpoint that says nothing is one of the optimizer that llm.c has.
        var optimizer = String()
        if self.optimizer != _LLM_C_OPTIMIZER:
            optimizer = String(t'\n  "optimizer": {json_text(self.optimizer)},')
        var tokenizer = String()
        if self.tokenizer:
            tokenizer = String(t'\n  "tokenizer": {json_text(self.tokenizer)},')
        var replicas = String(t'\n  "replicas": {self.replicas},') if self.replicas > 1 else String()
        var best = json_number(self.best_loss.value()) if self.best_loss else String("null")
        return String(
            t'{{\n  "version": 1,{optimizer}{replicas}{tokenizer}\n  "step": {self.step},\n  "evaluated":'
            t' {"true" if self.evaluated else "false"},\n  "epoch": {self.data.epoch},\n  "shuffle":'
            t' {self.data.order},\n  "sampler": "{self.sampler.rng_state()}",\n  "best_loss": {best},\n  "best_step":'
            t' {self.best_step},\n  "bad_validations":'
            t' {self.bad_validations},\n{_members("loss", self.losses)},\n{_members("norm", self.norms)}\n}}\n'
        )


def sidecar_file(path: String, state: RunState) raises -> AtomicFile:
    """Writes the sidecar up to the last byte; it appears under its name when the caller commits the file.

    Raises:
        If the file cannot be written.
    """
    var file = AtomicFile("save", path)
    file.write(state.json())
    file.flush()
    return file^


def read_sidecar(path: String, mut state: RunState) raises:
    """Completes a state by the sidecar of its checkpoint.

    The state has the step, and of the place in the data what llm.c's state file holds.

    Raises:
        If it does not hold what belongs there.
    """
    var text = read_text("resume", path)
    try:
        parse_state(text, state)
    except error:
        raise Error(t"resume: {path}: {error}; the file is damaged: remove it, and the run goes on without it")


def sidecar_tokenizer(path: String) raises -> Optional[String]:
    """Returns what a sidecar says of the tokenizer: its SHA-256; none if it says nothing.

    Raises:
        If the file is damaged.
    """
    try:
        var json = JsonObject(read_text("checkpoint", path))
        return json.text("tokenizer") if json.has("tokenizer") else Optional[String](None)
    except error:
        raise Error(t"{path}: {error}; the file is damaged: give another checkpoint, or remove it")


def parse_state(text: String, mut state: RunState) raises:
    """Completes a state by what `RunState.json` has written of it.

    Raises:
        If it does not hold what belongs there.
    """
    var json = JsonObject(text)
    _ = json.int("version", 1, 1)
    _ = json.int("step", state.step, state.step)
    state.evaluated = json.bool("evaluated")
    state.data.epoch = json.int("epoch", 0, Int(Int32.MAX))
    if json.int("shuffle", IN_ORDER, RANDOM_WINDOWS) == RANDOM_WINDOWS:
        # Which llm.c's state file takes for the data's own order.
        state.data.order = RANDOM_WINDOWS
    if json.has("replicas"):
        state.replicas = json.int("replicas", 1, Int(Int32.MAX))
    if json.has("optimizer"):
        state.optimizer = json.text("optimizer")
    if json.has("tokenizer"):
        state.tokenizer = json.text("tokenizer")
    var sampler = json.text("sampler")
    try:
        # A generator is never at 0, which stands for what is not known.
        var rng_state = _parse_uint64(sampler)
        if rng_state != 0:
            state.sampler.set_rng_state(rng_state)
    except:
        raise Error(t"expected sampler to be a 64-bit number, found {sampler}")
    if json.has("best_loss"):
        state.best_loss = Float32(json.float("best_loss"))
    state.best_step = json.int("best_step", 0, state.step)
    state.bad_validations = json.int("bad_validations", 0, Int(Int32.MAX))
    state.losses = _read_detector(json, "loss")
    state.norms = _read_detector(json, "norm")


def _members(name: String, detector: OutlierDetector) -> String:
    return String(
        t'  "{name}_sum": {json_number(detector.sum)},\n  "{name}_sum_of_squares":'
        t' {json_number(detector.sum_of_squares)},\n  "{name}_oldest": {detector.oldest},\n  "{name}_window":'
        t" {json_numbers(detector.values)}"
    )


def _read_detector(json: JsonObject, name: String) raises -> OutlierDetector:
    var detector = OutlierDetector()
    detector.sum = json.float(name + "_sum")
    detector.sum_of_squares = json.float(name + "_sum_of_squares")
    detector.oldest = json.int(name + "_oldest", 0, WINDOW - 1)
    detector.values = json.floats(name + "_window")
    if len(detector.values) > WINDOW:
        raise Error(t"expected at most {WINDOW} values in {name}_window, found {len(detector.values)}")
    return detector^


def _parse_uint64(text: String) raises -> UInt64:
    var value = UInt64(0)
    for c in text.as_bytes():
        if c < UInt8(ord("0")) or c > UInt8(ord("9")):
            raise Error("not a digit")
        value = value * 10 + UInt64(c - UInt8(ord("0")))
    return value
