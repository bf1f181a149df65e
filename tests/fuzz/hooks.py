"""What schemathesis loads: some requests get what no generator finds, and none may saw off the branch it sits on."""

import itertools
import json
import os
from typing import Any

import schemathesis

SEEDED: dict[str, Any] = json.loads(os.environ["FUZZ_SEEDED"])
OWN = {"key_id": SEEDED["own_key"], "name": SEEDED["base_model"]}

_uploads = list(SEEDED["uploads"])
_turn = itertools.count()
# What is generated of a job that half of the creations keep.
_KEPT = ("suffix", "seed", "metadata")


def _spare(method: str, path_parameters: Any) -> None:
    """The run's own key is not revoked, and the base model that jobs are made of stays."""
    for name, mine in OWN.items():
        if method.upper() == "DELETE" and path_parameters.get(name) == mine:
            path_parameters[name] = "another"


@schemathesis.hook  # type: ignore[untyped-decorator, unused-ignore]
def map_path_parameters(context: Any, path_parameters: Any) -> Any:
    # Here already: what is changed later passes for the id of something that was made just before, and is to be found.
    if path_parameters:
        _spare(context.operation.method, path_parameters)
    return path_parameters


@schemathesis.hook  # type: ignore[untyped-decorator, unused-ignore]
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    operation = case.operation.definition.raw["operationId"]
    _spare(case.method, case.path_parameters)
    if not isinstance(case.body, dict) or case.meta is None or not case.meta.generation.mode.is_positive:
        return
    half = next(_turn) % 2
    if operation in ("jobs_create", "estimates_estimate") and half:
        # Options at random contradict each other nearly always: half of the jobs go without.
        kept = {key: case.body[key] for key in _KEPT if key in case.body}
        case.body = kept | {"model": SEEDED["base_model"], "training_file": SEEDED["training_file"]}
        case.headers.pop("X-Attune-Ext", None)
    if operation == "reports_validate" and half:
        case.body = {"model": SEEDED["base_model"]}
        case.headers.pop("X-Attune-Ext", None)
    if operation == "reports_preview" and half:
        case.body = {"model": SEEDED["base_model"], "rows": [{"text": "a"}], "limit": case.body.get("limit", 5)}
        case.headers.pop("X-Attune-Ext", None)
    if operation == "permissions_create" and half:
        case.body = {"project_ids": [SEEDED["other_project"]]}
    if operation == "uploads_complete" and half and _uploads:
        # Parts that add up to what was announced.
        upload = _uploads.pop()
        case.path_parameters["upload_id"] = upload["id"]
        case.body = {"part_ids": upload["part_ids"]}
