"""What a check of a data file found: plain data, the same for the API, the prepare child and the CLI."""

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict

FAULTS_KEPT = 100
Format = Literal["chat", "preference", "completion", "labelled", "text"]
"""What rows are once they are read. A method learns from some of these."""
Form = Literal[
    "chat",
    "preference",
    "completion",
    "labelled",
    "text",
    "alpaca",
    "alpaca_preference",
    "alpaca_labelled",
    "sharegpt",
    "sharegpt_preference",
    "sharegpt_labelled",
    "hf_chat",
    "hf_preference",
    "hf_prompt_completion",
    "hf_unpaired_preference",
]
"""What rows can look like: what ``ext.format`` takes. ``rows.BY_NAME`` has a reader for each."""
Container = Literal["jsonl", "json", "csv", "parquet"]
Compression = Literal["gzip", "zstd"]


class Code(StrEnum):
    """What can be wrong. Users' scripts may compare these, so a code never changes its meaning."""

    # The whole file.
    EMPTY_FILE = "empty_file"
    TOO_MANY_FAULTS = "too_many_faults"
    UNSUPPORTED_FILE = "unsupported_file"
    BROKEN_FILE = "broken_file"
    UNPACKED_TOO_LARGE = "unpacked_too_large"
    INVALID_CSV = "invalid_csv"
    # A line as bytes and as JSON.
    BOM = "bom"
    NOT_UTF8 = "not_utf8"
    LINE_TOO_LONG = "line_too_long"
    INVALID_JSON = "invalid_json"
    NAN = "nan"
    LONE_SURROGATE = "lone_surrogate"
    NUL = "nul"
    NONCHARACTER = "noncharacter"
    TOO_DEEP = "too_deep"
    TOO_COMPLEX = "too_complex"
    HUGE_NUMBER = "huge_number"
    DUPLICATE_KEY = "duplicate_key"
    # A row.
    NOT_AN_OBJECT = "not_an_object"
    UNKNOWN_FORMAT = "unknown_format"
    MIXED_FORMATS = "mixed_formats"
    MISSING_FIELD = "missing_field"
    UNKNOWN_FIELD = "unknown_field"
    WRONG_TYPE = "wrong_type"
    EMPTY = "empty"
    # A conversation.
    UNKNOWN_ROLE = "unknown_role"
    INVALID_WEIGHT = "invalid_weight"
    TOO_MANY_MESSAGES = "too_many_messages"
    NO_ASSISTANT_MESSAGE = "no_assistant_message"
    LAST_MESSAGE_NOT_ASSISTANT = "last_message_not_assistant"
    UNSUPPORTED_CONTENT = "unsupported_content"
    # Tools.
    INVALID_TOOL = "invalid_tool"
    INVALID_TOOL_CALL = "invalid_tool_call"
    INVALID_ARGUMENTS = "invalid_arguments"
    UNKNOWN_FUNCTION = "unknown_function"
    TOOL_RESULT_WITHOUT_CALL = "tool_result_without_call"
    TOOL_CALL_WITHOUT_RESULT = "tool_call_without_result"
    # A template's doing; found in prepare.
    TEMPLATE_ERROR = "template_error"
    TEMPLATE_REWRITES_HISTORY = "template_rewrites_history"
    TEMPLATE_DROPS_TEXT = "template_drops_text"
    NO_MESSAGE_WEIGHTS = "no_message_weights"


REMARKS = {
    Code.TEMPLATE_REWRITES_HISTORY: "the chat template writes what comes before an answer differently than it will "
    "when the model is asked for that answer",
    Code.TEMPLATE_DROPS_TEXT: "the chat template leaves out something that the row says",
}
"""What a template does to a row that can be trained on all the same, as the end of a sentence."""


class Fault(BaseModel):
    """One thing wrong. ``path`` is empty when it concerns the whole line, ``line`` is 0 when the whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    line: int
    path: str = ""
    code: Code
    message: str
    excerpt: str | None = None
    """What is wrong, as it stands there: up to 80 characters."""

    def __str__(self) -> str:
        return self.sentence("line")

    def sentence(self, unit: str) -> str:
        where = "".join((f"{unit} {self.line}: " if self.line else "", f"{self.path}: " if self.path else ""))
        return where + self.message


class Report(BaseModel):
    """A whole file. ``faults`` holds the first hundred, ``fault_count`` counts all."""

    model_config = ConfigDict(extra="forbid")

    format: Format | None
    """What the first readable row is; the others must be the same. None when no row could be read."""
    container: Container = "jsonl"
    compression: Compression | None = None
    converted_from: str | None = None
    """The foreign format that the rows had, ``alpaca`` say; None when they are Attune's own."""
    conversion: str | None = None
    """What was made of foreign rows, as a sentence."""
    bytes: int
    lines: int
    rows: int
    """Good rows."""
    bad_rows: int = 0
    """Rows with a fault: one row may have several."""
    broken: bool = False
    """Whether the file could not be read to its end, or has no rows: more than single rows are wrong."""
    roles: dict[str, int] = {}
    """Messages per role in the good rows."""
    fault_count: int = 0
    faults: list[Fault] = []

    @property
    def unit(self) -> str:
        """What a fault's ``line`` counts: an array may stand on one line, and Parquet has none."""
        return "record" if self.container in ("json", "parquet") else "line"

    def spoiled(self, allowed: float, more: int = 0) -> bool:
        """Whether more is wrong than bad rows up to this share of all; ``more`` good rows turned out bad later."""
        if allowed == 0:
            return not self.ok or more > 0
        return self.broken or self.bad_rows + more > allowed * (self.rows + self.bad_rows)

    @property
    def ok(self) -> bool:
        return self.fault_count == 0

    def summary(self, limit: int = FAULTS_KEPT) -> str:
        """Sentences for ``status_details``: the faults kept, a line each, and how many more there are."""
        shown = [fault.sentence(self.unit) for fault in self.faults[:limit]]
        rest = self.fault_count - len(shown)
        return "\n".join([*shown, f"and {rest} more"] if rest else shown)
