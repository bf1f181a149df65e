"""What a diagnosis needs and no loss tells: of the rows, how far an adapter has moved, and what was learned of what.

Looks at few rows and one number a tensor: a run is not slower for it.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worker.train.batches import Rows
from worker.train.model import Model
from worker.train.objective import Objective
from worker.train.ranks import Ranks

_MOST_ROWS = 200_000
"""Rows that are compared; of more, the first ones stand for all."""
_SAMPLE, _SHORTEST = 48, 12
"""Rows of which something is asked at the end: the shortest of a sample, since only their ends count."""

Json = dict[str, Any]  # Any: numbers of the events that worker/folder.py describes


def facts(rows: Rows, valid: Rows | None) -> dict[str, int]:
    """Counts of rows: in training, those that repeat an earlier one; in validation, those that are trained on."""
    count = min(len(rows), _MOST_ROWS)
    times = Counter(_content(rows, i) for i in range(count))
    told = {"rows": len(rows), "duplicates": round((count - len(times)) * len(rows) / count)}
    if valid is not None:
        few = min(len(valid), _MOST_ROWS)
        shared = sum(_content(valid, i) in times for i in range(few))
        told |= {"valid_rows": len(valid), "shared": round(shared * len(valid) / few)}
    return told


def _content(rows: Rows, i: int) -> bytes:
    return rows.input_ids[int(rows.offsets[i]) : int(rows.offsets[i + 1])].tobytes()


class Movement:
    """How far an adapter is from where it began, as a share of its own length; None where there is no adapter.

    Made before weights of a checkpoint are put in: the seed gives a resumed run the same beginning.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        begun = {} if model.peft is None else {name: p.detach().cpu().clone() for name, p in model.trainable.items()}
        self.begun: dict[str, Tensor] = begun

    @torch.no_grad()
    def share(self) -> float | None:
        if not self.begun:
            return None
        pairs = [(p.detach().cpu(), self.begun[name]) for name, p in self.model.trainable.items()]
        moved = torch.nn.utils.get_total_norm([now - then for now, then in pairs])
        share = float(moved / torch.nn.utils.get_total_norm([then for _, then in pairs]).clamp(min=1e-12))
        return share if math.isfinite(share) else None


@torch.no_grad()
def finite(model: Model) -> bool:
    """Whether all that was trained still is: after its last step no loss tells."""
    return all(bool(p.isfinite().all()) for p in model.trainable.values())


def learned(model: Model, rows: Rows, objective: Objective) -> Json:
    """Of a supervised run at its end: how sure the model is of the token that ends an answer, and how much better it
    knows rows that are there several times than those that are there once."""
    model.module.eval()
    with torch.inference_mode():
        return _ends(model, rows) | _twins(model, rows, objective)


def _ends(model: Model, rows: Rows) -> Json:
    """``ends``: rows looked at; ``end_common``: the share of them whose answer ends in the same token, as it does where
    it is the end of turn; ``end_first``: the share where that is the likeliest; ``end_probability``: its mean."""
    sample = np.unique(np.linspace(0, len(rows) - 1, min(_SAMPLE, len(rows))).astype(int))
    last = {int(i): end for i in sample if (end := _end_of_answer(rows, int(i))) is not None}
    if not last:
        return {}
    common, times = Counter(int(rows.input_ids[end]) for end in last.values()).most_common(1)[0]
    told: Json = {"ends": len(last), "end_common": times / len(last)}
    asked = [i for i in last if int(rows.input_ids[last[i]]) == common]
    found = []
    for i in sorted(asked, key=lambda i: (last[i] - int(rows.offsets[i]), i))[:_SHORTEST]:
        ids = torch.from_numpy(rows.input_ids[int(rows.offsets[i]) : last[i]].astype(np.int64)).to(model.device)
        logits = model.head.logits(model.hidden(ids[None])[:, -1:])[0, 0]
        found.append((float(torch.softmax(logits, -1)[common]), int(logits.argmax()) == common))
    probabilities, first = zip(*found, strict=True)
    return told | {"end_first": sum(first) / len(first), "end_probability": sum(probabilities) / len(probabilities)}


def _end_of_answer(rows: Rows, i: int) -> int | None:
    """Where the last answer's last token is; None in a row that is all answer, such as plain text, or has none."""
    start, end = int(rows.offsets[i]), int(rows.offsets[i + 1])
    spoken = np.flatnonzero(rows.completion[start + 1 : end])
    if len(spoken) in (0, end - start - 1):
        return None
    return start + 1 + int(spoken[-1])


def _twins(model: Model, rows: Rows, objective: Objective) -> Json:
    count = min(len(rows), _MOST_ROWS)
    contents = [_content(rows, i) for i in range(count)]
    times = Counter(contents)
    first = {content: i for i, content in reversed(list(enumerate(contents)))}
    several = [first[content] for content, n in times.items() if n > 1]
    once = [first[content] for content, n in times.items() if n == 1]
    if not several or not once:
        return {}
    told = {"duplicate_rows": len(several), "duplicate_times": max(times.values())}
    return told | {
        "duplicate_loss": _loss(model, several[:_SHORTEST], objective),
        "single_loss": _loss(model, once[:_SHORTEST], objective),
    }


def _loss(model: Model, chosen: Sequence[int], objective: Objective) -> float | None:
    # One process asks, whatever number of them has trained.
    whole = objective.begin(model, chosen, Ranks())
    told = torch.zeros(objective.told, dtype=torch.float64, device=model.device)
    for micro_batch in objective.cut(chosen):
        told += objective.measure(model, micro_batch, whole)
    return objective.metrics(told, whole)["completion_loss"]
