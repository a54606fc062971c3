"""Trains a GPT-2. Without flags it does llm.c's job: GPT-2 124M on tiny shakespeare; `--help` lists the flags."""

from std.os.path import exists
from std.sys import exit
from std.time import perf_counter_ns

from llm.base.formatting import fixed
from llm.cli.arguments import Arguments
from llm.cli.follower import follow
from llm.cli.team import (
    AT_CHECKPOINT,
    AT_FIRST,
    NOT_AT_ALL,
    announce,
    describe_ranks,
    expect_same,
    expect_same_model,
    join,
    set_replicas,
    threads_of_rank,
)
from llm.cli.plan import Sharing
from llm.dist.mpi import Launch, launched
from llm.dist.ranks import Ranks
from llm.train.replicas import END, Replicas, check_replicas
from llm.train.team_state import hand_out_run
from llm.cli.evaluation import evaluate
from llm.cli.keeping import Keeping, room_for, saves_bfloat16
from llm.cli.last_words import farewell, note_what_is_kept, out_of_patience, rescue, save_elsewhere
from llm.cli.logs import LogEnd
from llm.cli.options import save_settings, trainer_arguments
from llm.cli.pace import Pace, follow_plan, settle_steps, waits_for_steps
from llm.cli.plan import check_memory, describe, plan, settings_in_use
from llm.cli.report import Report
from llm.cli.run_tokenizer import RunTokenizer, expect_own_tokenizer
from llm.cli.screen import Screen, complain, printable
from llm.cli.settings import RUN_SETTINGS
from llm.cli.setup import (
    check_flags,
    check_resumed,
    check_tokenizer,
    checkpoint_to_resume,
    data_are_here,
    find_tokenizer,
    initial_checkpoint,
    model_config,
    open_hellaswag,
    optimizer,
    starts_at_random,
    tokenizer_path,
    train_config,
    training_data,
    validation_data,
)
from llm.cli.signals import watch_for_signals
from llm.cli.start import expect_addresses
from llm.cpu.peak import measured_peak
from llm.cpu.threads.cores import available_threads
from llm.data.loader import DataLoader
from llm.eval.choices import Choices
from llm.model.checkpoints import load_parameters
from llm.model.config import GPT2Config
from llm.model.gpt2 import GPT2
from llm.model.tensors import num_parameters
from llm.optim.optimizer import Optimizer
from llm.text.tokenizer import Tokenizer
from llm.train.run_folder import (
    checkpoint_model,
    clear_folder,
    load_checkpoint,
    read_saved_config,
    remove_oldest,
    save_checkpoint,
    save_sidecar,
)
from llm.train.trace import Trace
from llm.train.trainer import Trainer


def main():
    expect_addresses()
    try:
        var launch = launched()
        exit(follow(launch.value()) if launch and launch.value().rank > 0 else lead(launch))
    except error:
        complain(String(t"train_gpt2: {error}"))
        exit(1)


def lead(launch: Optional[Launch]) raises -> Int:
    """Trains, alone or as the first of those that an mpiexec has started, and returns the exit status."""
    var began = perf_counter_ns()
    var args = trainer_arguments()
    var ranks = join(launch)
    var view = ranks.view()
    try:
        var status = train(args, began, launch, ranks^)
        view.leave()
        return status
    except error:
        view.leave(String(error))
        raise error^


