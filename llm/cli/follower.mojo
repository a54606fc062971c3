"""What the ranks but rank 0 do: as they are told, and silently."""

from llm.cli.arguments import parse_arguments
from llm.cli.options import options
from llm.cli.setup import (
    initial_checkpoint,
    open_hellaswag,
    optimizer,
    starts_at_random,
    train_config,
    training_data,
    validation_data,
)
from llm.cli.signals import watch_for_signals
from llm.cli.team import (
    AT_CHECKPOINT,
    NOT_AT_ALL,
    Start,
    be_silent,
    expect_same,
    expect_same_model,
    hear,
    join,
    threads_of_rank,
)
from llm.data.loader import DataLoader
from llm.dist.mpi import Launch
from llm.dist.ranks import Ranks
from llm.eval.choices import Choices, judge_together
from llm.eval.watcher import Unwatched
from llm.model.checkpoints import load_parameters
from llm.model.gpt2 import GPT2
from llm.optim.optimizer import Optimizer
from llm.train.replicas import ANSWER, END, SAVE, STEP, VALIDATE, Replicas
from llm.train.run_folder import save_part, slots
from llm.train.team_state import receive_run
from llm.train.trainer import Trainer


def follow(launch: Launch) raises -> Int:
    """Takes part in a run that rank 0 leads, and returns the exit status."""
    be_silent()
    # Mistakes end every rank before any of them waits for another.
    _ = parse_arguments("train_gpt2", "Trains a GPT-2 on the CPU.", options())
    watch_for_signals()
    var ranks = join(launch)
    var view = ranks.view()
    try:
        var start = hear(ranks)
        if start.begins == NOT_AT_ALL:
            view.leave()
            return 0
        expect_same(ranks, start.args)
        if start.args.choice("dtype") == "bf16":
            _follow[DType.bfloat16](start, launch, ranks^)
        else:
            _follow[DType.float32](start, launch, ranks^)
    except error:
        view.leave(String(error))
        raise Error(t"{view.name(view.rank)}: {error}")
    view.leave()
    return 0


def _follow[dtype: DType](start: Start, launch: Launch, var ranks: Ranks) raises:
    ref args = start.args
    var here = args.int("replicas") // ranks.size
    var first = ranks.rank * here
    var train_data = training_data(args, start.config, first)
    var others = List[DataLoader]()
    for i in range(1, here):
        others.append(training_data(args, start.config, first + i))
    var val_data = validation_data(args, start.config)
    var training = train_config(args, train_data.num_batches)
    training.steps = start.steps
    var replicas = Replicas(
        training.replicas, ranks^, others^, shards_state=args.bool("zero-stage"), saves_parts=args.bool("state-parts")
    )
    var threads = threads_of_rank(args, launch)
    var model = GPT2[dtype](start.config.copy(), threads, train_data.B, train_data.T, recompute=args.bool("recompute"))
    var questions = open_hellaswag(args, start.config, train_data.T, None)
    var run = Trainer(training^, model^, optimizer(args, start.config), train_data^, val_data^, replicas^)
    if start.begins == AT_CHECKPOINT:
        receive_run(run)
    else:
        if starts_at_random(args):
            run.model.initialize(args.int("seed"))
        else:
            load_parameters(initial_checkpoint(args), run.model)
        expect_same_model(run.replicas.ranks, run.model.params)
    _do_as_told(run, questions, args.string("out"))


def _do_as_told[
    dtype: DType, O: Optimizer, //
](mut run: Trainer[dtype, O], mut questions: Optional[Choices], folder: String) raises:
    while True:
        var order = run.replicas.next()
        if order[0] == END:
            return
        if order[0] == STEP:
            run.config.steps = order[1]
            _ = run.step(Float64(from_bits=UInt64(order[2])))
        elif order[0] == VALIDATE:
            _ = run.validate()
        elif order[0] == ANSWER:
            _ = judge_together(questions.value(), run.model, run.replicas.ranks, order[1], Unwatched())
        elif order[0] == SAVE and order[1] == 1:
            save_part(folder, run)
        elif order[0] == SAVE:
            run.replicas.collect(slots(run.optimizer))
