"""`--max-minutes`: has the run take as many steps as fit, says so, and keeps what was decided in run.toml for a repetition."""

from std.time import perf_counter_ns

from llm.base.formatting import fixed, grouped
from llm.base.numbers import parse_integer
from llm.cli.arguments import Arguments
from llm.cli.report import Report
from llm.cli.settings import RUN_SETTINGS, change_settings
from llm.optim.optimizer import Optimizer
from llm.optim.schedule import Turn
from llm.train.config import TrainConfig
from llm.train.time_limit import TimeLimit
from llm.train.trainer import Trainer

comptime _USUAL_SHARE = 0.6
"""Share of the peak that steps of a model of some size reach."""
comptime _WORTH_SAYING = 0.2
"""Part by which the number of steps changes before the screen says so."""


def settle_steps(mut args: Arguments) raises:
    """Decides between --max-steps and --max-minutes: what is given as a flag counts more than what is in a file.

    Steps that another run has chosen by its time count unless one of the two is a flag.
    """
    if args.given_as_flag("max-steps") and args.given_as_flag("max-minutes") and args.float("max-minutes") > 0:
        args.fail("--max-minutes: it chooses the number of steps, which --max-steps gives; leave one of the two out")
    if args.given_as_flag("max-steps"):
        args.set("max-minutes", "0", "")
    var asks_anew = args.given_as_flag("max-steps") or (args.given_as_flag("max-minutes") and not _resumes(args))
    if asks_anew and not args.given_as_flag("step-plan"):
        args.set("step-plan", "", "")
    _ = _plan(args)


def _resumes(args: Arguments) -> Bool:
    return args.given("resume") and args.bool("resume")


def waits_for_steps(args: Arguments) -> Bool:
    """Tells whether the number of steps is to be chosen while the run goes on."""
    return args.float("max-minutes") > 0 and args.string("step-plan") == ""


def follow_plan(args: Arguments, mut training: TrainConfig, flops_a_step: Int, peak: Float64):
    """Takes the steps that were chosen; where that is still to be done, what a machine of such a peak is expected to do.
    """
    if waits_for_steps(args):
        var expected = 60 * args.float("max-minutes") * _USUAL_SHARE * peak / Float64(flops_a_step)
        training.steps = max(Int(min(expected, 1e9)), 1)
        training.schedule.wait()
        return
    for turn in _plan(args):
        training.schedule.turn(turn.step, turn.steps)
        training.steps = turn.steps


def _plan(args: Arguments) -> List[Turn]:
    """Reads what was chosen; what is no plan ends the program."""
    var turns = List[Turn]()
    var text = args.string("step-plan")
    if text == "":
        return turns^
    for part in text.split(","):
        var colon = part.find(":")
        var step = parse_integer(part[byte=:colon]) if colon > 0 else Optional[Int](None)
        var steps = parse_integer(part[byte = colon + 1 :]) if colon > 0 else Optional[Int](None)
        var after = turns[len(turns) - 1].step if len(turns) > 0 else 0
        if not (step and steps and after <= step.value() < steps.value() <= Int(Int32.MAX)):
            args.fail(
                String(
                    t"--step-plan: expected STEP:STEPS,STEP:STEPS.. as --max-minutes writes it to run.toml, got"
                    t" '{text}'"
                )
            )
            return turns^
        turns.append(Turn(step.value(), steps.value()))
    return turns^


struct Pace(Movable):
    """The clock of a run whose time is limited; of others it does nothing."""

    var _limit: Optional[TimeLimit]
    var _last: Int
    var _chosen: Bool
    var _said: Int
    """The number of steps that the screen has shown."""

    def __init__(out self, args: Arguments, start: Int):
        """Starts at the time when the program began."""
        self._limit = None
        self._last = start
        self._chosen = False
        self._said = 0
        if waits_for_steps(args):
            self._limit = TimeLimit(60 * args.float("max-minutes"), pause_every=_pause_every(args))

    def after_step[
        dtype: DType, O: Optimizer, //
    ](mut self, mut run: Trainer[dtype, O], mut args: Arguments, mut report: Report) raises:
        """Looks at the clock, and changes the number of steps if they would end at another time.

        Raises:
            If run.toml cannot be written.
        """
        if not self._limit:
            return
        var now = perf_counter_ns()
        var seconds = Float64(now - self._last) / 1e9
        self._last = now
        var step = run.state.step
        var every = _pause_every(args)
        var paused = every > 0 and (step - 1) % every == 0
        var steps = run.config.steps if self._chosen else 0
        var chosen = self._limit.value().after_step(step, steps, seconds, paused=paused)
        if not chosen:
            if not self._chosen:
                # What was expected may have been too little.
                run.config.steps = max(run.config.steps, step + 2)
            return
        self._chosen = True
        run.config.steps = chosen.value()
        run.config.schedule.turn(step, chosen.value())
        if Float64(abs(chosen.value() - self._said)) > _WORTH_SAYING * Float64(self._said):
            self._said = chosen.value()
            report.screen.line(
                String(
                    t"{grouped(chosen.value())} steps fit into {args.string('max-minutes')} minutes, after {step} of"
                    t" them"
                )
            )
        self._keep(run.config, args, report)

    def _keep(self, config: TrainConfig, mut args: Arguments, report: Report) raises:
        var plan = String()
        for turn in config.schedule.turns:
            plan += String(t"{',' if plan else ''}{turn.step}:{turn.steps}")
        args.set("step-plan", plan, "")
        args.set("max-steps", String(config.steps), "")
        if report.has_folder():
            change_settings(args.string("out") + "/" + RUN_SETTINGS, args, ["max-steps", "step-plan"])


def _pause_every(args: Arguments) -> Int:
    """Returns the steps between validations, samples or checkpoints, whichever come most often; 0: there are none."""
    var most_often = 0
    var saves = args.int("checkpoint-every") if args.given("checkpoint-every") else 0
    for every in [args.int("val-every"), args.int("sample-every"), saves]:
        if every > 0 and (most_often == 0 or every < most_often):
            most_often = every
    return most_often
