"""The examples of the OpenAPI document: written for what is worth reading, made of the schema for the rest."""

from typing import Any

Json = dict[str, Any]

ERRORS: dict[int, Json] = {
    400: {
        "message": "ext.lora.rank: 0 is not an integer from 1 to 512.",
        "type": "invalid_request_error",
        "param": "ext.lora.rank",
        "code": "invalid_value",
    },
    401: {
        "message": "You didn't provide an API key. Send it in the header `Authorization: Bearer <key>`.",
        "type": "invalid_request_error",
        "param": None,
        "code": "missing_api_key",
    },
    403: {
        "message": "This API key lacks the scope 'train'.",
        "type": "invalid_request_error",
        "param": None,
        "code": "insufficient_permissions",
    },
    404: {
        "message": "No such fine-tuning job: 'ftjob-abc123'.",
        "type": "invalid_request_error",
        "param": "id",
        "code": "not_found",
    },
    409: {
        "message": "The file 'file-abc123' is needed by the job 'ftjob-abc123', which is running.",
        "type": "invalid_request_error",
        "param": "file_id",
        "code": "conflict",
    },
    413: {
        "message": "The request body is larger than 1,048,576 bytes.",
        "type": "invalid_request_error",
        "param": None,
        "code": "file_too_large",
    },
    422: {
        "message": "The idempotency key 'order-17' was used with another request body.",
        "type": "invalid_request_error",
        "param": None,
        "code": "idempotency_key_reused",
    },
    429: {
        "message": "This API key made more than 600 requests within a minute.",
        "type": "rate_limit_error",
        "param": None,
        "code": "rate_limit_exceeded",
    },
    500: {
        "message": "The server had an error; it has been logged.",
        "type": "server_error",
        "param": None,
        "code": "server_error",
    },
    503: {
        "message": "The database is away; try again shortly.",
        "type": "server_error",
        "param": None,
        "code": "unavailable",
    },
}

_FAULT = {
    "line": 17,
    "path": "messages[2].role",
    "code": "unknown_role",
    "message": '"bot" is not one of system, developer, user, assistant, tool',
    "excerpt": '"bot"',
}
_NONE: Json = {"count": 0, "lines": []}
_SURVEY: Json = {
    "format": "chat",
    "container": "jsonl",
    "compression": None,
    "converted_from": None,
    "conversion": None,
    "bytes": 48213,
    "lines": 160,
    "rows": 159,
    "bad_rows": 1,
    "broken": False,
    "roles": {"system": 159, "user": 212, "assistant": 212},
    "fault_count": 1,
    "fault_codes": {"unknown_role": 1},
    "faults": [_FAULT],
    "duplicates": {"count": 1, "rows": [{"line": 88, "other": 12}]},
    "near_duplicates": {
        "sampled": 159,
        "least_similarity": 0.8,
        "count": 1,
        "rows": [{"line": 91, "other": 40, "similarity": 0.86}],
    },
    "odd": {
        "empty_answers": _NONE,
        "repeated_answers": [{"answer": "I don't know.", "count": 9, "share": 0.0566, "lines": [3, 21, 44]}],
        "length_outliers": {"usual_least": 140, "usual_most": 390, "short": _NONE, "long": {"count": 1, "lines": [52]}},
    },
    "models": [
        {
            "model": "gemma-3-270m",
            "chat_template": "default:gemma3",
            "context_length": 32768,
            "max_length": 1024,
            "over_length": "drop",
            "train_on": "assistant",
            "examples": 158,
            "tokens": 14230,
            "trained_tokens": 5120,
            "lengths": {
                "shortest": 31,
                "mean": 96.4,
                "median": 88,
                "p90": 131,
                "p99": 240,
                "longest": 1310,
                "histogram": [{"least": 24, "most": 31, "rows": 2}, {"least": 32, "most": 47, "rows": 11}],
            },
            "truncated": _NONE,
            "dropped": {"count": 1, "lines": [52]},
            "masked": _NONE,
            "straddling": _NONE,
            "remarks": {},
            "fault_count": 0,
            "faults": [],
        }
    ],
    "validation": None,
}
_FINDINGS = {"url": "https://s3.example.com/attune/answers/answer_abc123/findings.jsonl", "expires_in": 900}

