"""The engine as a library of C functions: models, optimizers, decoders, samplers and tokenizers for other languages.

Python's side is `pysrc/llm_mojo/engine.py`, which checks what it passes; any language that can call C can do the same. Every
function that can fail returns 0, or 1 with a text at `message` (4,096 bytes of the caller). Objects are addresses from a
`_new` function, which a `_free` function ends. Arrays are addresses of contiguous numbers that the caller owns; nothing keeps
them. An object is for one call at a time; different objects can work side by side. Nothing here prints, ends the process or
catches a signal.

    mojo build -I . --emit shared-lib python/llm_mojo_engine.mojo -o build/_engine.so
"""

from boundary import at, attempt, keep, release, text_at, tokens_at, view
from rounded import RoundedDecoder

from llm.base.random import mixed_seed
from llm.cli.plan import check_memory_to_evaluate
from llm.cpu.adamw import AdamWSettings
from llm.cpu.threads.cores import available_threads
from llm.infer.sampler import Sampler
from llm.model.checkpoints import load_parameters, read_config, write_checkpoint
from llm.model.config import GPT2Config
from llm.model.decoder import Decoder
from llm.model.gpt2 import GPT2
from llm.model.tensors import ParameterTensors
from llm.optim.adamw import AdamW
from llm.optim.chosen import ChosenOptimizer
from llm.optim.muon import Muon
from llm.text.tokenizer import Tokenizer

comptime F32 = DType.float32
comptime BF16 = DType.bfloat16
comptime I32 = DType.int32
comptime I64 = DType.int64
comptime U8 = DType.uint8


@export
def llm_threads() abi("C") -> Int:
    """Counts the threads that fit this machine and what the process may use of it."""
    return available_threads()


# ----- models


@export
def llm_read_config(path: Int, path_bytes: Int, sizes: Int, message: Int) abi("C") -> Int:
    """Writes max_seq_len, vocab_size, num_layers, num_heads, channels of a checkpoint to five int64."""

    def call() raises {imm}:
        var config = read_config(text_at(path, path_bytes))
        var found = [config.max_seq_len, config.vocab_size, config.num_layers, config.num_heads, config.channels]
        for i in range(5):
            view[I64](sizes, 5)[i] = Int64(found[i])

    return attempt(call, message)


@export
def llm_model_new(sizes: Int, bf16: Int, threads: Int, B: Int, T: Int, model: Int, message: Int) abi("C") -> Int:
    """Makes a model of these sizes (as of `llm_read_config`) with parameters of zero, and room for B x T tokens."""

    def call() raises {imm}:
        var config = _config(sizes)
        _check_memory(config, bf16, B, T, threads)
        if bf16 != 0:
            view[I64](model, 1)[0] = Int64(keep(GPT2[BF16](config^, threads, B, T)))
        else:
            view[I64](model, 1)[0] = Int64(keep(GPT2[F32](config^, threads, B, T)))

    return attempt(call, message)


@export
def llm_model_free(model: Int, bf16: Int) abi("C"):
    if bf16 != 0:
        release[GPT2[BF16]](model)
    else:
        release[GPT2[F32]](model)


@export
def llm_model_plan(model: Int, bf16: Int, B: Int, T: Int, message: Int) abi("C") -> Int:
    """Makes room for passes over B x T tokens; what the last pass left is gone."""

    def call() raises {imm}:
        if bf16 != 0:
            ref rounded = at[GPT2[BF16]](model)[]
            _check_memory(rounded.config, bf16, B, T, rounded.num_threads())
            rounded.plan(B, T)
        else:
            ref exact = at[GPT2[F32]](model)[]
            _check_memory(exact.config, bf16, B, T, exact.num_threads())
            exact.plan(B, T)

    return attempt(call, message)


@export
def llm_model_initialize(model: Int, bf16: Int, seed: Int, message: Int) abi("C") -> Int:
    """Sets the parameters to GPT-2's random initialisation."""

    def call() raises {imm}:
        if bf16 != 0:
            at[GPT2[BF16]](model)[].initialize(seed)
        else:
            at[GPT2[F32]](model)[].initialize(seed)

    return attempt(call, message)


@export
def llm_model_load(model: Int, bf16: Int, path: Int, path_bytes: Int, message: Int) abi("C") -> Int:
    """Reads the parameters of a checkpoint."""

    def call() raises {imm}:
        var name = text_at(path, path_bytes)
        if bf16 != 0:
            load_parameters(name, at[GPT2[BF16]](model)[])
        else:
            load_parameters(name, at[GPT2[F32]](model)[])

    return attempt(call, message)


