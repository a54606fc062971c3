"""Trains a GPT-2. Without flags it does llm.c's job: GPT-2 124M on tiny shakespeare; `--help` lists the flags."""

from std.sys import argv, exit, stderr

from llm.cli.arguments import Arguments
from llm.cli.logs import LogEnd
from llm.cli.options import save_settings, trainer_arguments
from llm.cli.plan import check_memory, describe, plan, settings_in_use
from llm.cli.report import Report, Validation
from llm.cli.setup import (
    check_flags,
    check_tokenizer,
    checkpoint_to_resume,
    find_tokenizer,
    initial_checkpoint,
    model_config,
    open_hellaswag,
    starts_at_random,
    training_data,
    validation_data,
)
from llm.cli.signals import signal_name, stop_signal, watch_for_signals
from llm.cli.text_writer import generate
from llm.cpu.peak import measured_peak
from llm.cpu.threads.cores import available_threads
from llm.data.loader import DataLoader
from llm.eval.choices import Choices, judge_all
from llm.eval.judgement import Accuracy, Judgement
from llm.infer.sampler import Sampler
from llm.model.checkpoints import read_config, read_parameters, write_checkpoint
from llm.model.config import GPT2Config
from llm.model.gpt2 import GPT2
from llm.text.tokenizer import Tokenizer
from llm.train.run_folder import checkpoint_model, clear_folder, load_checkpoint, save_checkpoint
from llm.train.run_state import Progress
from llm.train.trace import Trace
from llm.train.trainer import Trainer


def main():
    try:
        exit(train())
    except error:
        print(t"train_gpt2: {error}", file=stderr)
        exit(1)


def train() raises -> Int:
    """Trains and returns the exit status: 0, or 128 and the signal that stopped the run."""
    var args = trainer_arguments()
    check_flags(args)
    var tokenizer = find_tokenizer(args)
    var resumed = checkpoint_to_resume(args)
    var config: GPT2Config
    if resumed:
        config = read_config(checkpoint_model(args.string("out"), resumed.value()))
    else:
        config = model_config(args, tokenizer)
    check_tokenizer(tokenizer, config)
    var train_data = training_data(args, config)
    var val_data = validation_data(args, config)
    if args.choice("dtype") == "bf16":
        return train_with[DType.bfloat16](args, tokenizer, config, resumed, train_data^, val_data^)
    return train_with[DType.float32](args, tokenizer, config, resumed, train_data^, val_data^)


def train_with[
    dtype: DType
](
    args: Arguments,
    tokenizer: Optional[Tokenizer],
    config: GPT2Config,
    resumed: Optional[Int],
    var train_data: DataLoader,
    var val_data: DataLoader,
) raises -> Int:
    """Trains with matrix products of this type."""
    var threads = args.int("threads") if args.int("threads") > 0 else available_threads()
    if args.bool("dry-run"):
        print(plan[dtype](args, config, train_data, threads), end="")
        return 0

    check_memory[dtype](config, train_data.B, train_data.T, threads)
    var trace = Trace(args.string("trace"), threads)
    print(settings_in_use(args, config, train_data, threads, resumed))
    var model = GPT2[dtype](config.copy(), threads, train_data.B, train_data.T)
    print(describe(args, model, train_data, val_data, threads), flush=True)
    var questions = open_hellaswag(args, config, train_data.T)
    var run = Trainer(args, model^, train_data^, val_data^)
    var progress = Progress()
    var sampler = Sampler(seed=args.int("seed"))
    if resumed:
        progress = load_checkpoint(args.string("out"), resumed.value(), run.model, run.train_data)
        if progress.sampler != 0:
            sampler.set_rng_state(progress.sampler)
        print(t"resumed after step {progress.step} of {run.steps}\n", flush=True)
        if progress.evaluated and progress.step >= run.steps:
            print(t"all {run.steps} steps are done; for more, use a larger --max-steps")
    elif starts_at_random(args):
        run.model.initialize(args.int("seed"))
    else:
        read_parameters(initial_checkpoint(args), run.model.params)

    watch_for_signals()
    var going_on = LogEnd(progress.step, progress.evaluated) if resumed else Optional[LogEnd](None)
    var report = Report(args.string("out"), going_on)
    if args.given("out"):
        clear_folder(args.string("out"), keep_checkpoints=Bool(resumed))
        save_settings(args)
    return take_steps(run, args, tokenizer, questions, progress, sampler, report, trace)


