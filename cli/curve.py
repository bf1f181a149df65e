"""The losses that were seen at rising learning rates, as a small plot."""

from collections.abc import Sequence

HEIGHT = 5
_EIGHTHS = " ▁▂▃▄▅▆▇█"
_MARGIN = 10


def text(points: Sequence[Sequence[float]], chosen: float) -> list[str]:
    """Columns of (learning rate, loss), the lowest loss one eighth high; under them the rates of both ends and, where
    it lies, the one that was chosen."""
    losses = [loss for _, loss in points]
    low, high = min(losses), max(losses)
    scale = (HEIGHT * 8 - 1) / ((high - low) or 1.0)
    heights = [1 + round((loss - low) * scale) for loss in losses]
    lines = []
    for row in reversed(range(HEIGHT)):
        label = {HEIGHT - 1: f"{high:.4g}", 0: f"{low:.4g}"}.get(row, "").rjust(_MARGIN - 2)
        columns = "".join(2 * _EIGHTHS[min(8, max(0, height - row * 8))] for height in heights)
        lines.append(f"{label} │{columns}".rstrip())
    nearest = min(range(len(points)), key=lambda n: abs(points[n][0] / chosen - 1))
    mark = " " * (2 * nearest) + "^"
    lines.append(" " * (_MARGIN - 1) + "└" + "─" * 2 * len(points))
    lines.append(" " * _MARGIN + f"{mark} {chosen:.2g}")
    first, last = f"{points[0][0]:.2g}", f"{points[-1][0]:.2g}"
    lines.append(" " * _MARGIN + first + last.rjust(max(0, 2 * len(points) - len(first))))
    return lines
