"""Questions about data before a job is made of them: /v1/files/{id}/report, …/validate, /v1/fine_tuning/preview."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from fastapi.responses import Response

from api import answers
from api.answers import PENDING
from api.deps import LiveDep, Parsed, PartsDep, TenantDep, body_schema, with_ext_header
from core.formats.survey import FINDINGS
from core.schemas.reports import FileReport, FileValidate, FileVerdict, FindingsLink, PreviewCreate, RowsPreview
from core.services import questions
from core.wiring import Parts

router = APIRouter()


@router.get(
    "/files/{file_id}/report",
    response_model=FileReport,
    responses=PENDING,
    tags=["files"],
    summary="Report on a data file",
    openapi_extra={"x-also": [409]},
)
async def report(
    file_id: str,
    tenant: TenantDep,
    parts: PartsDep,
    live: LiveDep,
    model: Annotated[
        list[str] | None,
        Query(max_length=questions.MODELS_AT_ONCE, description="Base models to count tokens for, one each."),
    ] = None,
    validation_file: Annotated[str | None, Query(description="A file to look for the same rows in.")] = None,
) -> FileReport | Response:
    """Everything worth knowing about a data file: every fault, odd and double rows, and how base models see it.

    Lists hold up to 1,000 lines; `findings.url` has all, up to a million, each as a line of JSON.
    """
    found = await answers.answer(
        parts,
        live,
        tenant,
        lambda session: questions.report(session, tenant, file_id, model or [], validation_file),
    )
    if isinstance(found, Response):
        return found
    return FileReport(**found.result, file_id=file_id, findings=_link(parts, found, file_id))


@router.post(
    "/files/{file_id}/validate",
    response_model=FileVerdict,
    responses=PENDING,
    tags=["files"],
    summary="Validate a file for a job",
    openapi_extra=body_schema(FileValidate),
)
async def validate(
    file_id: str,
    tenant: TenantDep,
    parts: PartsDep,
    live: LiveDep,
    body: Annotated[Parsed[FileValidate], Depends(with_ext_header(FileValidate))],
) -> FileVerdict | Response:
    """Whether a job with this model, method and options could be trained on the file, and what to know before."""
    found = await answers.answer(
        parts, live, tenant, lambda session: questions.validate(session, tenant, file_id, body.model, parts.settings)
    )
    if isinstance(found, Response):
        return found
    return FileVerdict(**found.result, file_id=file_id, findings=_link(parts, found, file_id))


@router.post(
    "/fine_tuning/preview",
    response_model=RowsPreview,
    responses=PENDING,
    tags=["fine-tuning"],
    summary="Preview rows as the model sees them",
    openapi_extra=body_schema(PreviewCreate) | {"x-also": [409]},
)
async def preview(
    tenant: TenantDep,
    parts: PartsDep,
    live: LiveDep,
    body: Annotated[Parsed[PreviewCreate], Depends(with_ext_header(PreviewCreate))],
) -> RowsPreview | Response:
    """The first rows of a file, or rows sent along, as tokens with their weights and the text that is trained on."""
    found = await answers.answer(parts, live, tenant, lambda session: questions.preview(session, tenant, body.model))
    if isinstance(found, Response):
        return found
    return RowsPreview(**found.result)


def _link(parts: Parts, found: answers.Found, file_id: str) -> FindingsLink:
    seconds = parts.settings.presigned_url_seconds
    name = f"{file_id}.findings.jsonl"
    return FindingsLink(
        url=parts.store.presigned(found.objects[FINDINGS], filename=name, seconds=seconds), expires_in=seconds
    )