_HYPERPARAMETERS = {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 1.0}
_MODEL = "ft:gemma-3-270m:acme:triage:Zb3kR9wQ"

OBJECTS: dict[str, Json] = {
    "FineTuningJob": {
        "id": "ftjob-abc123",
        "object": "fine_tuning.job",
        "model": "gemma-3-270m",
        "created_at": 1767225600,
        "finished_at": None,
        "estimated_finish": 1767226500,
        "fine_tuned_model": None,
        "organization_id": "org-abc123",
        "training_file": "file-abc123",
        "validation_file": None,
        "result_files": [],
        "trained_tokens": None,
        "status": "running",
        "error": None,
        "seed": 42,
        "metadata": {"team": "support"},
        "integrations": None,
        "hyperparameters": _HYPERPARAMETERS,
        "method": {"type": "supervised", "supervised": {"hyperparameters": _HYPERPARAMETERS}},
        "user_provided_suffix": "triage",
        "ext": {
            "phase": "training",
            "phase_since": 1767225660,
            "phase_reason": None,
            "queue": None,
            "progress": {"step": 40, "total_steps": 120, "epoch": 1.0, "percent": 33.3, "seconds_remaining": 840},
            "resolved": {"lora": {"rank": 16, "alpha": 32.0}, "optim": {"learning_rate": 0.0002}},
            "data": {"examples": 160, "truncated": 0, "dropped": 0},
            "attempts": [
                {"n": 1, "started": 1767225650, "ended": None, "why": None, "resumed_from_step": 0},
            ],
            "diagnosis": [
                {
                    "code": "overfitting",
                    "message": "From step 20 on (epoch 0.5) the validation loss rises, from 1.21 to 1.34, while the "
                    "training loss falls: the model learns its rows by heart.",
                    "evidence": {"from_step": 20, "least_valid_loss": 1.21, "last_valid_loss": 1.34, "step": 40},
                    "advice": "Use fewer epochs: about 0.5, or early_stopping; more data helps more.",
                }
            ],
            "best_checkpoint": {"id": "ftckpt_abc123", "step": 20, "valid_loss": 1.21},
            "stop_reason": None,
            "usage": {"tokens": 81920, "steps": 40, "accelerator_seconds": 61.5},
            "base_model": "gemma-3-270m",
            "options": {"lora": {"rank": 16}},
        },
    },
    "FileObject": {
        "id": "file-abc123",
        "object": "file",
        "bytes": 48213,
        "created_at": 1767225600,
        "expires_at": None,
        "filename": "train.jsonl",
        "purpose": "fine-tune",
        "status": "processed",
        "status_details": None,
        "ext": {
            "format": "chat",
            "report": {"rows": 160, "fault_count": 0, "faults": []},
            "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "job_id": None,
        },
    },
    "FileReport": {**_SURVEY, "object": "file.report", "file_id": "file-abc123", "findings": _FINDINGS},
    "FileVerdict": {
        "object": "file.verdict",
        "file_id": "file-abc123",
        "ok": False,
        "faults": [
            {
                "param": "training_file",
                "code": "unknown_role",
                "message": f"line 17: messages[2].role: {_FAULT['message']}",
                "count": 1,
                "lines": [17],
            }
        ],
        "warnings": [
            {
                "param": "training_file",
                "code": "over_length",
                "message": "1 row(s) have more than 1024 tokens and are left out",
                "count": 1,
                "lines": [52],
            }
        ],
        "survey": _SURVEY,
        "findings": _FINDINGS,
    },
    "RowsPreview": {
        "object": "fine_tuning.preview",
        "model": "gemma-3-270m",
        "format": "completion",
        "converted_from": None,
        "conversion": None,
        "chat_template": "default:gemma3",
        "max_length": 32768,
        "prompt_loss_weight": 0.1,
        "rows": [
            {
                "line": 1,
                "part": "row",
                "text": "2 + 2 = 4",
                "spans": [{"start": 8, "end": 9}],
                "tokens": [
                    {"id": 2, "text": "<bos>", "weight": 0, "trained": False},
                    {"id": 236778, "text": "2", "weight": 0.1, "trained": False},
                    {"id": 236812, "text": "4", "weight": 1, "trained": True},
                ],
                "length": 9,
                "fate": "kept",
            }
        ],
        "faults": [],
        "more": True,
    },
    "Estimate": {
        "object": "fine_tuning.estimate",
        "model": "gemma-3-270m",
        "feasible": False,
        "reason": {
            "code": "not_enough_memory",
            "message": "It takes 9.3 GB, and a slot of the largest worker has 7.2 GB.",
        },
        "choices": [
            {
                "change": {"ext": {"micro_batch_size": 2}},
                "message": "micro_batch_size 2: the same steps, computed in smaller pieces",
                "memory_bytes": 5400000000,
                "seconds": 1310.0,
            }
        ],
        "tokens": {
            "examples": 240,
            "validation": 0,
            "sources": {},
            "per_epoch": 16382,
            "trained_per_epoch": 6120,
            "total": 49146,
            "longest": 512,
        },
        "steps": 90,
        "epochs": 3,
        "memory": {
            "total": 9300000000,
            "program": 376000000,
            "weights": 1072000000,
            "adapter": 61000000,
            "activations": 7700000000,
            "other": 91000000,
        },
        "seconds": None,
        "step_seconds": None,
        "price": {
            "amount": None,
            "currency": "EUR",
            "rates": {"currency": "EUR", "per_hour": 0.4, "per_million_tokens": None},
        },
        "queue": {"jobs_before": 0, "seconds": 0},
        "workers": [
            {"device": "cpu (2 cores)", "memory_bytes": 8000000000, "slots": 1, "fits": False, "seconds": None}
        ],
        "resolved": {"micro_batch_size": 8, "max_length": 512},
        "warnings": [],
        "advice": [
            {
                "code": "method",
                "message": "LoRA suits 240 examples: training every weight usually takes thousands of them, and with "
                "few hundred it is rarely better and always dearer.",
                "change": None,
            }
        ],
    },
    "Pending": {"id": "answer_abc123", "object": "answer", "kind": "report", "status": "in_progress"},
    "JobEvent": {
        "id": "ftevent-abc123",
        "object": "fine_tuning.job.event",
        "created_at": 1767225700,
        "level": "info",
        "message": "Step 40/120: training loss=0.15",
        "type": "metrics",
        "data": {"number": 45, "step": 40, "total_steps": 120, "train_loss": 0.15},
    },
    "JobCheckpoint": {
        "id": "ftckpt_abc123",
        "object": "fine_tuning.job.checkpoint",
        "created_at": 1767225700,
        "fine_tuned_model_checkpoint": f"{_MODEL}:ckpt-step-40",
        "fine_tuning_job_id": "ftjob-abc123",
        "metrics": {
            "step": 40,
            "train_loss": 0.15,
            "train_mean_token_accuracy": 0.96,
            "valid_loss": 0.21,
            "valid_mean_token_accuracy": 0.94,
            "full_valid_loss": 0.21,
            "full_valid_mean_token_accuracy": 0.94,
        },
        "step_number": 40,
    },
    "Model": {
        "id": _MODEL,
        "object": "model",
        "created": 1767226500,
        "owned_by": "acme",
        "ext": {
            "kind": "tuned",
            "base_model": "gemma-3-270m",
            "job_id": "ftjob-abc123",
            "result_files": ["file-def456", "file-ghi789"],
            "alias_of": None,
        },
    },
    "BaseModelCreate": {"name": "gemma-3-270m", "source": "hf:google/gemma-3-270m", "aliases": ["gpt-4o-mini"]},
}

