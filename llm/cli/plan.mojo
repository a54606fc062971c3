"""What a run would take: `--dry-run`; and what it does take, printed at its start."""

from llm.base.cgroup import available_memory
from llm.base.formatting import aligned, duration, fixed, grouped
from llm.cli.arguments import Arguments
from llm.cli.setup import initial_checkpoint, starts_at_random, tokenizer_path
from llm.cpu.gemm import HAS_BF16_DOT
from llm.cpu.peak import measured_peak
from llm.data.loader import DataLoader
from llm.model.activations import ActivationSizes, activation_bytes
from llm.model.config import GPT2Config
from llm.model.decoder import scratch_bytes
from llm.model.gpt2 import GPT2
from llm.model.kv_cache import cache_bytes
from llm.model.tensors import num_parameters, parameter_bytes, rounded_weight_bytes
from llm.train.config import TrainConfig
from llm.train.run_folder import checkpoint_model

comptime F32 = DType.float32
comptime _USUAL_SHARE = 0.6
"""Share of the peak that steps of a model of some size reach."""


@fieldwise_init
struct Sharing(Copyable, Movable):
    """What a rank has of a run."""

    var replicas: Int
    var ranks: Int
    var state: Int
    """Into how many shares the optimizer's state is parted."""
    var sums: Int
    """Sums of gradients that wait for those of other replicas of this rank."""

    def __init__(out self, replicas: Int, ranks: Int, *, shards_state: Bool):
        """Of so many replicas on so many ranks."""
        self.replicas = replicas
        self.ranks = ranks
        self.state = ranks if shards_state else 1
        self.sums = 0
        while (2 << self.sums) <= replicas // ranks or (1 << self.sums) < replicas // ranks:
            self.sums += 1

    def parameters_bytes(self, arena: Int) -> Int:
        """Counts the bytes of parameters, gradients and the optimizer's state, of so many each."""
        return (2 + self.sums) * arena + 2 * arena // self.state


def plan[
    dtype: DType
](
    training: TrainConfig, config: GPT2Config, B: Int, T: Int, threads: Int, sharing: Sharing, *, recompute: Bool
) raises -> String:
    """Describes model, memory, work and time of a run over B sequences of T tokens, without reserving anything.

    Raises:
        If the context is longer than the model's.
    """
    _check_context(config, T)
    var arena = parameter_bytes[F32](config)
    var copies = rounded_weight_bytes[dtype](config)
    var activations = activation_bytes[dtype](ActivationSizes(config.copy(), B, T, threads, recompute))
    var otherwise = activation_bytes[dtype](ActivationSizes(config.copy(), B, T, threads, not recompute))
    var needed = sharing.parameters_bytes(arena) + copies + activations
    var fits = String("as it is")
    if needed > available_memory():
        fits = "not; use " + _ways_to_fit[dtype](config, B, T, training.passes, threads, sharing, recompute)
    var tokens = training.all_passes() * B * T
    var replicas = String(t" x {training.replicas} replicas") if training.replicas > 1 else String()
    var flops = tokens * config.flops_per_token(T)
    var peak = measured_peak[dtype](threads)
    var share = String(t" (1/{sharing.state} of it)") if sharing.state > 1 else String()
    var seconds = Float64(flops) / Float64(sharing.ranks) / (_USUAL_SHARE * peak)
    return aligned(
        [
            (String("model"), _sizes(config)),
            (String("parameters"), grouped(num_parameters(config))),
            (String("step"), String(t"{training.passes}{replicas} x B={B} x T={T} = {grouped(tokens)} tokens")),
            (
                String("work"),
                String(t"{fixed(Float64(flops) / 1e9, 1)} GFLOP per step, {grouped(training.steps)} steps"),
            ),
            (
                String("memory"),
                String(
                    t"{megabytes(needed)}: parameters {megabytes(arena + copies)}, gradients"
                    t" {megabytes((1 + sharing.sums) * arena)}, AdamW {megabytes(2 * arena // sharing.state)}{share},"
                    t" activations {megabytes(activations)} (this machine, or its container, has"
                    t" {megabytes(available_memory())})"
                ),
            ),
            (
                String("recompute"),
                String(
                    t"with --recompute {0 if recompute else 1} {megabytes(needed - activations + otherwise)},"
                    t" activations {megabytes(otherwise)}"
                ),
            ),
            (String("fits"), fits),
            (String("checkpoint"), String(t"{megabytes(12 * num_parameters(config))} on the disk")),
            (String("peak"), String(t"{fixed(peak / 1e9, 0)} GFLOP/s measured on {threads} threads")),
            (
                String("time"),
                String(
                    t"about {fixed(1000 * seconds, 1)} ms per step and {duration(seconds * Float64(training.steps))} in"
                    t" all, at {fixed(100 * _USUAL_SHARE, 0)}% of the peak; validations and samples come on top"
                ),
            ),
        ]
    )


