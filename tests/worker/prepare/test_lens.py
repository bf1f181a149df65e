"""A base model's view of rows: each row is looked at once, whatever becomes of the others of its batch."""

from pathlib import Path

from core.formats.rows import Chat, Preference, Row
from core.formats.survey import Findings
from core.options import JobOptions
from worker.prepare.folder import Facts
from worker.prepare.lens import Lens
from worker.prepare.tokenise import Encoder

# Writes "last" before the last answer alone, so it rewrites history; and it refuses one word.
TEMPLATE = (
    "{% for m in messages %}{% if m.content == 'refused' %}{{ raise_exception('not that word') }}{% endif %}"
    "{{ 'last ' if loop.last and m.role == 'assistant' }}{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}last assistant>{% endif %}"
)


def talk(*contents: str) -> list[dict[str, object]]:
    return [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]


def seen(tmp_path: Path, base: Path, facts: Facts, rows: list[Row]) -> tuple[Lens, Findings]:
    findings = Findings(tmp_path)
    lens = Lens("tiny", Encoder(base, facts, TEMPLATE), facts, JobOptions(), findings)
    for line, row in enumerate(rows, 1):
        lens.add(line, row)
    return lens, findings


def test_a_refused_row_has_no_other_row_told_twice(tmp_path: Path, base: Path, facts: Facts) -> None:
    rows: list[Row] = [
        Chat(talk("a", "b", "c", "d"), None),
        Chat(talk("a", "refused"), None),
        Chat(talk("a", "b"), None),
    ]
    lens, findings = seen(tmp_path, base, facts, rows)
    told = lens.finish()
    findings.close()
    assert {code: (lines.count, lines.lines) for code, lines in told.remarks.items()} == {
        "template_rewrites_history": (1, [1])
    }
    assert [fault.line for fault in told.faults] == [2]
    assert told.examples == 2


def test_a_pair_of_which_one_answer_is_refused_is_refused_once(tmp_path: Path, base: Path, facts: Facts) -> None:
    question, good, bad = talk("a", "b")[:1], talk("a", "b")[1:], talk("a", "refused")[1:]
    rows: list[Row] = [
        Preference(question, None, good, bad),
        Preference(question, None, bad, bad),
        Preference(question, None, good, good),
    ]
    lens, findings = seen(tmp_path, base, facts, rows)
    told = lens.finish()
    findings.close()
    assert [fault.line for fault in told.faults] == [1, 2]
    assert told.examples == 1
