"""One measured figure and its aim, and what a bench ends with."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    what: str
    value: float
    unit: str
    bound: float | None
    at_least: bool = False

    @property
    def reached(self) -> bool:
        return self.bound is None or (self.value >= self.bound if self.at_least else self.value <= self.bound)

    def __str__(self) -> str:
        bound = "" if self.bound is None else f"{'>=' if self.at_least else '<='} {self.bound:g}"
        verdict = "" if self.bound is None else "reached" if self.reached else "MISSED"
        return f"{self.what:64s} {self.value:10.3f} {self.unit:8s} {bound:10s} {verdict}"


def closed(figures: Sequence[Figure]) -> int:
    """The exit status: 1 when a figure is missed and CHECK=1 asks for it."""
    missed = [figure for figure in figures if not figure.reached]
    sys.stdout.write(f"{len(figures)} figures, {len(missed)} missed\n")
    return 1 if missed and os.environ.get("CHECK") == "1" else 0
