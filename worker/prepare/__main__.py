"""The prepare child: ``python -m worker.prepare DIR`` does the folder's task; without DIR it waits for one.

Knows no database, queue or object store. Only registering a model imports torch.
"""

import os
import sys
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from core.errors import JobError
from core.formats.containers import weight
from core.formats.reading import read_file
from core.formats.report import Report
from worker import disk
from worker.folder import EXIT_DISK_FULL, EXIT_USER_ERROR
from worker.prepare import job, limits, questions, tokenise
from worker.prepare.events import Events
from worker.prepare.faults import Refused
from worker.prepare.folder import (
    CheckFile,
    PrepareJob,
    PreviewFile,
    Question,
    RegisterModel,
    Result,
    Spec,
    SurveyFile,
    TaskError,
    ValidateFile,
)


def run(folder: Path) -> int:
    """Does the task in ``folder`` and answers the exit status."""
    try:
        spec = TypeAdapter[Any](Spec).validate_json((folder / "spec.json").read_bytes())
    except (OSError, ValidationError) as error:
        print(f"{folder} has no good spec.json: {error}", file=sys.stderr)
        return 2
    events = Events(folder)
    try:
        match spec:
            case CheckFile():
                result = Result(report=_check(spec, events))
            case RegisterModel():
                result = _register(spec, folder, events)
            case PrepareJob():
                result = Result(prepared=job.prepare(spec, folder, events))
            case SurveyFile() | ValidateFile() | PreviewFile():
                result = Result(answer=_answer(spec, folder, events))
    except Refused as refused:
        result = Result(error=refused.error)
    except JobError as error:
        result = Result(error=TaskError(code=error.error_code or "invalid", message=error.message, param=error.param))
    except limits.Exhausted as error:
        result = Result(error=TaskError(code="limit_exceeded", message=str(error), param=_blamed(spec, error)))
    except MemoryError:
        message = "preparing this data takes more memory than is allowed"
        result = Result(error=TaskError(code="limit_exceeded", message=message, param="training_file"))
    except OSError as error:
        if not disk.is_full(error):
            raise
        return EXIT_DISK_FULL
    # Whoever reads the result finds all of it or none.
    (folder / "result.json.new").write_text(result.model_dump_json(), "utf-8")
    os.replace(folder / "result.json.new", folder / "result.json")
    return EXIT_USER_ERROR if result.error is not None else 0


def _blamed(spec: Spec, limit: limits.Exhausted) -> str:
    """A template that came with the request is its sender's; the base model's own is not."""
    given = not isinstance(spec, CheckFile | RegisterModel | SurveyFile) and spec.options.chat_template != "base"
    return "ext.chat_template" if given and limit.by_template else "training_file"


def _register(spec: RegisterModel, folder: Path, events: Events) -> Result:
    from worker.prepare import register

    facts = register.convert(
        spec.source,
        folder / "out",
        revision=spec.revision,
        chat_template=spec.chat_template,
        license=spec.license,
        cache=spec.cache,
        progress=lambda percent, message: events.phase("registering", percent, message),
    )
    return Result(facts=facts)


def _check(spec: CheckFile, events: Events) -> Report:
    limits.apply(weight(spec.path))
    return read_file(spec.path, progress=lambda percent: events.progress("checking", percent, "checking the file"))


def _answer(spec: Question, folder: Path, events: Events) -> dict[str, Any]:  # Any: JSON
    others = [] if isinstance(spec, PreviewFile) or spec.validation is None else [spec.validation]
    limits.apply(sum(weight(path) for path in (spec.data, *others)))
    return questions.answer(spec, folder, lambda percent: events.progress("reading", percent, "reading the file"))


def main() -> None:
    if len(sys.argv) > 1:
        sys.exit(run(Path(sys.argv[1])))
    from worker import child

    child.serve(preload=lambda folder: tokenise.load(folder / "tokenizer.json"), run=run)


if __name__ == "__main__":
    main()
