"""Why a run ends, and how to go on with it."""

from std.sys import argv

from llm.cli.arguments import Arguments
from llm.cli.report import Report
from llm.cli.signals import signal_name, stop_signal
from llm.optim.optimizer import Optimizer
from llm.train.run_folder import checkpoint_model
from llm.train.trainer import Trainer


def out_of_patience[dtype: DType, O: Optimizer, //](run: Trainer[dtype, O], args: Arguments) -> Bool:
    """Tells whether too many validations have brought nothing."""
    return args.int("patience") > 0 and run.state.bad_validations >= args.int("patience")


def farewell[
    dtype: DType, O: Optimizer, //
](run: Trainer[dtype, O], mut report: Report, args: Arguments, saved: Int) -> Int:
    """Says why the run ends and how to go on, and returns the exit status."""
    var signal = stop_signal()
    ref state = run.state
    var steps = run.config.steps
    # A signal that comes when all is done, to the last validation, stops nothing.
    if signal != 0 and (state.step < steps or not state.evaluated):
        var text = String(t"stopped by {signal_name(signal)} after step {state.step} of {steps}; ")
        if args.given("out") and saved == state.step:
            report.screen.line(text + "go on with: " + _resume_command(args))
        else:
            report.screen.line(text + "nothing was saved" + ("" if args.given("out") else ": no --out was given"))
        return 128 + signal
    if state.step < steps:
        report.screen.line(
            String(
                t"stopped after step {state.step}: no lower validation loss in {state.bad_validations} validations; the"
                t" best was {state.best_loss.value()} after step {state.best_step}"
            )
        )
    return 0


def last_good(args: Arguments, saved: Int) -> String:
    """Says what is left after a step has failed."""
    if not args.given("out") or saved == 0:
        return "; no checkpoint was saved before"
    return String(
        t"\n{checkpoint_model(args.string('out'), saved)} is the last checkpoint; go on from there with:"
        t" {_resume_command(args)}"
    )


def _resume_command(args: Arguments) -> String:
    """Returns the command that goes on with this run; its settings are in the folder."""
    return String(t"{argv()[0]} -o {args.string('out')} -y 1")