def check_memory[
    dtype: DType
](config: GPT2Config, B: Int, T: Int, passes: Int, threads: Int, sharing: Sharing, *, recompute: Bool) raises:
    """Raises if a run needs more memory than there is, which would bring the machine to a halt before it failed."""
    _check_context(config, T)
    var needed = _bytes_to_train[dtype](config, B, T, threads, sharing, recompute)
    if needed > available_memory():
        var ways = _ways_to_fit[dtype](config, B, T, passes, threads, sharing, recompute)
        _check_fits("the run", needed, ways + " (--dry-run shows what each takes)")


def _bytes_to_train[
    dtype: DType
](config: GPT2Config, B: Int, T: Int, threads: Int, sharing: Sharing, recompute: Bool) raises -> Int:
    var activations = activation_bytes[dtype](ActivationSizes(config.copy(), B, T, threads, recompute))
    return sharing.parameters_bytes(parameter_bytes[F32](config)) + rounded_weight_bytes[dtype](config) + activations


def _ways_to_fit[
    dtype: DType
](config: GPT2Config, B: Int, T: Int, passes: Int, threads: Int, sharing: Sharing, recompute: Bool) raises -> String:
    """Names the changes after which a run that does not fit does, the ones that leave its steps what they are first."""
    var available = available_memory()
    var ways = List[String]()
    var total = sharing.replicas * passes * B * T
    for recomputes in range(Int(recompute), 2):
        # Parts of B, in which a step of as many tokens goes through the model in more passes.
        for part in range(B, 0, -1):
            if B % part != 0:
                continue
            var needed = _bytes_to_train[dtype](config, part, T, threads, sharing, Bool(recomputes))
            if needed > available:
                continue
            var flags = List[String]()
            if Bool(recomputes) != recompute:
                flags.append("--recompute 1")
            if part != B:
                flags.append(String(t"--batch-size {part} --total-batch-size {total}"))
            ways.append(String(t"{String(' ').join(flags)} ({megabytes(needed)})"))
            break
    if len(ways) == 0:
        ways.append("a smaller --seq-len or model")
    return String(", or ").join(ways)


def check_memory_to_evaluate[dtype: DType](config: GPT2Config, B: Int, T: Int, threads: Int) raises:
    """Raises if passes without gradients over B sequences of T tokens need more memory than there is."""
    var needed = parameter_bytes[F32](config) + rounded_weight_bytes[dtype](config)
    needed += activation_bytes[dtype](ActivationSizes(config.copy(), B, T, threads, recompute=False))
    _check_fits("the evaluation", needed, "a smaller --seq-len or model")


def check_memory_to_write[
    dtype: DType
](config: GPT2Config, threads: Int, texts: Int, *, prompt: Int, count: Int) raises:
    """Raises if so many texts of `count` tokens after a prompt need more memory than there is.

    A decoder reserves room for whole contexts, which costs nothing where texts do not reach.
    """
    var prompt_positions = max(min(prompt, config.max_seq_len), 1)
    var needed = parameter_bytes[dtype](config) + cache_bytes(config, 1, prompt_positions)
    needed += cache_bytes(config, texts, max(min(count, config.max_seq_len), 1))
    needed += scratch_bytes(config, prompt_positions, texts, threads)
    _check_fits("writing", needed, "a smaller --num-samples, --num-tokens or model, or --dtype bf16")