# What a field or a parameter of this name holds, where no example of its object is written.
WORDS: dict[str, Any] = {
    "file_id": "file-abc123",
    "job_id": "ftjob-abc123",
    "upload_id": "upload_abc123",
    "part_id": "part_abc123",
    "permission_id": "cp_abc123",
    "checkpoint": f"{_MODEL}:ckpt-step-40",
    "fine_tuned_model_checkpoint": f"{_MODEL}:ckpt-step-40",
    "project_id": "proj_abc123",
    "project_ids": ["proj_abc123"],
    "key_id": "key_abc123",
    "webhook_endpoint_id": "we_abc123",
    "model": "gemma-3-270m",
    "base_model": "gemma-3-270m",
    "name": "gemma-3-270m",
    "source": "hf:google/gemma-3-270m",
    "license": "Apache-2.0",
    "path": "adapter_model.safetensors",
    "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "md5": "d41d8cd98f00b204e9800998ecf8427e",
    "url": "https://example.com/hooks/attune",
    "filename": "train.jsonl",
    "mime_type": "text/jsonl",
    "purpose": "fine-tune",
    "bytes": 48213,
    "file": '{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}\n',
    "data": '{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}\n',
    "expires_after[seconds]": 86400,
    "scopes": ["read", "train"],
    "prefix": "sk-attune-4fGh",
    "key": "sk-attune-4fGh…",
    "device": "NVIDIA H100 80GB HBM3",
    "memory_bytes": 85899345920,
    "slots": 1,
    "version": "0.1.0",
    "base_models": ["gemma-3-270m"],
    "signing_secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "signing_secret_hint": "whsec_MfKQ…",
    "event_type": "fine_tuning.job.succeeded",
    "event_types": ["fine_tuning.job.succeeded"],
    "status_code": 200,
    "checks": {"database": "ok", "redis": "ok", "s3": "ok"},
}

