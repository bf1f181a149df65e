"""A chat template's end of turn, found in a process of its own: registering holds more memory than a template may.

``python -m worker.prepare.probe`` reads ``[template, special tokens]`` from its input and answers
``{"end_of_turn": …}`` or ``{"error": …}``.
"""

import json
import signal
import subprocess
import sys

from core.errors import JobError
from core.formats.templates import Template, TemplateFault
from worker.prepare import limits

_SECONDS = 60.0
"""Of the clock, for a machine that is busy; of the processor a template gets what a row gets."""


def end_of_turn(template: str, special_tokens: dict[str, str]) -> str:
    """Raises JobError for a template that can't be used, whatever it does."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "worker.prepare.probe"],
            input=json.dumps([template, special_tokens]),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise _refused(f"the chat template was not done with two messages after {_SECONDS:g} seconds") from None
    if done.returncode == -signal.SIGVTALRM:
        raise _refused(limits.TOO_SLOW)
    if done.returncode != 0:
        raise _refused(f"the chat template ended its process with status {done.returncode}: {done.stderr[-300:]}")
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise _refused(answer["error"])
    return str(answer["end_of_turn"])


def _refused(message: str) -> JobError:
    return JobError(message, code="invalid_chat_template", param="chat_template")


def main() -> None:
    template, special_tokens = json.load(sys.stdin)
    limits.apply(0)
    try:
        with limits.row_time():
            answer = {"end_of_turn": Template(template, special_tokens).end_of_turn}
    except (TemplateFault, limits.Exhausted) as fault:
        answer = {"error": str(fault)}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