def train(mut args: Arguments, began: Int, launch: Optional[Launch], var ranks: Ranks) raises -> Int:
    """Trains and returns the exit status: 0, or 128 and the signal that stopped the run."""
    set_replicas(args, ranks)
    check_flags(args)
    settle_steps(args)
    var tokenizer = find_tokenizer(args)
    var resumed = checkpoint_to_resume(args)
    var config: GPT2Config
    var checkpoint = String()
    if resumed:
        checkpoint = checkpoint_model(args.string("out"), resumed.value())
        config = read_saved_config(args.string("out"), resumed.value())
        check_resumed(args, config)
        if not exists(args.string("out") + "/" + RUN_SETTINGS):
            complain(
                String(
                    t"train_gpt2: note: {args.string('out')} has no {RUN_SETTINGS}: what is not given as a flag is the"
                    t" default, not what the run had"
                )
            )
    else:
        config = model_config(args, tokenizer)
        if not starts_at_random(args):
            checkpoint = initial_checkpoint(args)
    check_tokenizer(args, tokenizer, config)
    if tokenizer and checkpoint:
        expect_own_tokenizer(tokenizer.value().path, checkpoint)
    if args.bool("dry-run") and args.int("max-steps") >= 0 and not data_are_here(args):
        complain(
            "train_gpt2: note: the data are not here yet: the vocabulary, and what follows from it, may be another"
        )
        if args.choice("dtype") == "bf16":
            return dry_run[DType.bfloat16](args, config, 1, ranks)
        return dry_run[DType.float32](args, config, 1, ranks)
    if args.bool("dry-run"):
        var num_batches = training_data(args, config, 0).num_batches
        _ = validation_data(args, config)
        if args.choice("dtype") == "bf16":
            return dry_run[DType.bfloat16](args, config, num_batches, ranks)
        return dry_run[DType.float32](args, config, num_batches, ranks)
    if args.choice("dtype") == "bf16":
        return train_with[DType.bfloat16](args, began, tokenizer, config, resumed, launch, ranks^)
    return train_with[DType.float32](args, began, tokenizer, config, resumed, launch, ranks^)


