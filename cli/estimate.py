"""An estimate as text: a table of what the job would take, then what would do instead, warnings and advice."""

import json
from typing import Any

from cli import output


def show(found: dict[str, Any]) -> None:  # Any: JSON of core.schemas.estimates.Estimate
    tokens, memory, price, queue = found["tokens"], found["memory"], found["price"], found["queue"]
    lines = [
        ("base model", found["model"]),
        ("feasible", "yes" if found["feasible"] else f"no: {found['reason']['message']}"),
        ("examples", f"{tokens['examples']:,}, the longest of {tokens['longest']:,} tokens"),
        *((f"  of {name.replace('_', ' ')}", f"{count:,}") for name, count in tokens["sources"].items()),
        ("validation", f"{tokens['validation']:,} examples" if tokens["validation"] else "none"),
        ("tokens", f"{tokens['per_epoch']:,} an epoch, {tokens['total']:,} in all"),
        ("steps", f"{found['steps']:,} in {found['epochs']:g} epochs"),
        ("memory", output.size(memory["total"]) if memory else "can't be told of this architecture"),
        ("time", _time(found["seconds"])),
        ("price", _price(price)),
        ("wait", _wait(queue)),
    ]
    for name, value in lines:
        output.line(f"{name:<12} {value}")
    if found["workers"]:
        output.line("")
        output.table(
            ["WORKER", "MEMORY", "SLOTS", "FITS", "TIME"],
            [
                (
                    worker["device"],
                    output.size(worker["memory_bytes"]),
                    worker["slots"],
                    "yes" if worker["fits"] else "no",
                    _time(worker["seconds"]) if worker["fits"] else "",
                )
                for worker in found["workers"]
            ],
        )
    _list("What would do instead", [f"{one['message']}: {_change(one['change'])}" for one in found["choices"]])
    _list("Warnings", found["warnings"])
    _list("Advice", [_advice(one) for one in found["advice"]])


def _time(seconds: float | None) -> str:
    return "not known until a worker has measured its machine" if seconds is None else output.duration(seconds)


def _price(price: dict[str, Any] | None) -> str:
    if price is None:
        return "no rates are set"
    amount = "not known yet" if price["amount"] is None else f"{price['amount']:.2f} {price['currency']}"
    rates = price["rates"]
    parts = [
        f"{rate:g} {what}"
        for rate, what in ((rates["per_hour"], "an hour"), (rates["per_million_tokens"], "a million tokens"))
        if rate is not None
    ]
    return f"{amount} ({', '.join(parts)})"


def _wait(queue: dict[str, Any]) -> str:
    before = queue["jobs_before"]
    others = "no job waits" if before == 0 else f"{before} job{'s' if before > 1 else ''} before it"
    return f"{others}; " + ("when it starts can't be told" if queue["seconds"] is None else _start(queue["seconds"]))


def _start(seconds: float) -> str:
    return "it starts at once" if seconds == 0 else f"it starts in about {output.duration(seconds)}"


def _change(change: dict[str, Any]) -> str:
    return json.dumps(change, ensure_ascii=False)


def _advice(one: dict[str, Any]) -> str:
    send = f" Send {_change(one['change'])}." if one["change"] else ""
    return f"{one['message']}{send}"


def _list(title: str, sentences: list[str]) -> None:
    if sentences:
        output.line(f"\n{title}")
    for sentence in sentences:
        output.line(f"  - {sentence}")
