"""What a survey of a data file found: plain data, the same for the service and the command line.

Counts are exact unless something else is said; lists hold the first thousand lines, ``findings.jsonl`` all of them.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from core.formats.report import Compression, Container, Fault, Format

KEPT = 1000
"""Of each kind of finding so many are listed."""


class _Plain(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Lines(_Plain):
    """Rows something is true of: how many, and their lines."""

    count: int = 0
    lines: list[int] = []

    def add(self, line: int) -> None:
        self.count += 1
        if len(self.lines) < KEPT:
            self.lines.append(line)


class Twin(_Plain):
    """This line says what another one says."""

    line: int
    other: int


class Twins(_Plain):
    count: int = 0
    rows: list[Twin] = []


class Like(_Plain):
    line: int
    other: int
    similarity: float
    """Of the sets of three words in a row that the two have: shared over all."""


class Likes(_Plain):
    """Rows that are nearly the same. Looked for in a sample: ``count`` is of the sample, not of the file."""

    sampled: int
    """Rows that were compared with each other; the whole file when it has no more than these."""
    least_similarity: float
    count: int = 0
    rows: list[Like] = []


class Repeated(_Plain):
    """One answer that many rows have."""

    answer: str
    """Its beginning."""
    count: int
    share: float
    """Of all rows."""
    lines: list[int]
    """The first hundred."""


class Outliers(_Plain):
    """Rows far shorter or longer than the others, by their characters."""

    usual_least: int
    usual_most: int
    """Half of the rows are within these."""
    short: Lines
    long: Lines


class Odd(_Plain):
    empty_answers: Lines
    repeated_answers: list[Repeated]
    length_outliers: Outliers | None
    """None: too few rows to tell."""


class Bin(_Plain):
    """Rows of ``least`` to ``most`` tokens."""

    least: int
    most: int
    rows: int


class Lengths(_Plain):
    """In tokens, before anything is cut."""

    shortest: int
    mean: float
    median: int
    p90: int
    p99: int
    longest: int
    histogram: list[Bin]


class Seen(_Plain):
    """The rows as one base model sees them, with the options that were asked for."""

    model: str
    chat_template: str
    """Where it is from: ``model``, ``given`` or the name of a default."""
    context_length: int
    max_length: int
    over_length: Literal["error", "truncate", "drop"]
    train_on: Literal["assistant", "last_assistant", "all"]
    examples: int
    """Rows that would be trained on."""
    tokens: int
    trained_tokens: int
    """Of what is left after cutting and leaving out."""
    lengths: Lengths | None
    truncated: Lines
    dropped: Lines
    masked: Lines
    """Nothing in them would be learned."""
    straddling: Lines
    """The answer begins inside a token of the prompt, so its first characters are not learned."""
    remarks: dict[str, Lines] = {}
    """By code: what the chat template does to rows that can be trained on all the same."""
    fault_count: int
    faults: list[Fault]
    """Rows that the chat template can't be used with."""


class Validation(_Plain):
    """The validation file beside the data."""

    format: Format | None
    rows: int
    fault_count: int
    fault_codes: dict[str, int]
    faults: list[Fault]
    shared: Twins
    """Rows of the data (``line``) that the validation file has, too (``other``): they tell nothing about new rows."""
    models: list[Seen]


class Survey(_Plain):
    """A whole file."""

    format: Format | None
    container: Container
    compression: Compression | None
    converted_from: str | None
    conversion: str | None
    """What is made of foreign rows, as a sentence."""
    bytes: int
    lines: int
    rows: int
    """Good rows."""
    bad_rows: int
    broken: bool
    """The file could not be read to its end, or has no rows."""
    roles: dict[str, int]
    """Messages per role in the good rows."""
    fault_count: int
    fault_codes: dict[str, int]
    """How many there are of each code."""
    faults: list[Fault]
    duplicates: Twins
    """Rows that say exactly what an earlier row (``other``) says."""
    near_duplicates: Likes
    odd: Odd
    models: list[Seen]
    validation: Validation | None

    @property
    def ok(self) -> bool:
        """No faults in the file, as it is and as the models see it."""
        return not self.fault_count and not any(seen.fault_count for seen in self.models)


class Judged(_Plain):
    """Something that stands in the way of a job, or that its owner should know."""

    param: Literal["training_file", "validation_file", "ext.chat_template", "ext.max_length"]
    code: str
    message: str
    count: int
    """Rows it is about; 0: the whole file."""
    lines: list[int] = []
    """Of the first of these rows."""


class Verdict(_Plain):
    """Whether a job of this method could be trained on these data."""

    ok: bool
    """No faults: such a job would be prepared and queued."""
    faults: list[Judged]
    warnings: list[Judged]
    survey: Survey


class Token(_Plain):
    id: int
    text: str
    """The characters it stands for; those of a character that several tokens share come with each of them."""
    weight: float | None
    """What it weighs in the loss: 0 is not learned at all. None: by ``prompt_loss_weight``, which is "auto"."""
    trained: bool
    """Part of what is to be learned, and not of the prompt."""


class Span(_Plain):
    """Characters of the text, from ``start`` to before ``end``, that are trained on."""

    start: int
    end: int


Fate = Literal["kept", "truncated", "dropped", "masked"]
"""What becomes of a row; ``masked``: nothing in it would be learned, so that it is left out."""


class Shown(_Plain):
    """One row as the model sees it."""

    line: int
    part: Literal["row", "preferred", "non_preferred"]
    text: str
    spans: list[Span]
    tokens: list[Token]
    """Those that would be trained on or read: what is cut away is not among them."""
    length: int
    """Tokens before anything is cut."""
    fate: Fate


class Preview(_Plain):
    """The first rows as the model sees them."""

    model: str
    format: Format | None
    converted_from: str | None
    conversion: str | None
    chat_template: str
    max_length: int
    prompt_loss_weight: float | Literal["auto"]
    rows: list[Shown]
    faults: list[Fault]
    """Rows among the first that can't be used."""
    more: bool
    """There are more rows than are shown."""
