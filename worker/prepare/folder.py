"""The prepare folder: what the supervisor writes for a prepare child, and what the child writes back.

Like the job folder of training, it is the whole interface: ``python -m worker.prepare DIR`` reads ``spec.json``
and needs no database, queue, object store or credential.

    DIR/spec.json            one of the specs below, told apart by ``task``
    DIR/events.jsonl         lines of ``worker.folder.Event``: ``phase`` and ``message``, with ``percent`` where known
    DIR/result.json          Result; written last, also when the task ends with an error the user can act on
    DIR/out/                 register_model: the model's folder
    DIR/answer/              questions about data: what belongs to the answer and is too long for it
    DIR/train.safetensors    prepare_job: token files as ``worker.folder`` defines them
    DIR/valid.safetensors
    DIR/chat_template.jinja  prepare_job: the template the rows were rendered with; it belongs into the artifact

Exit status: 0 with a result, ``EXIT_USER_ERROR`` (3) with ``Result.error``, anything else is a fault of ours.
Knows nothing about torch: both sides import it.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from core.cost import Sample, Shape
from core.formats.report import Format, Report
from core.options import Hyperparameters, JobOptions
from core.resolved import Resolved
from worker.folder import FileEntry

ANSWER = "answer"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Facts(_Strict):
    """What a base model is; kept with its row in the catalog."""

    architecture: str
    """The class named in config.json, ``Gemma3ForCausalLM`` say."""
    model_type: str
    parameters: int
    hidden_size: int
    layers: int
    vocab_size: int
    context_length: int
    dtype: str
    bos_token_id: int | None
    eos_token_ids: list[int]
    """As in generation_config.json: generation stops at any of them; the template's end of turn is one."""
    special_tokens: dict[str, str]
    """What a chat template may name: ``bos_token``, ``eos_token``, ``pad_token``, …"""
    adds_bos: bool
    """Whether the tokenizer itself puts BOS before plain text."""
    template_origin: str
    """``model``, ``given``, or ``default:`` and the name of one of ``core.formats.families``."""
    chat_template: str
    """The text, as in chat_template.jinja."""
    license: str | None
    converter: str
    """Name and version of what wrote the folder: another version converts anew."""
    files: list[FileEntry]
    bytes: int
    sha256: str
    """Over the sorted file list: the content's name in the object store and in every cache."""
    shape: Shape | None = None
    """What the cost of training it is reckoned from; None for an architecture that it can't be told of."""


class CheckFile(_Strict):
    task: Literal["check_file"] = "check_file"
    path: Path


class RegisterModel(_Strict):
    task: Literal["register_model"] = "register_model"
    source: str
    """``gguf:FILE``, ``gguf:DISTRIBUTION`` (an installed package that carries one), ``path:DIR`` or ``hf:REPO``."""
    revision: str | None = None
    chat_template: str | None = None
    """Text of a template that replaces the model's own."""
    license: str | None = None
    cache: Path | None = None
    """Finished conversions are kept here by the hash of what they were made from."""


class MixedFile(_Strict):
    """A file besides the training file, whose examples come ``weight`` times as often as that one's."""

    path: Path
    file_id: str
    weight: float


class PrepareJob(_Strict):
    task: Literal["prepare_job"] = "prepare_job"
    base: Path
    """Folder with tokenizer.json, tokenizer_config.json, config.json and chat_template.jinja; no weights needed."""
    facts: Facts
    train: Path
    valid: Path | None = None
    mix: list[MixedFile] = []
    method: Literal["supervised", "dpo"] = "supervised"
    options: JobOptions = JobOptions()
    hyperparameters: Hyperparameters = Hyperparameters()
    seed: int
    min_examples: int = 10
    fast_bf16: bool = False
    """Whether the workers that may train this job compute quickly in bfloat16; ``precision: auto`` looks at it."""


class Model(_Strict):
    """A base model that data are looked at with; ``base`` as in PrepareJob."""

    name: str
    base: Path
    facts: Facts


class SurveyFile(_Strict):
    """Everything worth knowing about a data file; answers a ``core.formats.findings.Survey``."""

    task: Literal["survey_file"] = "survey_file"
    data: Path
    validation: Path | None = None
    models: list[Model] = []


class ValidateFile(_Strict):
    """Whether a job could be trained on the file; answers a ``core.formats.findings.Verdict``."""

    task: Literal["validate_file"] = "validate_file"
    data: Path
    validation: Path | None = None
    model: Model
    method: str
    formats: list[str]
    """Of rows that the method learns from."""
    options: JobOptions = JobOptions()
    min_examples: int = 10


class PreviewFile(_Strict):
    """The first rows as the model sees them; answers a ``core.formats.findings.Preview``."""

    task: Literal["preview_file"] = "preview_file"
    data: Path
    model: Model
    options: JobOptions = JobOptions()
    limit: int = 5


Question = SurveyFile | ValidateFile | PreviewFile
Spec = Annotated[CheckFile | RegisterModel | PrepareJob | Question, Field(discriminator="task")]


class TaskError(_Strict):
    """A fault the user can act on. ``code`` and ``param`` as OpenAI's job errors have them."""

    code: str
    message: str
    param: str | None = None
    lines: list[int] = []


class Named(_Strict):
    """Rows something happened to: how many, and the lines of the first hundred."""

    count: int = 0
    lines: list[int] = []
    mixed: int = 0
    """How many of them are of other files than the one whose lines these are."""


class Counts(_Strict):
    """What became of a data file. Tokens are counted after truncation and dropping."""

    examples: int
    tokens: int
    trained_tokens: int
    """Tokens that count as completion and whose message has a weight above 0."""
    sources: dict[str, int] = {}
    """Where several files are mixed: how many examples of an epoch each gives."""
    longest: int
    """Tokens of the longest row before truncation."""
    truncated: Named = Named()
    dropped: Named = Named()
    """Longer than ``max_length`` with ``over_length: drop``."""
    masked: Named = Named()
    """Rows in which no token of a completion has any weight: left out, since they teach nothing."""
    sha256: str
    """Of the token file."""


class Note(_Strict):
    """A sentence for the job's events: a reason for a resolved value, or a warning."""

    level: Literal["info", "warn"] = "info"
    message: str
    data: dict[str, Any] = {}  # free-form facts for machines; goes into the event as it is


class Tokenised(_Strict):
    """What the data are, whatever is then learned from them how: with the token files, all that another job on the
    same data needs."""

    method: Literal["supervised", "dpo"] = "supervised"
    form: Format
    train: Counts
    valid: Counts | None = None
    prompt_tokens: int
    """Of the training rows before anything is cut."""
    completion_tokens: int
    max_length: int
    max_length_reason: str
    sample: Sample
    """Lengths of some training rows: what the cost of a run is reckoned from."""
    valid_sample: Sample | None = None
    prompts: list[list[int]] = []
    """Tokens of what the model is to answer while it is trained."""
    dated: bool
    """Whether the template can write what day it is: tomorrow the same data may give other tokens."""
    remarks: list[Note] = []
    """On the data: rows left out or cut, conversions, shares."""


class Prepared(Tokenised):
    resolved: Resolved
    notes: list[Note] = []
    """The remarks are among them."""


class Result(_Strict):
    """Exactly one field is set."""

    report: Report | None = None
    facts: Facts | None = None
    prepared: Prepared | None = None
    answer: dict[str, Any] | None = None
    """To a question about data, as the route will give it; what is too long for it lies in ``DIR/answer/``."""
    error: TaskError | None = None
