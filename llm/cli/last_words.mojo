"""Why a run ends, and how to go on with it."""

from std.os.path import basename, exists

from llm.base.formatting import fixed
from llm.cli.arguments import Arguments
from llm.cli.keeping import Keeping, saves_bfloat16
from llm.cli.options import save_settings
from llm.cli.report import Report
from llm.cli.run_tokenizer import RunTokenizer
from llm.cli.screen import Screen, complain, errors_are_seen
from llm.cli.shell import own_program, python_side, shell_command
from llm.cli.signals import note_last_words, signal_name, stop_signal
from llm.dist.mpi import launched
from llm.eval.choices import Choices
from llm.optim.optimizer import Optimizer
from llm.train.run_folder import checkpoint_model, save_checkpoint
from llm.train.trainer import Trainer


def out_of_patience[dtype: DType, O: Optimizer, //](run: Trainer[dtype, O], args: Arguments) -> Bool:
    """Tells whether too many validations have brought nothing."""
    return args.int("patience") > 0 and run.state.bad_validations >= args.int("patience")


def farewell[
    dtype: DType, O: Optimizer, //
](run: Trainer[dtype, O], mut report: Report, args: Arguments, saved: Int) -> Int:
    """Says why the run ends and how to go on, and returns the exit status."""
    var signal = stop_signal()
    ref failure = report.screen.failure
    ref state = run.state
    var steps = run.config.steps
    var messages = report.messages()
    if messages:
        report.screen.line(messages)
    # A signal that comes when all is done, to the last validation, stops nothing.
    if signal != 0 and (state.step < steps or not state.evaluated):
        _say_last(report.screen, String(t"stopped by {signal_name(signal)}{_what_now(run, args, saved)}"))
        return 128 + signal
    if failure:
        var ends = state.step >= steps and state.evaluated
        var what = "; all steps are done" if ends else String(t": stopped{_what_now(run, args, saved)}")
        complain(String(t"train_gpt2: standard output: cannot write: {failure}{what}"))
        return 1
    if state.step < steps:
        report.screen.line(
            String(
                t"stopped after step {state.step}: no lower validation loss in {state.bad_validations} validations; the"
                t" best was {state.best_loss.value()} after step {state.best_step}"
            )
        )
    if args.given("out"):
        report.screen.line(_what_next(run, args))
    return 0


def _what_now[dtype: DType, O: Optimizer, //](run: Trainer[dtype, O], args: Arguments, saved: Int) -> String:
    var text = String(t" after step {run.state.step} of {run.config.steps}; ")
    if args.given("out") and saved == run.state.step:
        return text + "go on with: " + resume_command(args)
    return text + "nothing was saved" + ("" if args.given("out") else ": no --out was given")


def _say_last(mut screen: Screen, text: String):
    """Says how a run has ended where a person sees it: the Ctrl-C that ended it has ended `tee` too."""
    screen.line(text)
    if screen.failure or (not screen.is_terminal and errors_are_seen()):
        complain(text)


def rescue[
    dtype: DType, O: Optimizer, //
](
    mut run: Trainer[dtype, O],
    questions: Optional[Choices],
    mut report: Report,
    keeping: Keeping,
    args: Arguments,
    saved: Int,
) -> String:
    """Saves the state after the last whole step, if it is the data that has failed; says what there is to go on from.
    """
    var data_failed = run.train_data.has_failed or run.val_data.has_failed
    data_failed = data_failed or (Bool(questions) and questions.value().file.has_failed)
    var step = run.state.step
    # Other ranks are in the midst of the step.
    if not data_failed or not args.given("out") or step == saved or run.replicas.ranks.size > 1:
        return _last_good(args, saved)
    if run.train_data.has_failed:
        run.rewind()
    try:
        report.before_saving()
        save_checkpoint(args.string("out"), run, keeping.keep, saves_bfloat16(args))
        return _last_good(args, step)
    except error:
        return String(t"; the state after step {step} could not be saved: {error}{_last_good(args, saved)}")


def _last_good(args: Arguments, saved: Int) -> String:
    """Says what is left after a step has failed."""
    if not args.given("out") or saved == 0:
        return "; no checkpoint was saved before"
    return String(
        t"\n{checkpoint_model(args.string('out'), saved)} is the last checkpoint; go on from there with:"
        t" {resume_command(args)}"
    )


def resume_command(args: Arguments) -> String:
    """Returns the command that goes on with this run; its settings are in the folder."""
    return _going_on(args.string("out"))


def save_elsewhere[
    dtype: DType, O: Optimizer, //
](mut run: Trainer[dtype, O], tokenizer: Optional[RunTokenizer], report: Report, args: Arguments) -> Error:
    """Saves a run whose folder is gone into a new one, and returns what there is to say about it."""
    var folder = args.string("out")
    var gone = String(t"save: the folder {folder} is gone, or another has its name")
    var name = String(basename(folder))
    for place in [folder, name, String("/tmp/") + name]:
        var path = _free_name(place + "-rescued")
        try:
            save_checkpoint(path, run, 0, saves_bfloat16(args), makes_folder=True)
            if tokenizer:
                tokenizer.value().keep(path, is_ours=True)
            report.copy_logs(path)
            save_settings(args, path, "", tokenizer.value().sha256 if tokenizer else Optional[String](None))
        except:
            continue
        return Error(
            t"{gone}; the run was saved as {checkpoint_model(path, run.state.step)} instead; go on with:"
            t" {_going_on(path)}"
        )
    return Error(t"{gone}; it could not be saved elsewhere either")


def _going_on(folder: String) -> String:
    var words = List[String]()
    var launch = launched()
    if launch and launch.value().size > 1:
        words.extend([String("mpiexec"), String("-n"), String(launch.value().size)])
    words.extend(own_program())
    words.extend([String("-o"), folder, "-y", "1"])
    return shell_command(words)


def note_what_is_kept(args: Arguments, saved: Int, screen: Screen):
    """Prepares what a second Ctrl-C, which ends the run at once, says: what is on the disk then."""
    # Behind the line that lives.
    var start = "\n" if screen.is_terminal else ""
    if not args.given("out"):
        note_last_words(start + "stopped at once; nothing was saved: no --out was given")
    elif saved == 0:
        note_last_words(start + "stopped at once; no checkpoint was saved yet")
    else:
        var last = checkpoint_model(args.string("out"), saved)
        note_last_words(
            String(t"{start}stopped at once; {last} is the last checkpoint; go on with: {resume_command(args)}")
        )


def _what_next[dtype: DType, O: Optimizer, //](run: Trainer[dtype, O], args: Arguments) -> String:
    """Says what can be done with a run that has come to its end."""
    ref state = run.state
    var text = String()
    var best = state.best_loss
    if best and state.best_step < state.step:
        var file = " (best.bin)" if exists(args.string("out") + "/best.bin") else ""
        text += String(
            t"the lowest validation loss was {fixed(Float64(best.value()), 4)} after step {state.best_step}{file}\n"
        )
    var out = args.string("out")
    var more = shell_command([String("-x"), String(2 * max(state.step, 1))])
    text += String(t"sample:  {shell_command(python_side() + ['sample', '-e', out])}\n")
    text += String(t"plot:    {shell_command(python_side() + ['plot', out])}\n")
    text += String(t"go on:   {resume_command(args)} {more}")
    return text^


def _free_name(name: String) -> String:
    var path = name
    var number = 2
    while exists(path):
        path = String(t"{name}-{number}")
        number += 1
    return path^
