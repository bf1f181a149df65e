"""Rows as a model sees them, in colour: what is trained on stands out, what weighs nothing recedes."""

from typing import Any

from rich.text import Text

from cli import output

Json = dict[str, Any]  # Any: a preview as the API or `core.formats.findings.Preview` has it

_TRAINED, _UNREAD = "bold green", "dim"
# Where there is no colour, these are around what is trained on.
_OPEN, _CLOSE = "⟦", "⟧"


def show(preview: Json, *, tokens: bool) -> None:
    from core.formats.report import Fault

    form = preview["format"] or "unknown"
    output.line(f"{preview['model']}, chat template: {preview['chat_template']}, rows: {form}")
    if preview["conversion"]:
        output.line(f"converted from {preview['converted_from']}: {preview['conversion']}")
    colour = output.stdout.color_system is not None
    trained = Text("trained on", style=_TRAINED) if colour else Text(f"{_OPEN}trained on{_CLOSE}")
    output.stdout.print(Text.assemble(trained, f", the rest weighs {preview['prompt_loss_weight']}"))
    for fault in preview["faults"]:
        output.line(f"\n{Fault.model_validate(fault)}")
    for row in preview["rows"]:
        output.line("")
        output.line(_heading(row))
        output.stdout.print(_coloured(row) if colour else _marked(row), soft_wrap=True)
        if tokens:
            _table(row)
    if preview["more"]:
        output.note("… and more rows")


def _heading(row: Json) -> str:
    trained = sum(token["trained"] for token in row["tokens"])
    what = {
        "kept": "",
        "truncated": f", cut to {len(row['tokens'])}",
        "dropped": ", too long: left out",
        "masked": ", nothing to learn: left out",
    }[row["fate"]]
    part = "" if row["part"] == "row" else f" ({row['part']})"
    return f"── line {row['line']}{part}: {row['length']} tokens{what}, {trained} trained on"


def _coloured(row: Json) -> Text:
    text = Text()
    for token in row["tokens"]:
        style = _TRAINED if token["trained"] else _UNREAD if token["weight"] == 0 else ""
        text.append(token["text"], style=style)
    return text


def _marked(row: Json) -> Text:
    text, inside = "", False
    for token in row["tokens"]:
        if token["trained"] != inside:
            text += _OPEN if token["trained"] else _CLOSE
            inside = token["trained"]
        text += token["text"]
    return Text(text + (_CLOSE if inside else ""))


def _table(row: Json) -> None:
    output.table(
        ["ID", "WEIGHT", "TEXT"],
        [
            (token["id"], "auto" if token["weight"] is None else f"{token['weight']:g}", repr(token["text"]))
            for token in row["tokens"]
        ],
    )
