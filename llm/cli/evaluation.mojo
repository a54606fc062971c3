"""What a run does between its steps to see how good its model is: HellaSwag, validation, a sample; and it keeps the best."""

from std.time import perf_counter_ns

from llm.cli.arguments import Arguments
from llm.cli.keeping import Keeping, is_due, saves_bfloat16
from llm.cli.report import Report, Validation
from llm.cli.text_writer import generate
from llm.cli.ticker import Ticker
from llm.eval.choices import Choices, judge_together
from llm.eval.judgement import Accuracy, Judgement
from llm.model.checkpoints import write_checkpoint
from llm.optim.optimizer import Optimizer
from llm.text.tokenizer import Tokenizer
from llm.train.replicas import ANSWER
from llm.train.trainer import Trainer


def evaluate[
    dtype: DType, O: Optimizer, //
](
    mut run: Trainer[dtype, O],
    mut questions: Optional[Choices],
    tokenizer: Optional[Tokenizer],
    mut report: Report,
    mut keeping: Keeping,
    args: Arguments,
) raises -> Bool:
    """Makes the validation and the sample that are due after this step.

    Returns:
        False if the run has to stop, which was found out during the validation: then all of it is left to the resumed run.
    """
    var step = run.state.step
    var last = step >= run.config.steps
    if is_due(step, args.int("val-every"), last) and not _validate(run, questions, report, keeping, args):
        return False
    if tokenizer and step > 0 and is_due(step, args.int("sample-every"), last):
        report.screen.line("--- sample")
        var text = generate(run.model, run.state.sampler, tokenizer.value(), report.screen, args.int("gen-len"))
        report.screen.line("---")
        report.sample(step, text)
    return True


def _validate[
    dtype: DType, O: Optimizer, //
](
    mut run: Trainer[dtype, O],
    mut questions: Optional[Choices],
    mut report: Report,
    mut keeping: Keeping,
    args: Arguments,
) raises -> Bool:
    """Validates, and keeps the model as `best.bin` if it is the best so far and the run keeps that.

    Nothing is reported or kept of a validation that ends early: it is made again from its beginning.
    """
    var judgements = List[Judgement]()
    if questions:
        var limit = args.int("hellaswag-limit")
        run.replicas.lead(ANSWER, limit)
        judgements = judge_together(
            questions.value(), run.model, run.replicas.ranks, limit, Ticker("hellaswag", report.screen)
        )
        if report.stops():
            return False
    var loss = run.validate(Ticker("validation", report.screen))
    if not loss:
        return False
    var step = run.state.step
    var best = run.state.validated(loss.value())
    report.validation(Validation(step, loss.value(), best))
    if questions:
        var accuracy = Accuracy(judgements)
        report.hellaswag(step, accuracy.acc(), accuracy.acc_norm())
    # If the folder is gone, the run is saved elsewhere next.
    if best and step > 0 and report.has_folder() and keeping.best_is_due(Int(perf_counter_ns())):
        report.before_saving()
        write_checkpoint(args.string("out") + "/best.bin", run.model.config, run.model.params, saves_bfloat16(args))
    return True