@export
def llm_model_save(model: Int, bf16: Int, path: Int, path_bytes: Int, in_bfloat16: Int, message: Int) abi("C") -> Int:
    """Writes the parameters as a checkpoint."""

    def call() raises {imm}:
        var name = text_at(path, path_bytes)
        if bf16 != 0:
            ref bf16_model = at[GPT2[BF16]](model)[]
            write_checkpoint(name, bf16_model.config, bf16_model.params, in_bfloat16 != 0)
        else:
            ref fp32_model = at[GPT2[F32]](model)[]
            write_checkpoint(name, fp32_model.config, fp32_model.params, in_bfloat16 != 0)

    return attempt(call, message)


@export
def llm_model_tensor(model: Int, bf16: Int, of_gradients: Int, tensor: Int) abi("C") -> Int:
    """Returns where the float32 numbers of a tensor, in the order of llm.c's files, begin."""
    if bf16 != 0:
        ref bf16_model = at[GPT2[BF16]](model)[]
        return Int(bf16_model.grads[tensor].ptr if of_gradients != 0 else bf16_model.params[tensor].ptr)
    ref fp32_model = at[GPT2[F32]](model)[]
    return Int(fp32_model.grads[tensor].ptr if of_gradients != 0 else fp32_model.params[tensor].ptr)


@export
def llm_model_changed(model: Int, bf16: Int, message: Int) abi("C") -> Int:
    """Says that the caller has written parameters."""

    def written(params: ParameterTensors[F32]) raises {}:
        pass

    def call() raises {imm}:
        if bf16 != 0:
            at[GPT2[BF16]](model)[].write_parameters(written)
        else:
            at[GPT2[F32]](model)[].write_parameters(written)

    return attempt(call, message)


@export
def llm_model_forward(model: Int, bf16: Int, tokens: Int, B: Int, T: Int, message: Int) abi("C") -> Int:
    """Runs the blocks on int32 tokens (B,T)."""

    def call() raises {imm}:
        var batch = view[I32](tokens, B * T)
        if bf16 != 0:
            at[GPT2[BF16]](model)[].forward(batch, B, T)
        else:
            at[GPT2[F32]](model)[].forward(batch, B, T)

    return attempt(call, message)


@export
def llm_model_logits(
    model: Int, bf16: Int, first_row: Int, rows: Int, logits: Int, size: Int, message: Int
) abi("C") -> Int:
    """Writes the float32 logits (rows,V) of positions of the last forward pass."""

    def call() raises {imm}:
        var output = view[F32](logits, size)
        if bf16 != 0:
            at[GPT2[BF16]](model)[].logits(first_row, rows, output)
        else:
            at[GPT2[F32]](model)[].logits(first_row, rows, output)

    return attempt(call, message)


@export
def llm_model_losses(model: Int, bf16: Int, targets: Int, losses: Int, size: Int, message: Int) abi("C") -> Int:
    """Writes the cross entropy at each position of the last forward pass; zero where the target is negative."""

    def call() raises {imm}:
        var wanted = view[I32](targets, size)
        var found = at[GPT2[BF16]](model)[].losses(wanted) if bf16 != 0 else at[GPT2[F32]](model)[].losses(wanted)
        for i in range(size):
            view[F32](losses, size)[i] = found[i]

    return attempt(call, message)


@export
def llm_model_loss(model: Int, bf16: Int, targets: Int, size: Int, loss: Int, message: Int) abi("C") -> Int:
    """Writes the mean cross entropy of the last forward pass, a float32."""

    def call() raises {imm}:
        var wanted = view[I32](targets, size)
        var found = at[GPT2[BF16]](model)[].loss(wanted) if bf16 != 0 else at[GPT2[F32]](model)[].loss(wanted)
        view[F32](loss, 1)[0] = found

    return attempt(call, message)


@export
def llm_model_backward(
    model: Int, bf16: Int, targets: Int, size: Int, accumulate: Int, weight: Float32, loss: Int, message: Int
) abi("C") -> Int:
    """Computes the gradients of weight * loss of the last forward pass, or adds them; writes the loss, a float32."""

    def call() raises {imm}:
        var wanted = view[I32](targets, size)
        var adds = accumulate != 0
        var found = at[GPT2[BF16]](model)[].backward(wanted, adds, weight) if bf16 != 0 else at[GPT2[F32]](
            model
        )[].backward(wanted, adds, weight)
        view[F32](loss, 1)[0] = found

    return attempt(call, message)


@export
def llm_model_gradient_norm(model: Int, bf16: Int, norm: Int, message: Int) abi("C") -> Int:
    """Writes the norm of the gradient over all tensors, a float32."""

    def call() raises {imm}:
        var found = at[GPT2[BF16]](model)[].gradient_norm() if bf16 != 0 else at[GPT2[F32]](model)[].gradient_norm()
        view[F32](norm, 1)[0] = found

    return attempt(call, message)