def dry_run[dtype: DType](args: Arguments, config: GPT2Config, batches: Int, mut ranks: Ranks) raises -> Int:
    """Prints what a run would take, where an epoch has so many batches, and returns the exit status."""
    var threads = threads_of_rank(args, launched())
    var B, T = args.int("batch-size"), args.int("seq-len")
    var training = train_config(args, batches)
    check_replicas(training.replicas, ranks.size)
    var sharing = Sharing(training.replicas, ranks.size, shards_state=args.bool("zero-stage"))
    var peak = measured_peak[dtype](threads) if waits_for_steps(args) else 0
    follow_plan(args, training, training.all_passes() * config.flops_per_token(T) * B * T // ranks.size, peak)
    var screen = Screen()
    var text = plan[dtype](training, config, B, T, threads, sharing, recompute=args.bool("recompute"))
    screen.text(printable(text))
    screen.check()
    announce(ranks, args, config, NOT_AT_ALL, training.steps)
    return 0


def train_with[
    dtype: DType
](
    mut args: Arguments,
    began: Int,
    tokenizer: Optional[Tokenizer],
    config: GPT2Config,
    resumed: Optional[Int],
    launch: Optional[Launch],
    var ranks: Ranks,
) raises -> Int:
    """Trains with matrix products of this type."""
    var train_data = training_data(args, config, 0)
    var val_data = validation_data(args, config)
    var threads = threads_of_rank(args, launch)
    var training = train_config(args, train_data.num_batches)
    check_replicas(training.replicas, ranks.size)
    var sharing = Sharing(training.replicas, ranks.size, shards_state=args.bool("zero-stage"))
    var peak = measured_peak[dtype](threads) if waits_for_steps(args) else 0
    follow_plan(
        args,
        training,
        training.all_passes() * config.flops_per_token(train_data.T) * train_data.B * train_data.T // ranks.size,
        peak,
    )
    var screen = Screen()
    check_memory[dtype](
        config, train_data.B, train_data.T, training.passes, threads, sharing, recompute=args.bool("recompute")
    )
    announce(ranks, args, config, AT_CHECKPOINT if resumed else AT_FIRST, training.steps)
    expect_same(ranks, args)
    var trace = Trace(args.string("trace"), threads)
    var settings = settings_in_use(
        args, training, config, train_data, threads, resumed, only_changed=screen.is_terminal
    )
    screen.block(settings)
    var model = GPT2[dtype](config.copy(), threads, train_data.B, train_data.T, recompute=args.bool("recompute"))
    screen.block(describe(args, model, train_data, val_data, threads, sharing))
    var questions = open_hellaswag(args, config, train_data.T, tokenizer_path(args))
    screen.text(describe_ranks(launch, ranks, threads))
    var others = List[DataLoader]()
    for i in range(1, training.replicas // ranks.size):
        others.append(training_data(args, config, i))
    var replicas = Replicas(
        training.replicas,
        ranks^,
        others^,
        shards_state=args.bool("zero-stage"),
        saves_parts=args.bool("state-parts"),
    )
    var run = Trainer(training^, model^, optimizer(args, config), train_data^, val_data^, replicas^)
    if resumed:
        load_checkpoint(args.string("out"), resumed.value(), run)
        hand_out_run(run)
        screen.line(String(t"resumed after step {run.state.step} of {run.config.steps}\n"))
        if run.state.evaluated and run.state.step >= run.config.steps:
            screen.line(String(t"all {run.config.steps} steps are done; for more, use a larger --max-steps"))
    elif starts_at_random(args):
        run.model.initialize(args.int("seed"))
    else:
        load_parameters(initial_checkpoint(args), run.model)
    if not resumed:
        expect_same_model(run.replicas.ranks, run.model.params)
    var vocabulary = Optional[RunTokenizer](None)
    if tokenizer:
        vocabulary = RunTokenizer(tokenizer.value().path)
        run.state.tokenizer = vocabulary.value().sha256
    var keeping = Keeping(args, num_parameters(config), Int(perf_counter_ns()))
    if args.given("out"):
        screen.block(room_for(run, args, keeping, num_parameters(config)))

    # A run of which nobody can see anything does not begin.
    screen.check()
    watch_for_signals()
    var going_on = LogEnd(run.state.step, run.state.evaluated) if resumed else Optional[LogEnd](None)
    var report = Report(args.string("out"), going_on)
    if args.given("out"):
        # Where our settings are, files of checkpoints that are not whole are ours too.
        var is_ours = exists(args.string("out") + "/" + RUN_SETTINGS)
        if vocabulary:
            vocabulary.value().keep(args.string("out"), is_ours=is_ours)
        clear_folder(args.string("out"), keep_checkpoints=Bool(resumed), is_ours=is_ours)
        # A kill may have come after a save and before this.
        remove_oldest(args.string("out"), keeping.keep)
        var start = String() if resumed or starts_at_random(args) else initial_checkpoint(args)
        save_settings(
            args, args.string("out"), start, vocabulary.value().sha256 if vocabulary else Optional[String](None)
        )
    var pace = Pace(args, began)
    var status = take_steps(run, args, tokenizer, vocabulary, questions, report, keeping, trace, pace)
    run.replicas.lead(END)
    return status


def take_steps[
    dtype: DType, O: Optimizer, //
](
    mut run: Trainer[dtype, O],
    mut args: Arguments,
    tokenizer: Optional[Tokenizer],
    vocabulary: Optional[RunTokenizer],
    mut questions: Optional[Choices],
    mut report: Report,
    mut keeping: Keeping,
    mut trace: Trace,
    mut pace: Pace,
) raises -> Int:
    """Trains until the run ends, and returns the exit status."""
    var out = args.string("out")
    var peak = measured_peak[dtype](run.model.num_threads()) if report.screen.is_terminal else 0
    if peak > 0:
        report.screen.line(String(t"peak        {fixed(peak / 1e9, 1)} GFLOP/s measured on these threads\n"))
    # The last checkpoint that is there; 0: none.
    var saved = run.state.step
    note_what_is_kept(args, saved, report.screen)
    while True:
        if args.given("out") and not report.has_folder():
            raise save_elsewhere(run, vocabulary, report, args)
        if not run.state.evaluated and not report.stops():
            try:
                run.state.evaluated = evaluate(run, questions, tokenizer, report, keeping, args)
            except error:
                raise Error(t"{error}{rescue(run, questions, report, keeping, args, saved)}")
            if run.state.evaluated and saved > 0 and saved == run.state.step:
                report.before_saving()
                save_sidecar(out, run)
        var ends = run.state.step >= run.config.steps or report.stops() or out_of_patience(run, args)
        var due = ends or keeping.is_due(run.state.step, Int(perf_counter_ns()))
        if args.given("out") and due and run.state.step > saved:
            try:
                run.check_model()
            except error:
                raise Error(t"{error}{rescue(run, questions, report, keeping, args, saved)}")
            report.before_saving()
            save_checkpoint(out, run, keeping.keep, saves_bfloat16(args))
            keeping.saved(Int(perf_counter_ns()))
            saved = run.state.step
            note_what_is_kept(args, saved, report.screen)
            report.screen.line(String(t"saved {checkpoint_model(out, saved)}"))
        if ends:
            trace.finish()
            return farewell(run, report, args, saved)
        try:
            report.step(run.step(), run.model.config.flops_per_token(run.train_data.T), peak)
        except error:
            raise Error(t"{error}{rescue(run, questions, report, keeping, args, saved)}")
        trace.step(run.model, run.state.step)
        pace.after_step(run, args, report)