def _check_fits(what: String, needed: Int, advice: String) raises:
    if needed > available_memory():
        raise Error(
            t"memory: {what} needs {megabytes(needed)}, this machine, or its container, has"
            t" {megabytes(available_memory())}; use {advice}"
        )


def _check_context(config: GPT2Config, T: Int) raises:
    if T > config.max_seq_len:
        raise Error(
            t"model: T={T} but this model takes T from 1 to {config.max_seq_len} (rows of wpe);"
            t" use --seq-len {config.max_seq_len} or less"
        )


def settings_in_use(
    args: Arguments,
    training: TrainConfig,
    config: GPT2Config,
    data: DataLoader,
    threads: Int,
    resumed: Optional[Int],
    *,
    only_changed: Bool,
) raises -> String:
    """Lists all settings, a line each, or in a sentence those that are not the defaults: where a value stands for something
    that is found out, that.

    Raises:
        If a published model that the run would start from is not here.
    """
    var start = String("random")
    if resumed:
        start = checkpoint_model(args.string("out"), resumed.value())
    elif not starts_at_random(args):
        start = initial_checkpoint(args)
    var found: List[Tuple[String, String]] = [
        ("tokenizer", tokenizer_path(args).or_else("none")),
        ("init", start),
        ("n-layer", String(config.num_layers)),
        ("n-head", String(config.num_heads)),
        ("n-embd", String(config.channels)),
        ("block-size", String(config.max_seq_len)),
        ("vocab-size", String(config.vocab_size)),
        ("total-batch-size", String(training.all_passes() * data.B * data.T)),
        ("max-steps", String(training.steps)),
        ("threads", String(threads)),
    ]
    var rows = List[Tuple[String, String]]()
    var all = args.settings()
    for i, option in enumerate(args.options):
        if not only_changed or args.is_changed(option.name):
            rows.append((all[i][0], all[i][1]))
    for ref row in rows:
        for ref each in found:
            if row[0] == each[0]:
                row[1] = each[1]
    if not only_changed:
        return aligned(rows)
    var pairs = List[String]()
    for ref row in rows:
        pairs.append(row[0] if row[1] == "on" else row[0] + " " + row[1])
    return String("settings    ") + String(", ").join(pairs) + "\n" if len(pairs) > 0 else ""


def describe[
    dtype: DType, //
](
    args: Arguments, model: GPT2[dtype], train_data: DataLoader, val_data: DataLoader, threads: Int, sharing: Sharing
) raises -> String:
    """Describes what a run has reserved and opened."""
    ref config = model.config
    var validation = "no validation"
    if args.int("val-every") > 0:
        validation = grouped(val_data.num_tokens) + " for validation"
    var share = String(t" (1/{sharing.state} of its state)") if sharing.state > 1 else String()
    return String(
        t"model       {_sizes(config)}: {grouped(num_parameters(config))} parameters\nmemory     "
        t" {megabytes(sharing.parameters_bytes(parameter_bytes[F32](config)) + rounded_weight_bytes[dtype](config))} for"
        t" parameters, gradients and AdamW{share}, {megabytes(model.acts.num_bytes)} for activations\ndata       "
        t" {grouped(train_data.num_tokens)} training tokens, {validation}\nthreads     {threads}\nproducts   "
        t" {_products[dtype]()}\n"
    )


def _products[dtype: DType]() -> String:
    comptime if dtype == F32:
        return "fp32"
    elif HAS_BF16_DOT:
        return "bf16, in pairs by the processor's dot products, summed in fp32"
    else:
        return (
            "bf16, widened to fp32: this processor has no dot products of bf16 (AVX512_BF16), so it is no faster than"
            " --dtype fp32 and saves only memory"
        )


def _sizes(config: GPT2Config) -> String:
    return String(
        t"{config.num_layers} layers, {config.num_heads} heads, {config.channels} wide, vocabulary"
        t" {grouped(config.vocab_size)}, context {grouped(config.max_seq_len)}"
    )


def megabytes(bytes: Int) -> String:
    """Writes a number of bytes in MB."""
    if bytes < 1_000_000:
        return fixed(Float64(bytes) / 1e6, 1) + " MB"
    return grouped((bytes + 500_000) // 1_000_000) + " MB"