def take_steps[
    dtype: DType, //
](
    mut run: Trainer[dtype],
    args: Arguments,
    tokenizer: Optional[Tokenizer],
    mut questions: Optional[Choices],
    mut progress: Progress,
    mut sampler: Sampler,
    mut report: Report,
    mut trace: Trace,
) raises -> Int:
    """Trains until the run ends, and returns the exit status."""
    var out = args.string("out")
    var peak = measured_peak[dtype](run.model.num_threads()) if report.screen.is_terminal else 0
    var saved = progress.step
    while True:
        var last = progress.step >= run.steps
        if not progress.evaluated and stop_signal() == 0:
            var complete = True
            if is_due(progress.step, args.int("val-every"), last):
                try:
                    complete = validate(run, questions, progress, report, args)
                except error:
                    raise Error(t"{error}{rescue(run, questions, progress, sampler, report, args, saved)}")
            if complete and tokenizer and progress.step > 0 and is_due(progress.step, args.int("sample-every"), last):
                report.screen.line("--- sample")
                generate(run.model, sampler, tokenizer.value(), args.int("gen-len"))
                report.screen.line("---")
            progress.evaluated = complete
        var ends = last or stop_signal() != 0 or out_of_patience(progress, args)
        var due = ends or is_due(progress.step, args.int("checkpoint-every"), False)
        if args.given("out") and due and progress.step > saved:
            progress.sampler = sampler.rng_state()
            report.flush()
            save_checkpoint(out, run.model, run.train_data, progress, args.int("keep"), saves_bfloat16(args))
            saved = progress.step
            report.screen.line(String(t"saved {checkpoint_model(out, saved)}"))
        if ends:
            trace.finish()
            return farewell(run, progress, report, args, saved)
        try:
            report.step(run.step(progress), run.model.config.flops_per_token(run.train_data.T), peak)
        except error:
            raise Error(t"{error}{rescue(run, questions, progress, sampler, report, args, saved)}")
        trace.step(run.model, progress.step)
        report.waiting(progress.step, run.steps, args.int("val-every"))


def is_due(step: Int, every: Int, last: Bool) -> Bool:
    """Tells whether something happens now that happens every so many steps and after the last; never if every is 0."""
    return every > 0 and (step % every == 0 or last)


def validate[
    dtype: DType, //
](
    mut run: Trainer[dtype],
    mut questions: Optional[Choices],
    mut progress: Progress,
    mut report: Report,
    args: Arguments,
) raises -> Bool:
    """Validates, and keeps the model as `best.bin` if it is the best so far and the run keeps checkpoints.

    Returns:
        False if a signal to stop came during HellaSwag, which may take long: then all of it is left to the resumed run.
    """
    var judgements = List[Judgement]()
    if questions:
        judgements = judge_all(questions.value(), run.model, args.int("hellaswag-limit"), report.screen)
        if stop_signal() != 0:
            return False
    var loss = run.validate()
    var best = progress.validated(loss)
    report.validation(Validation(progress.step, loss, best))
    if questions:
        var accuracy = Accuracy(judgements)
        report.hellaswag(progress.step, accuracy.acc(), accuracy.acc_norm())
    var wanted = args.int("checkpoint-every") > 0 or args.int("patience") > 0
    if best and wanted and progress.step > 0 and args.given("out"):
        write_checkpoint(args.string("out") + "/best.bin", run.model.config, run.model.params, saves_bfloat16(args))
    return True


def saves_bfloat16(args: Arguments) -> Bool:
    """Tells whether models are written in bfloat16."""
    return args.choice("save-dtype") == "bf16"


def out_of_patience(progress: Progress, args: Arguments) -> Bool:
    """Tells whether too many validations have brought nothing."""
    return args.int("patience") > 0 and progress.bad_validations >= args.int("patience")


def farewell[
    dtype: DType, //
](run: Trainer[dtype], progress: Progress, mut report: Report, args: Arguments, saved: Int) -> Int:
    """Says why the run ends and how to go on, and returns the exit status."""
    var signal = stop_signal()
    if signal != 0 and progress.step < run.steps:
        var text = String(t"stopped by {signal_name(signal)} after step {progress.step} of {run.steps}; ")
        if args.given("out") and saved == progress.step:
            report.screen.line(text + "go on with: " + resume_command(args))
        else:
            report.screen.line(text + "nothing was saved" + ("" if args.given("out") else ": no --out was given"))
        return 128 + signal
    if progress.step < run.steps:
        report.screen.line(
            String(
                t"stopped after step {progress.step}: no lower validation loss in {progress.bad_validations}"
                t" validations; the best was {progress.best_loss.value()} after step {progress.best_step}"
            )
        )
    return 0


def rescue[
    dtype: DType, //
](
    mut run: Trainer[dtype],
    questions: Optional[Choices],
    mut progress: Progress,
    sampler: Sampler,
    mut report: Report,
    args: Arguments,
    saved: Int,
) -> String:
    """Saves the state after the last whole step, if it is the data that has failed; says what there is to go on from.
    """
    var data_failed = run.train_data.has_failed or run.val_data.has_failed
    data_failed = data_failed or (Bool(questions) and questions.value().file.has_failed)
    if not data_failed or not args.given("out") or progress.step == saved:
        return last_good(args, saved)
    if run.train_data.has_failed:
        run.train_data.rewind()
    progress.sampler = sampler.rng_state()
    try:
        report.flush()
        var keep = args.int("keep")
        save_checkpoint(args.string("out"), run.model, run.train_data, progress, keep, saves_bfloat16(args))
        return last_good(args, progress.step)
    except error:
        return String(t"; the state after step {progress.step} could not be saved: {error}{last_good(args, saved)}")


def last_good(args: Arguments, saved: Int) -> String:
    """Says what is left after a step has failed."""
    if not args.given("out") or saved == 0:
        return "; no checkpoint was saved before"
    return String(
        t"\n{checkpoint_model(args.string('out'), saved)} is the last checkpoint; go on from there with:"
        t" {resume_command(args)}"
    )


def resume_command(args: Arguments) -> String:
    """Returns the command that goes on with this run; its settings are in the folder."""
    return String(t"{argv()[0]} -o {args.string('out')} -y 1")
