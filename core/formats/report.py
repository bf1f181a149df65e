"""What a check of a data file found: plain data, the same for the API, the prepare child and the CLI."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

FAULTS_KEPT = 100
Format = Literal["chat", "preference", "completion", "text"]


class Fault(BaseModel):
    """One thing wrong. ``path`` is empty when it concerns the whole line, ``line`` is 0 when the whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    line: int
    path: str = ""
    code: str
    message: str

    def __str__(self) -> str:
        where = "".join((f"line {self.line}: " if self.line else "", f"{self.path}: " if self.path else ""))
        return where + self.message


class Report(BaseModel):
    """A whole file. ``faults`` holds the first hundred, ``fault_count`` counts all."""

    model_config = ConfigDict(extra="forbid")

    format: Format | None
    """What most of the file holds; None when no line could be read."""
    bytes: int
    lines: int
    rows: int
    """Good rows."""
    roles: dict[str, int] = {}
    """Messages per role in the good rows."""
    fault_count: int = 0
    faults: list[Fault] = []

    @property
    def ok(self) -> bool:
        return self.fault_count == 0

    def summary(self, limit: int = 5) -> str:
        """Sentences for ``status_details``: the first faults, and how many more there are."""
        if self.ok:
            return ""
        shown = "; ".join(str(fault) for fault in self.faults[:limit])
        rest = self.fault_count - min(limit, len(self.faults))
        return shown + (f"; and {rest} more" if rest else "")
