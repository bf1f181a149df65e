"""Alpaca rows: ``instruction``, ``input``, ``output``, …; pairs and labels as LLaMA-Factory has them."""

from core.formats.conversation import MAX_MESSAGES, too_many
from core.formats.draft import Draft, Talk, label, one_answer
from core.formats.parse import Object, kind
from core.formats.report import Code


def _prompt(row: Object, talk: Talk) -> None:
    if row.get("system"):
        talk.say("system", row["system"], "system")
    history = row.get("history") or []
    if not isinstance(history, list):
        talk.draft.fault("history", Code.WRONG_TYPE, f"{kind(history)} is not a list of [question, answer]")
        history = []
    if len(history) > MAX_MESSAGES // 2:
        talk.draft.problems.append(too_many("history", 2 * len(history)))
        history = []
    for index, turn in enumerate(history):
        if talk.draft.full:
            break
        if not isinstance(turn, list) or len(turn) != 2:
            talk.draft.fault(f"history[{index}]", Code.WRONG_TYPE, "is not [question, answer]")
            continue
        talk.say("user", turn[0], f"history[{index}][0]")
        talk.say("assistant", turn[1], f"history[{index}][1]")
    instruction, given = row.get("instruction"), row.get("input")
    for name, value in (("instruction", instruction), ("input", given)):
        if value is not None and not isinstance(value, str):
            talk.draft.fault(name, Code.WRONG_TYPE, f"{kind(value)} is not a string")
    if not instruction and not given:
        talk.draft.fault("instruction", Code.EMPTY, "is empty, and so is the input")
    if not talk.draft.problems:
        talk.say("user", "\n".join(part for part in (instruction, given) if part), "instruction")


def chat(row: Object) -> Draft:
    draft = Draft()
    talk = Talk(draft, "messages")
    _prompt(row, talk)
    if "output" in row:
        talk.say("assistant", row["output"], "output")
    else:
        draft.fault("output", Code.MISSING_FIELD, "is missing")
    draft.row["messages"] = talk.messages
    return draft


def preference(row: Object) -> Draft:
    draft = Draft()
    talk = Talk(draft, "input.messages")
    _prompt(row, talk)
    draft.row["input"] = {"messages": talk.messages}
    for field_, name in (("preferred_output", "chosen"), ("non_preferred_output", "rejected")):
        one_answer(draft, row, name, field_)
    return draft


def labelled(row: Object) -> Draft:
    draft = Draft()
    talk = Talk(draft, "prompt")
    _prompt(row, talk)
    draft.row["prompt"] = talk.messages
    label(row, draft, "kto_tag")
    one_answer(draft, row, "output", "completion")
    return draft
