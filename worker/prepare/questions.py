"""The child's side of questions about data: a survey, a verdict or a preview, with what belongs to it in a folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.formats.findings import Preview, Survey, Verdict
from core.formats.judge import Terms, judge
from core.formats.survey import Asked, Findings, survey
from core.options import JobOptions
from worker.prepare import preview
from worker.prepare.folder import ANSWER, Model, PreviewFile, Question, SurveyFile, ValidateFile
from worker.prepare.lens import Lens
from worker.prepare.preview import Wanted
from worker.prepare.tokenise import encoder

Progress = Callable[[float], None]


def answer(spec: Question, folder: Path, progress: Progress) -> dict[str, Any]:
    found: Survey | Verdict | Preview
    match spec:
        case SurveyFile():
            found = surveyed(spec.data, spec.validation, spec.models, JobOptions(), folder, progress)
        case ValidateFile():
            seen = surveyed(spec.data, spec.validation, [spec.model], spec.options, folder, progress)
            found = judge(seen, Terms(spec.method, spec.formats, spec.options, spec.min_examples))
        case PreviewFile():
            model = spec.model
            wanted = Wanted(model.name, model.facts, spec.options, spec.limit)
            found = preview.preview(spec.data, encoder(model.base, model.facts, spec.options), wanted)
    return found.model_dump(mode="json")


def surveyed(
    data: Path, validation: Path | None, models: list[Model], options: JobOptions, folder: Path, progress: Progress
) -> Survey:
    """The survey, with ``findings.jsonl`` in the folder's ``answer/``."""
    place, scratch = folder / ANSWER, folder / "scratch"
    place.mkdir()
    scratch.mkdir()
    findings = Findings(place)

    def lenses(of: str) -> list[Lens]:
        return [
            Lens(model.name, encoder(model.base, model.facts, options), model.facts, options, findings, of)
            for model in models
        ]

    others = lenses("validation") if validation is not None else []
    try:
        return survey(Asked(data, validation, lenses("data"), others, options.format), findings, scratch, progress)
    finally:
        findings.close()
