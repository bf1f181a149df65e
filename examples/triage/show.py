"""What the demo draws: a loss curve, a table of scores, answers side by side. Knows no service and no model."""

import csv
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from evaluate import Example
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

WIDTH, HEIGHT = 64, 8
EIGHTHS = " ▁▂▃▄▅▆▇█"


def losses(metrics: Path) -> list[float]:
    """The loss over the answers, step by step, from the metrics file."""
    with metrics.open(newline="") as file:
        return [float(row["completion_loss"] or row["train_loss"]) for row in csv.DictReader(file)]


def curve(values: Sequence[float]) -> str:
    """Filled columns under a logarithmic axis: a loss falls by factors, not by amounts."""
    means = [math.log(max(mean, 1e-4)) for mean in _columns(values, min(WIDTH, len(values)))]
    low, high = min(means), max(means)
    # A flat line is drawn at the top; the lowest column keeps one eighth, so that every step is seen.
    scale = (HEIGHT * 8 - 1) / ((high - low) or 1.0)
    heights = [1 + round((mean - low) * scale) if high > low else HEIGHT * 8 for mean in means]
    lines = []
    for row in reversed(range(HEIGHT)):
        label = {HEIGHT - 1: f"{math.exp(high):7.3f}", 0: f"{math.exp(low):7.3f}"}.get(row, " " * 7)
        lines.append(f"{label} │" + "".join(EIGHTHS[min(8, max(0, height - row * 8))] for height in heights))
    last = str(len(values))
    axis = "step 1" + last.rjust(len(means) - 6) if len(means) > 6 + len(last) else f"steps 1 to {last}"
    return "\n".join([*lines, " " * 8 + "└" + "─" * len(means), " " * 9 + axis])


def _columns(values: Sequence[float], count: int) -> list[float]:
    cuts = [round(at * len(values) / count) for at in range(count + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(cuts)]


def scores(matches: dict[str, float], held_out: int, notes: dict[str, str]) -> Table:
    table = Table(title=f"Exact match on {held_out} held-out messages", title_justify="left", box=None, pad_edge=False)
    table.add_column("model")
    table.add_column("exact match", justify="right")
    table.add_column("")
    for name, match in matches.items():
        style = "bold green" if name == "tuned" else ""
        table.add_row(f"{name:18s}", f"{match:.1%}", notes.get(name, ""), style=style)
    return table


def side_by_side(rows: Sequence[Example], answers: dict[str, list[str]], chosen: Sequence[int]) -> RenderableType:
    """For each chosen row the message, what was expected, and what each model said."""
    parts: list[RenderableType] = []
    for at in chosen:
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(width=14, style="dim")
        table.add_column(width=2)
        table.add_column(overflow="fold")
        table.add_row("message", "", f"[italic]{escape(rows[at].message)}[/italic]")
        for name, said in answers.items():
            text = " ".join(said[at].split())
            right = said[at].strip() == rows[at].record
            mark = "[green]✓[/green]" if right else "[red]✗[/red]"
            table.add_row(name, mark, escape(text if len(text) <= 110 else text[:109] + "…"))
        if all(said[at].strip() != rows[at].record for said in answers.values()):
            table.add_row("expected", "", escape(rows[at].record))
        parts += [table, ""]
    return Group(*parts)


def telling(rows: Sequence[Example], answers: dict[str, list[str]], count: int = 4) -> list[int]:
    """Rows to show: those only the tuned model has right, and one that it has wrong, if there is one."""
    right = {
        name: [text.strip() == row.record for text, row in zip(said, rows, strict=True)]
        for name, said in answers.items()
    }
    tuned = right["tuned"]
    wrong = [at for at in range(len(rows)) if not tuned[at]][:1]
    only = [
        at for at in range(len(rows)) if tuned[at] and not any(right[name][at] for name in right if name != "tuned")
    ]
    return only[: count - len(wrong)] + wrong