# The id of an object, by what its key ``object`` says.
_IDS = {
    "file": "file-abc123",
    "upload": "upload_abc123",
    "upload.part": "part_abc123",
    "checkpoint.permission": "cp_abc123",
    "api_key": "key_abc123",
    "worker": "worker_abc123",
    "webhook_endpoint": "we_abc123",
}


def made(schema: Json, schemas: Json, name: str = "", within: tuple[str, ...] = ()) -> Any:  # Any: whatever JSON it is
    """An example of this schema. ``within`` are the schemas it lies in, which end a circle."""
    if "$ref" in schema:
        target = schema["$ref"].rsplit("/", 1)[-1]
        return None if target in within else made(schemas[target], schemas, name, (*within, target))
    if "examples" in schema:
        return schema["examples"][0]
    for key in ("example", "const"):
        if key in schema:
            return schema[key]
    if "anyOf" in schema:
        return _of_union(schema, schemas, name, within)
    if "enum" in schema:
        return schema["enum"][0]
    if name in WORDS and _kind(WORDS[name]) == schema.get("type"):
        return WORDS[name]
    if schema.get("default") is not None:
        return schema["default"]
    return _plain(schema, schemas, name, within)


def _of_union(schema: Json, schemas: Json, name: str, within: tuple[str, ...]) -> Any:  # Any: as above
    nothing = {"type": "null"}
    options = [option for option in schema["anyOf"] if option != nothing]
    # A field that may be empty and of which nothing is known to say is shown empty.
    if nothing in schema["anyOf"] and name not in WORDS and "$ref" not in options[0]:
        return 1767225600 if name.endswith("_at") else None
    value = made(options[0], schemas, name, within)
    return None if value is None else value


def _plain(schema: Json, schemas: Json, name: str, within: tuple[str, ...]) -> Any:  # Any: as above
    kind = schema.get("type")
    if kind == "object":
        found = {key: made(inner, schemas, key, within) for key, inner in schema.get("properties", {}).items()}
        if isinstance(found.get("id"), str) and found.get("object") in _IDS:
            found["id"] = _IDS[found["object"]]
        return found
    if kind == "array":
        return [made(schema["items"], schemas, name, within)]
    if kind == "string":
        return "abc123" if name == "id" else name or "text"
    if kind == "integer":
        return 1767225600 if name.endswith(("_at", "created")) else max(1, schema.get("minimum", 1))
    return {"number": 1.0, "boolean": True}.get(str(kind))


def _kind(value: object) -> str:
    kinds: dict[type, str] = {str: "string", int: "integer", list: "array", dict: "object"}
    return kinds[type(value)]
