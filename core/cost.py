"""What a run will take: seconds and memory, from the model's shape, the rows' lengths and a machine's measured rates.

Pure arithmetic; knows no torch, no database and no file. A frozen matrix costs 4 operations a parameter and token, the
head 4 a vocabulary entry, channel and learned token; the rest is what goes over memory, and a price for each operation.
``make bench-estimate`` holds it against real runs (docs/benchmarks.md).
"""

import math
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from core.options import LOW_RANK, OWN_WEIGHTS, Adapter, Precision
from core.resolved import Resolved

_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_HELD = {"fp32": 4, "bf16": 2, "fp16": 4}
"""Bytes of a number that is computed, and of one of the base model's weights, by precision."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Linear(_Record):
    """Matrices of one name in all layers: what an adapter may be put on."""

    name: str
    count: int
    inputs: int
    outputs: int


TOGETHER = 512
"""Tokens that a processor wants in a matrix: fewer are slower, more cost memory and are no quicker. Packed rows are
together up to this many; a longer row goes alone."""


def rounded(tokens: int) -> int:
    """Up to one of eight sizes from a power of two to the next: where each size costs something, there are few."""
    step: int = max(16, 1 << max(0, (tokens - 1).bit_length() - 4))
    return -(-tokens // step) * step


class Shape(_Record):
    """The numbers of an architecture that decide what it costs."""

    parameters: int
    layers: int
    hidden_size: int
    vocab_size: int
    attention_width: int
    """Heads times their size: what a query has in a layer."""
    key_width: int
    """The same of a key, fewer where heads share keys."""
    feed_forward: int
    heads: int
    window: int | None = None
    """Tokens that the layers of a sliding window see; their attention is another, dearer one for longer rows."""
    windowed: int = 0
    """Layers of a sliding window"""
    packs: bool = False
    """Whether tokens meet in attention alone, so that rows which follow one another in a sequence can be kept apart."""
    linears: list[Linear]

    @property
    def body(self) -> int:
        """Parameters of the layers' matrices: embeddings and head are not among them."""
        return sum(one.count * one.inputs * one.outputs for one in self.linears)

    def adapted(self, rank: int, targets: Literal["all-linear"] | Sequence[str]) -> "Trained":
        chosen = [one for one in self.linears if targets == "all-linear" or one.name in targets]
        return Trained(
            parameters=sum(one.count * rank * (one.inputs + one.outputs) for one in chosen),
            matrices=sum(one.count for one in chosen),
            outputs=sum(one.count * one.outputs for one in chosen),
        )

    def scaled(self) -> "Trained":
        """IA3: a factor for each key and value, and for each number between the feed-forward part's two halves."""
        parameters = self.layers * (2 * self.key_width + self.feed_forward)
        return Trained(parameters, 3 * self.layers, parameters)


class Trained(NamedTuple):
    """What a plan trains: an adapter, or the model's own weights."""

    parameters: int
    matrices: int
    """Modules that it is in"""
    outputs: int
    """What an adapter's modules put out for one token, in numbers: they are kept beside the model's own."""
    own: float = 0.0
    """Share of the layers whose own weights are trained; with all of them, embeddings and head are too."""


class Machine(_Record):
    """What a train worker measured of itself when it started (``worker/train/measure.py``), for one of its slots."""

    flops: dict[Precision, float]
    """Multiplications and additions a second in a matrix product of a few hundred tokens, by each precision that it
    has instructions for."""
    bytes_per_second: float
    """Read and written, in one pass over numbers that are in no cache."""
    op_seconds: float
    """One operation on a few numbers, forward and backward together: what is paid for each whatever its size."""
    resident_bytes: int
    """Memory of an idle trainer on the device: libraries on a processor, the context on an accelerator."""
    kernel_bytes: int = 0
    """For each size of micro-batches that is met, where kernels are compiled"""
    four_bits: bool = True
    """Whether it can hold and use a base model in four bits."""

    def better(self, other: "Machine | None") -> "Machine":
        """The best of two measurements: what else ran meanwhile made one worse, nothing made one better."""
        if other is None:
            return self
        return Machine(
            flops={name: max(rate, other.flops.get(name, 0.0)) for name, rate in self.flops.items()},
            bytes_per_second=max(self.bytes_per_second, other.bytes_per_second),
            op_seconds=min(self.op_seconds, other.op_seconds),
            resident_bytes=min(self.resident_bytes, other.resident_bytes),
            kernel_bytes=max(self.kernel_bytes, other.kernel_bytes),
            four_bits=self.four_bits or other.four_bits,
        )