@export
def llm_model_hidden_state(model: Int, bf16: Int, l: Int, output: Int, size: Int, message: Int) abi("C") -> Int:
    """Writes the residual stream (B,T,C) that goes into block l, or with l = L comes out of the last."""

    def call() raises {imm}:
        var found = at[GPT2[BF16]](model)[].hidden_state(l) if bf16 != 0 else at[GPT2[F32]](model)[].hidden_state(l)
        if found.size != size:
            raise Error(t"hidden_state: expected room for {found.size} numbers, found {size}")
        for i in range(size):
            view[F32](output, size)[i] = found[i]

    return attempt(call, message)


@export
def llm_model_attention(model: Int, bf16: Int, b: Int, l: Int, output: Int, size: Int, message: Int) abi("C") -> Int:
    """Writes which positions those of sequence b look at in block l: probabilities (NH,T,T)."""

    def call() raises {imm}:
        if bf16 != 0:
            at[GPT2[BF16]](model)[].attention(b, l, view[F32](output, size))
        else:
            at[GPT2[F32]](model)[].attention(b, l, view[F32](output, size))

    return attempt(call, message)


# ----- optimizers


@export
def llm_optimizer_new(
    sizes: Int,
    beta1: Float32,
    beta2: Float32,
    eps: Float32,
    weight_decay: Float32,
    decay_all: Int,
    muon_rate: Float32,
    optimizer: Int,
    message: Int,
) abi("C") -> Int:
    """Makes AdamW for models of these sizes, with m and v of zero.

    muon_rate above 0: Muon for the matrices of the blocks, with a learning rate of so many times AdamW's.
    """

    def call() raises {imm}:
        var settings = AdamWSettings(beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay)
        var adamw = AdamW(_config(sizes), settings, decay_all=decay_all != 0)
        if muon_rate > 0:
            var muon = Muon(_config(sizes), weight_decay)
            view[I64](optimizer, 1)[0] = Int64(keep(ChosenOptimizer(adamw^, muon^, muon_rate=muon_rate)))
        else:
            view[I64](optimizer, 1)[0] = Int64(keep(ChosenOptimizer(adamw^)))

    return attempt(call, message)


@export
def llm_optimizer_free(optimizer: Int) abi("C"):
    release[ChosenOptimizer](optimizer)


@export
def llm_optimizer_update(
    optimizer: Int,
    model: Int,
    bf16: Int,
    step: Int,
    learning_rate: Float32,
    grad_scale: Float32,
    norm: Int,
    message: Int,
) abi("C") -> Int:
    """Changes a model's parameters by its gradients times grad_scale; writes their norm before that, a float32."""

    def call() raises {imm}:
        ref chosen = at[ChosenOptimizer](optimizer)[]
        chosen.prepare(step=step, learning_rate=learning_rate, grad_scale=grad_scale)
        var found = at[GPT2[BF16]](model)[].update(chosen) if bf16 != 0 else at[GPT2[F32]](model)[].update(chosen)
        view[F32](norm, 1)[0] = found

    return attempt(call, message)


# ----- writing text


@export
def llm_decoder_new(
    model: Int, bf16: Int, threads: Int, texts: Int, context: Int, decoder: Int, message: Int
) abi("C") -> Int:
    """Makes a decoder for so many texts side by side; it reads the model's parameters, and must end before it."""

    def call() raises {imm}:
        if bf16 != 0:
            ref rounded = at[GPT2[BF16]](model)[]
            var made = RoundedDecoder(rounded.config, rounded.params, threads, texts=texts, context=context)
            view[I64](decoder, 1)[0] = Int64(keep(made^))
        else:
            ref exact = at[GPT2[F32]](model)[]
            var made = Decoder[F32](exact.config, exact.params, threads, texts=texts, context=context)
            view[I64](decoder, 1)[0] = Int64(keep(made^))

    return attempt(call, message)


@export
def llm_decoder_free(decoder: Int, bf16: Int) abi("C"):
    if bf16 != 0:
        release[RoundedDecoder](decoder)
    else:
        release[Decoder[F32]](decoder)


@export
def llm_decoder_begin(
    decoder: Int, bf16: Int, text: Int, tokens: Int, size: Int, restarts: Int, message: Int
) abi("C") -> Int:
    """Forgets a text and reads the beginning of the next one in its place; `restarts`: what a text goes on from."""

    def call() raises {imm}:
        var read = tokens_at(tokens, size)
        if bf16 != 0:
            _begin(at[RoundedDecoder](decoder)[].decoder, text, read, restarts != 0)
        else:
            _begin(at[Decoder[F32]](decoder)[], text, read, restarts != 0)

    return attempt(call, message)