class Plan(_Record):
    """The choices of a job that decide what it costs; the names of ``core.resolved.Resolved``."""

    adapter: Adapter = "lora"
    rank: int = 0
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    layers: int | None = None
    """How many layers are trained or adapted, the last ones; None: all."""
    virtual_tokens: int = 0
    prompt_loss_weight: float
    total_steps: int
    steps_per_epoch: int
    batch_size: int
    micro_batch_size: int
    packed: bool = False
    """A micro-batch's rows follow one another; :data:`TOGETHER` tokens at most, where more than one row has them."""
    max_length: int
    precision: Precision = "fp32"
    gradient_checkpointing: bool = False
    evaluations: int = 0
    scorings: int = 0
    """Passes over the training rows without a gradient, before and between steps: a preference loss has a reference."""
    finding: bool = False
    """A learning rate is looked for before the first step."""

    @classmethod
    def of(cls, resolved: Resolved, *, steps_per_epoch: int, **other: int) -> "Plan":
        """The plan of a job; ``other``: fields that the job's options alone don't tell."""
        peft = resolved.peft
        choices = {
            "adapter": resolved.adapter,
            # Another kind of PEFT is reckoned as LoRA of its rank.
            "rank": resolved.lora.rank if resolved.lora else int(peft.get("r", 8)) if peft else 0,
            "target_modules": resolved.lora.target_modules if resolved.lora else "all-linear",
            "layers": None if resolved.layers is None else len(resolved.layers),
            "virtual_tokens": resolved.prompt.virtual_tokens if resolved.prompt else 0,
            "prompt_loss_weight": resolved.prompt_loss_weight,
            "total_steps": resolved.total_steps,
            "steps_per_epoch": steps_per_epoch,
            "batch_size": resolved.batch_size,
            "micro_batch_size": resolved.micro_batch_size,
            "packed": resolved.packing,
            "max_length": resolved.max_length,
            "precision": resolved.precision,
            "gradient_checkpointing": resolved.gradient_checkpointing,
            "finding": resolved.optim.find,
        }
        return cls.model_validate(choices | other)

    @property
    def own_weights(self) -> bool:
        return self.adapter in OWN_WEIGHTS


def trained(shape: Shape, plan: Plan) -> Trained:
    share = 1.0 if plan.layers is None else min(1.0, plan.layers / shape.layers)
    match plan.adapter:
        case "full":
            return Trained(shape.parameters, sum(one.count for one in shape.linears), 0, own=1.0)
        case "layers":
            matrices = sum(one.count for one in shape.linears)
            return Trained(round(share * shape.body), round(share * matrices), 0, own=share)
        case "ia3":
            return shape.scaled()
        case "prompt":
            return Trained(plan.virtual_tokens * shape.hidden_size, 1, 0)
        case "prefix":
            return Trained(plan.virtual_tokens * 2 * shape.layers * shape.key_width, 1, 0)
        case "lora" | "qlora" | "peft":
            whole = shape.adapted(plan.rank, plan.target_modules)
            return Trained(*(round(share * one) for one in whole[:3]))


class Sample(_Record):
    """Rows drawn evenly from all of a file, in the file's order: enough to know how long batches are."""

    rows: int
    """Rows in the file."""
    sizes: list[tuple[int, int]]
    """(tokens, completion tokens with a weight) of the drawn ones"""
    longest: tuple[int, int] = (0, 0)
    """The file's longest row, which decides the memory."""

    def cut(self, length: int) -> "Sample":
        """The same rows with at most ``length`` tokens: a longer row loses from its prompt first."""
        return Sample(
            rows=self.rows,
            sizes=[(min(tokens, length), min(completion, length)) for tokens, completion in self.sizes],
            longest=(min(self.longest[0], length), min(self.longest[1], length)),
        )


class Micro(NamedTuple):
    """What goes through the layers at once."""

    tokens: int
    """With those that shorter rows are padded with, where they lie side by side"""
    squares: int
    """Of the tokens of each row, added up: pairs that attention looks at"""
    longest: int
    learned: int
    """Tokens with a loss."""

    @classmethod
    def beside(cls, rows: int, width: int, learned: int) -> "Micro":
        """Rows side by side, padded to ``width``."""
        return cls(rows * width, rows * width**2, width, learned)

    @classmethod
    def packed(cls, lengths: Sequence[int], learned: int) -> "Micro":
        """Rows one after another."""
        return cls(sum(lengths), sum(length**2 for length in lengths), max(lengths), learned)


class Terms(NamedTuple):
    """Parts of a time as the machine's rates alone give them, in seconds; :data:`FACTORS` has a factor for each."""

    products: float = 0.0
    """The layers' matrix products: 2 operations a parameter and token forward, 2 for the gradient of the input."""
    streams: float = 0.0
    """Weights of the layers and the head read from memory, however few tokens there are."""
    adapters: float = 0.0
    """The adapter's own products: 6 operations a parameter and token, in matrices too narrow to be quick."""
    elements: float = 0.0
    """What goes over the activations number by number: norms, rotations, gates, sums."""
    attention: float = 0.0
    operations: float = 0.0
    """A fixed price for each operation of a layer."""
    head: float = 0.0
    """Logits and the gradient through them: 4 operations a vocabulary entry, channel and learned token."""
    softmax: float = 0.0
    """What goes over the logits number by number."""
    optimizer: float = 0.0

    def plus(self, other: "Terms") -> "Terms":
        return Terms(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, factor: float) -> "Terms":
        return Terms(*(factor * one for one in self))

    @property
    def seconds(self) -> float:
        return sum(factor * one for factor, one in zip(FACTORS, self, strict=True))


FACTORS = Terms(
    products=1.98,
    streams=9.5,
    adapters=1.07,
    elements=7.4,
    attention=1.19,
    operations=12.1,
    head=1.11,
    softmax=2.2,
    optimizer=5.25,
)
"""Fitted to real runs (``python -m bench.estimate --fit``) of other seeds than those that the figures are told of."""
_LAYER_OPERATIONS, _ADAPTER_OPERATIONS = 60, 6
"""Operations of a layer, and of an adapter on one matrix, as the profiler counts them forward."""
_SOFTMAX_CHANNELS = 64
_HEAD_ROWS = 512
"""Learned tokens for which the head's weights are read once (``worker/train/loss.py``)."""


def micro_batch(shape: Shape, plan: Plan, batch: Micro, machine: Machine, *, backward: bool = True) -> Terms:
    rate = machine.flops.get(plan.precision, machine.flops["fp32"])
    width, tokens = _BYTES[plan.precision], batch.tokens
    adapter = trained(shape, plan)
    # Of three equal parts forward, gradient of inputs and gradient of weights, a frozen matrix lacks the third.
    # With checkpointing the forward pass is done twice.
    passes = (3 if plan.gradient_checkpointing else 2) if backward else 1
    head = shape.vocab_size * shape.hidden_size
    # Layers whose own weights are trained have all three parts, and so has the head where it is one of them.
    products = passes + (adapter.own if backward else 0)
    head_passes = (6 if plan.adapter == "full" else 4) if backward else 2
    streams = products * shape.body + (2 if backward else 1) * head * math.ceil(batch.learned / _HEAD_ROWS)
    # The softmax over the keys costs a head as much as the products with them, were it so many channels wider.
    channels = shape.attention_width + _SOFTMAX_CHANNELS * shape.heads
    pairs = batch.squares * channels * shape.layers
    operations = shape.layers * _LAYER_OPERATIONS + adapter.matrices * _ADAPTER_OPERATIONS
    return Terms(
        products=products * 2 * shape.body * tokens / rate,
        streams=streams * _HELD[plan.precision] / machine.bytes_per_second,
        adapters=(passes + 1 if backward else 1) * 2 * _multiplied(plan, adapter) * tokens / rate,
        elements=passes
        * (_numbers(shape, adapter) * tokens * width + 4 * _pairs(shape, batch.squares, batch.longest))
        / machine.bytes_per_second,
        attention=passes * 4 * pairs / rate,
        operations=passes / 2 * operations * machine.op_seconds,
        head=head_passes * head * batch.learned / rate,
        softmax=(2 if backward else 1) * shape.vocab_size * batch.learned * 4 / machine.bytes_per_second,
    )


def _multiplied(plan: Plan, adapter: Trained) -> int:
    """Parameters of the adapter's own matrices."""
    return adapter.parameters if plan.adapter in LOW_RANK else 0


def _numbers(shape: Shape, adapter: Trained) -> int:
    """Numbers of the activations of all layers for one token: what the passes over them go over."""
    layer = 6 * shape.hidden_size + 4 * shape.attention_width + 3 * shape.key_width + 4 * shape.feed_forward
    return shape.layers * layer + adapter.outputs