@export
def llm_decoder_end(decoder: Int, bf16: Int, text: Int, message: Int) abi("C") -> Int:
    """Forgets a text."""

    def call() raises {imm}:
        if bf16 != 0:
            at[RoundedDecoder](decoder)[].decoder.end(text)
        else:
            at[Decoder[F32]](decoder)[].end(text)

    return attempt(call, message)


@export
def llm_decoder_step(
    decoder: Int, bf16: Int, tokens: Int, texts: Int, size: Int, logits: Int, message: Int
) abi("C") -> Int:
    """Appends tokens[i] to texts[i], both int32; writes where the float32 logits (size,V) of what follows are."""

    def call() raises {imm}:
        var numbers = List[Int](capacity=size)
        for text in tokens_at(texts, size):
            numbers.append(Int(text))
        var appended = tokens_at(tokens, size)
        var found: Int
        if bf16 != 0:
            ref rounded = at[RoundedDecoder](decoder)[].decoder
            rounded.step(appended, numbers)
            found = Int(rounded.logits.ptr)
        else:
            ref exact = at[Decoder[F32]](decoder)[]
            exact.step(appended, numbers)
            found = Int(exact.logits.ptr)
        view[I64](logits, 1)[0] = Int64(found)

    return attempt(call, message)


@export
def llm_sampler_new(
    seed: Int, temperature: Float64, top_k: Int, top_p: Float64, sampler: Int, message: Int
) abi("C") -> Int:
    """Makes a sampler, which draws as `sample_gpt2 --seed` does."""

    def call() raises {imm}:
        var made = Sampler(seed=mixed_seed(seed), temperature=temperature, top_k=top_k, top_p=top_p)
        view[I64](sampler, 1)[0] = Int64(keep(made^))

    return attempt(call, message)


@export
def llm_sampler_free(sampler: Int) abi("C"):
    release[Sampler](sampler)


@export
def llm_sampler_draw(sampler: Int, logits: Int, V: Int, token: Int, message: Int) abi("C") -> Int:
    """Draws a token from V float32 logits; writes an int64."""

    def call() raises {imm}:
        view[I64](token, 1)[0] = Int64(at[Sampler](sampler)[].sample(view[F32](logits, V)))

    return attempt(call, message)


# ----- tokenizers


@export
def llm_tokenizer_new(path: Int, path_bytes: Int, tokenizer: Int, sizes: Int, message: Int) abi("C") -> Int:
    """Opens a tokenizer file; writes the size of its vocabulary and the end-of-text token (or -1), two int64."""

    def call() raises {imm}:
        var opened = Tokenizer(text_at(path, path_bytes))
        view[I64](sizes, 2)[0] = Int64(opened.vocab_size)
        view[I64](sizes, 2)[1] = Int64(opened.end_of_text)
        view[I64](tokenizer, 1)[0] = Int64(keep(opened^))

    return attempt(call, message)


@export
def llm_tokenizer_free(tokenizer: Int) abi("C"):
    release[Tokenizer](tokenizer)


@export
def llm_tokenizer_encode(
    tokenizer: Int, text: Int, text_bytes: Int, allow_special: Int, tokens: Int, size: Int, message: Int
) abi("C") -> Int:
    """Writes the int32 tokens of a text, of which there are at most as many as bytes, and their number, an int64."""

    def call() raises {imm}:
        var bytes = view[U8](text, text_bytes).span()
        var found = at[Tokenizer](tokenizer)[].encode(bytes, allow_special=allow_special != 0)
        for i in range(len(found)):
            view[I32](tokens, text_bytes)[i] = found[i]
        view[I64](size, 1)[0] = Int64(len(found))

    return attempt(call, message)


# ----- behind the functions


def _config(sizes: Int) raises -> GPT2Config:
    var given = view[I64](sizes, 5)
    return GPT2Config(
        max_seq_len=Int(given[0]),
        vocab_size=Int(given[1]),
        num_layers=Int(given[2]),
        num_heads=Int(given[3]),
        channels=Int(given[4]),
    )


def _check_memory(config: GPT2Config, bf16: Int, B: Int, T: Int, threads: Int) raises:
    if T <= config.max_seq_len:
        if bf16 != 0:
            check_memory_to_evaluate[BF16](config, B, T, threads)
        else:
            check_memory_to_evaluate[F32](config, B, T, threads)


def _begin[dtype: DType](mut decoder: Decoder[dtype], text: Int, tokens: List[Int32], restarts: Bool) raises:
    if restarts:
        decoder.restart(text, tokens)
    else:
        decoder.begin(text, tokens)