def _pairs(shape: Shape, squares: int, longest: int) -> int:
    """Pairs of tokens whose attention is written down: with a mask of its own, attention is not done in tiles."""
    if shape.window is None or longest <= shape.window:
        return 0
    return squares * shape.heads * shape.windowed


def update(shape: Shape, plan: Plan, machine: Machine) -> Terms:
    """The optimizer, once a step."""
    adapter = trained(shape, plan)
    # Value, gradient and two moments, read and written; the gradient's norm reads it once more.
    moved = 10 * 4 * adapter.parameters
    return Terms(optimizer=moved / machine.bytes_per_second + 2 * adapter.matrices * machine.op_seconds)


def batches(plan: Plan, sample: Sample, size: int) -> Iterator[list[Micro]]:
    """The micro-batches of some steps of so many rows, cut as the trainer cuts them: neighbours in length together."""
    sizes = sample.sizes
    # The drawn rows stand for all of them: a step that has more rows than were drawn sees some of them twice.
    steps = max(1, min(_STEPS, len(sizes) // size))
    for step in range(steps):
        chosen = sorted(sizes[(step * size + index) % len(sizes)] for index in range(size))
        yield [_micro(plan, rows) for rows in _cut(plan, chosen)]


def _cut(plan: Plan, rows: Sequence[tuple[int, int]]) -> Iterator[Sequence[tuple[int, int]]]:
    """As :meth:`worker.train.batches.Batches.cut`."""
    start = 0
    while start < len(rows):
        end = start + 1
        tokens = rows[start][0]
        while end < min(len(rows), start + plan.micro_batch_size):
            tokens += rows[end][0]
            if plan.packed and tokens > TOGETHER:
                break
            end += 1
        yield rows[start:end]
        start = end


_STEPS = 200


def _micro(plan: Plan, rows: Sequence[tuple[int, int]]) -> Micro:
    lengths = [min(plan.max_length, tokens) for tokens, _ in rows]
    # The first token of a row is predicted by nothing.
    learned = sum(tokens - 1 if plan.prompt_loss_weight else completion for tokens, completion in rows)
    return Micro.packed(lengths, learned) if plan.packed else Micro.beside(len(rows), max(lengths), learned)


def step(shape: Shape, plan: Plan, sample: Sample, machine: Machine) -> Terms:
    """An optimizer step of this plan, on the average of all of them: an epoch's last one has the rows that are left."""
    whole = max(1, min(plan.batch_size, sample.rows))
    rest = sample.rows % whole
    partial = plan.total_steps // plan.steps_per_epoch if rest else 0
    total = Terms()
    for size, count in ((whole, plan.total_steps - partial), (rest, partial)):
        if count:
            steps = list(batches(plan, sample, size))
            parts = (micro_batch(shape, plan, one, machine) for cut in steps for one in cut)
            total = total.plus(reduce(Terms.plus, parts).times(count / len(steps)))
    return total.times(1 / plan.total_steps).plus(update(shape, plan, machine))


class Memory(NamedTuple):
    """Bytes on the device at the highest point."""

    program: float
    weights: float
    adapter: float
    """Values, gradients and two moments."""
    activations: float
    """What the layers keep of the longest micro-batch for the way back."""
    other: float

    @property
    def total(self) -> float:
        return sum(self)


_KEPT = 1.05
"""Bytes of activations for each that is counted: some are views of others, and the way back makes a few more."""
_KEPT_PAIRS = 1.0
"""Numbers that are kept of each pair of tokens where attention writes them down."""
_BUFFERS, _GAPS = 40e6, 0.19
"""Tiles of logits and the optimizer's scratch; what the allocator can't use beside the weights, as a share of them."""


def memory(shape: Shape, plan: Plan, longest: int, machine: Machine, sizes: int = 1) -> Memory:
    """``longest``: tokens of the longest row; ``sizes``: of micro-batches, as they are :func:`rounded`."""
    width = _BYTES[plan.precision]
    adapter = trained(shape, plan)
    length = min(plan.max_length, longest)
    tokens = plan.micro_batch_size * length
    if plan.packed:
        tokens = min(tokens, max(TOGETHER, length))
    kept = _numbers(shape, adapter)
    if plan.gradient_checkpointing:
        # The input of each layer, and one layer whole.
        kept = shape.layers * shape.hidden_size + kept // shape.layers
    weights = _weights(shape, plan)
    return Memory(
        program=machine.resident_bytes + sizes * machine.kernel_bytes,
        weights=weights,
        # The value is among the weights where it is the model's own.
        adapter=(12 if plan.own_weights else 16) * adapter.parameters,
        activations=_KEPT * kept * tokens * width + _KEPT_PAIRS * 4 * _pairs(shape, tokens * length, length),
        other=_BUFFERS + _GAPS * weights,
    )


def _weights(shape: Shape, plan: Plan) -> float:
    if plan.adapter == "qlora":
        # Four bits and their scales; embeddings and head stay as they are.
        return 0.55 * shape.body + _HELD[plan.precision] * (shape.parameters - shape.body)
    # What is trained is in float32 whatever it computes in.
    return shape.parameters * (4 if plan.adapter == "full" else _HELD[plan.precision])


class Cost(NamedTuple):
    seconds: float
    """All of it, from an idle trainer that has its libraries to the written artifact."""
    step_seconds: float
    memory: Memory


# Measured on an NVMe disk through the page cache (docs/benchmarks.md): reading weights, writing and hashing the rest.
_READ, _WRITE, _HASHED = 1.3e9, 3e8, 2e8
_BEGIN, _SAVE, _END = 0.1, 0.01, 0.05
_TOKENIZER = 130
"""Bytes of a tokenizer's files for each entry of the vocabulary."""
_RECOVERY_SECONDS, _RECOVERY_SHARE = 300, 0.1
"""Longest time, and largest share of the run, between two checkpoints (``worker/folder.py``)."""


def of(shape: Shape, plan: Plan, sample: Sample, machine: Machine, valid: Sample | None = None) -> Cost:
    one = step(shape, plan, sample, machine).seconds
    adapter = trained(shape, plan).parameters
    # A whole model is written where its own weights are trained, and the moments of what is.
    written = 4 * shape.parameters + 8 * adapter if plan.own_weights else 12 * adapter
    fixed = (
        _BEGIN
        + shape.parameters * _HELD[plan.precision] / _READ
        + _saves(plan, one) * (_SAVE + written / _WRITE)
        + _END
        + (4 * (shape.parameters if plan.own_weights else adapter) + _TOKENIZER * shape.vocab_size) / _HASHED
    )
    judged = 0.0 if valid is None else plan.evaluations * _evaluation(shape, plan, valid, machine)
    scored = plan.scorings * _evaluation(shape, plan, sample, machine) if plan.scorings else 0.0
    sought = _finding(shape, plan, sample, machine) if plan.finding else 0.0
    longest = max(sample.longest[0], valid.longest[0] if valid is not None else 0)
    met = batches(plan, sample, max(1, min(plan.batch_size, sample.rows)))
    sizes = {rounded(micro.tokens) for cut in met for micro in cut}
    return Cost(
        seconds=one * plan.total_steps + judged + scored + sought + fixed,
        step_seconds=one,
        memory=memory(shape, plan, longest, machine, len(sizes)),
    )


def _saves(plan: Plan, step_seconds: float) -> int:
    """Checkpoints: at the end of each epoch, and in between as often as recovery wants them."""
    between = min(
        math.floor(_RECOVERY_SHARE * plan.total_steps), math.floor(_RECOVERY_SECONDS / max(step_seconds, 1e-9))
    )
    whole, rest = divmod(plan.total_steps, plan.steps_per_epoch)
    return whole * math.ceil(plan.steps_per_epoch / max(1, between)) + math.ceil(rest / max(1, between))


FIND_STEPS, FIND_ROWS, FIND_APART = 25, 4, 8
"""Steps of the search for a learning rate, their examples, and those it is judged by (``worker/train/find.py``)."""


def _finding(shape: Shape, plan: Plan, sample: Sample, machine: Machine) -> float:
    rows = min(sample.rows, FIND_ROWS)
    short = plan.model_copy(update={"batch_size": rows, "total_steps": FIND_STEPS, "steps_per_epoch": FIND_STEPS})
    judged = _evaluation(shape, plan, sample, machine) * min(1.0, FIND_APART / max(1, sample.rows))
    return FIND_STEPS * step(shape, short, sample, machine).seconds + (FIND_STEPS + 1) * judged


def _evaluation(shape: Shape, plan: Plan, valid: Sample, machine: Machine) -> float:
    """One pass over the validation rows, neighbours in length together."""
    rows = sorted(valid.sizes)
    total = Terms()
    for cut in _cut(plan, rows):
        total = total.plus(micro_batch(shape, plan, _micro(plan, cut), machine, backward=False))
    return total.seconds * valid.rows / max(1, len(rows))
