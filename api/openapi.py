"""The service's own OpenAPI document: what FastAPI reads off the routes, made whole by one pass over all of them.

A new route inherits everything here by itself: key, errors, headers, readable ids, descriptions of what many routes
share, examples, and links from what creates a thing to what uses it.
"""

import copy
import json
import re
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from api import examples
from core.options import Hyperparameters, JobOptions
from core.schemas.errors import ErrorEnvelope

Json = dict[str, Any]  # parts of the document; their shape is OpenAPI's

_METHODS = ("get", "put", "post", "delete", "patch", "head")
_REF = "#/components/schemas/"

_DESCRIPTION = """\
OpenAI's fine-tuning API, on your own machines. Any client of OpenAI's works with another base URL; what is ours lies
under the key `ext` and in endpoints of its own, so nothing of it is ever in the way.

Times are Unix seconds. Lists take `after`, the last id of the page before, and `limit`. Every answer carries
`x-request-id`. Every error is the same envelope, `{"error": {"message", "type", "param", "code"}}`: `param` is the full
path of the field at fault, and `code` is stable. Unknown query parameters are ignored.
"""

_TAGS = {
    "files": "Training data, validation data and results. Rows are checked line by line on their way in.",
    "uploads": "Files that come in parts: in parallel, in any order, sent again where one was lost.",
    "fine-tuning": "Jobs: created, watched, steered, and what came of them.",
    "models": "Base models, their aliases, and what was tuned from them.",
    "webhooks": "Being told when a job has ended, signed as Standard Webhooks says.",
    "admin": "Base models, API keys and workers. Needs a key with the scope `admin`.",
    "operations": "For whatever keeps this service running. Needs no key.",
}

# Parameters that many routes share, told once. A route's own description wins.
_PARAMETERS = {
    "model": "The model's name. A slash in it may be sent raw or as `%2F`.",
    "name": "The base model's name. A slash in it may be sent raw or as `%2F`.",
    "checkpoint": "The name of a tuned model or of a checkpoint of one.",
    "after": "The last id of the page before.",
    "limit": "How many at most.",
    "order": "By time of creation.",
    "purpose": "Only files of this purpose.",
}

_ERRORS: dict[int, tuple[str, str]] = {
    400: ("BadRequest", "Something in the request is wrong; `param` names the field and `message` what was expected."),
    401: ("Unauthenticated", "There is no API key, or it is not a good one."),
    403: ("Forbidden", "The key lacks the scope, or a quota of the project is reached; `code` says which."),
    404: ("NotFound", "There is no such thing, or it is another project's."),
    409: ("Conflict", "Its state does not allow this. Sending the request again does not help."),
    413: ("TooLarge", "The body is larger than the service takes."),
    422: ("KeyReused", "The `Idempotency-Key` was used with another body."),
    429: ("RateLimited", "Too many requests of this key; `retry-after` says when to come again."),
    500: ("ServerError", "The server had an error; it has been logged under the answer's `x-request-id`."),
    503: ("Unavailable", "Something behind the service is away; `retry-after` says when to come again."),
}

_HEADERS: dict[str, tuple[str, Json]] = {
    "x-request-id": ("The request's id in the server's log.", {"type": "string", "pattern": "^req_"}),
    "x-should-retry": ("`false`: the official clients don't send it again.", {"type": "string", "const": "false"}),
    "retry-after": ("Seconds to wait.", {"type": "integer", "minimum": 1}),
    "www-authenticate": ("The scheme that is wanted.", {"type": "string", "const": "Bearer"}),
}
_ERROR_HEADERS = {
    401: ("www-authenticate",),
    409: ("x-should-retry",),
    429: ("retry-after",),
    500: ("x-should-retry",),
    503: ("retry-after",),
}

# Free-form for the parser, which hands them to core/options for better sentences; the document says what they take.
_OPTIONS: dict[tuple[str, str], type[JobOptions] | type[Hyperparameters]] = {
    ("JobCreate", "ext"): JobOptions,
    ("JobCreate", "hyperparameters"): Hyperparameters,
}


def install(app: FastAPI) -> None:
    """Let the application answer ``/openapi.json`` with this document; made at the first request for it."""

    def whole() -> Json:
        if app.openapi_schema is None:
            app.openapi_schema = document(app)
        return app.openapi_schema

    app.openapi = whole  # type: ignore[method-assign]  # FastAPI's own way to extend its document


def operation_id(route: APIRoute) -> str:
    """``files_create``, ``jobs_list``, ``jobs_list_events``: the noun's module and what the function does."""
    noun = route.endpoint.__module__.rsplit(".", 1)[-1]
    verb = "list" if route.name == f"list_{noun}" else route.name
    return f"{noun}_{verb}"


def document(app: FastAPI) -> Json:
    """The whole document, examples and links included."""
    made: Json = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=_DESCRIPTION,
        routes=app.routes,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        tags=[{"name": name, "description": text} for name, text in _TAGS.items()],
        servers=[{"url": "/", "description": "This service"}],
    )
    # FastAPI shares parts between operations; here each is changed by itself.
    doc = copy.deepcopy(made)
    components = doc.setdefault("components", {})
    schemas: Json = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    _common(components)
    used = {tag for operation in _operations(doc) for tag in operation[2].get("tags", [])}
    doc["tags"] = [tag for tag in doc["tags"] if tag["name"] in used]
    for path, method, operation in _operations(doc):
        _name(operation)
        _parameters(operation)
        _body(operation, schemas)
        _answers(path, method, operation)
    _options(schemas)
    _examples(doc)
    _links(doc)
    # Pydantic names a page after its class and its item; readers and generated clients want a word.
    named: Json = json.loads(re.sub(r"\b(?:Ended)?Page_(\w+?)_(?=\")", r"\1List", json.dumps(doc)))
    return named


def _operations(doc: Json) -> list[tuple[str, str, Json]]:
    return [
        (path, method, operation)
        for path, item in doc["paths"].items()
        for method, operation in item.items()
        if method in _METHODS
    ]


def _common(components: Json) -> None:
    components["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "An API key, `sk-attune-…`."}
    }
    components["headers"] = {
        name: {"description": text, "required": True, "schema": schema} for name, (text, schema) in _HEADERS.items()
    }
    _add(components["schemas"], "ErrorEnvelope", ErrorEnvelope.model_json_schema(ref_template=_REF + "{model}"))
    components["responses"] = {
        name: {
            "description": text,
            "headers": _headers("x-request-id", *_ERROR_HEADERS.get(status, ())),
            "content": {
                "application/json": {
                    "schema": {"$ref": _REF + "ErrorEnvelope"},
                    "example": {"error": examples.ERRORS[status]},
                }
            },
        }
        for status, (name, text) in _ERRORS.items()
    }


def _headers(*names: str) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _add(schemas: Json, name: str, schema: Json) -> None:
    """Put a model's schema among the components, with what it is made of."""
    for inner, definition in schema.pop("$defs", {}).items():
        schemas.setdefault(inner, definition)
    schemas.setdefault(name, schema)


def _name(operation: Json) -> None:
    """A summary that reads as words, unless the route has its own."""
    noun, _, verb = operation["operationId"].partition("_")
    if operation.get("summary", "").lower() not in (verb.replace("_", " "), f"{verb} {noun}"):
        return
    thing = noun.removesuffix("s")
    if verb == "list":
        operation["summary"] = f"List {noun}"
    elif "_" in verb:
        operation["summary"] = verb.replace("_", " ").capitalize()
    else:
        operation["summary"] = f"{verb.capitalize()} {'an' if thing[0] in 'aeiou' else 'a'} {thing}"


def _parameters(operation: Json) -> None:
    for parameter in operation.get("parameters", []):
        name, schema = parameter["name"], parameter["schema"]
        schema.pop("title", None)
        if "description" not in parameter:
            if name in _PARAMETERS:
                parameter["description"] = _PARAMETERS[name]
            elif name.endswith("_id"):
                parameter["description"] = f"Id of the {name.removesuffix('_id').replace('_', ' ')}."
        if parameter["in"] == "path":
            schema.setdefault("minLength", 1)
            parameter.setdefault("example", examples.WORDS.get(name, f"{name.removesuffix('_id')}_abc123"))


def _body(operation: Json, schemas: Json) -> None:
    for media in operation.get("requestBody", {}).get("content", {}).values():
        schema = media["schema"]
        if "title" not in schema:
            continue
        _add(schemas, schema["title"], schema)
        media["schema"] = {"$ref": _REF + schema["title"]}


def _answers(path: str, method: str, operation: Json) -> None:
    answers = operation["responses"]
    answers.pop("422", None)
    if not path.startswith("/v1/"):
        operation["security"] = []
    else:
        operation["security"] = [{"key": []}]
        for status in sorted(_statuses(path, method, operation)):
            answers.setdefault(str(status), {"$ref": f"#/components/responses/{_ERRORS[status][0]}"})
    for answer in answers.values():
        if "$ref" not in answer:
            if answer["description"] == "Successful Response":
                answer["description"] = "As asked."
            answer.setdefault("headers", {}).update(_headers("x-request-id"))


def _statuses(path: str, method: str, operation: Json) -> set[int]:
    found = {400, 401, 403, 429, 500, 503}
    if "{" in path:
        found.add(404)
        if method != "get":
            found.add(409)
    if "requestBody" in operation:
        found.add(413)
    if any(parameter["name"].lower() == "idempotency-key" for parameter in operation.get("parameters", [])):
        found.add(422)
    return found | set(operation.pop("x-also", []))


def _options(schemas: Json) -> None:
    for (owner, field), table in _OPTIONS.items():
        name = table.__name__
        _add(schemas, name, table.model_json_schema(ref_template=_REF + "{model}"))
        schemas[owner]["properties"][field] = {"anyOf": [{"$ref": _REF + name}, {"type": "null"}]}


def _examples(doc: Json) -> None:
    """An example for every body that is sent or answered as JSON, made of its schema's where none was written."""
    schemas = doc["components"]["schemas"]
    for name, schema in schemas.items():
        written = examples.OBJECTS.get(name, schema.pop("example", None))
        if written is not None:
            schema["examples"] = [written]
    for _, _, operation in _operations(doc):
        bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
        for kind, media in (pair for body in bodies for pair in body.get("content", {}).items()):
            if kind in ("application/json", "multipart/form-data") and not {"example", "examples"} & media.keys():
                media["example"] = examples.made(media["schema"], schemas)


def _links(doc: Json) -> None:
    """From the answer that holds an id to every operation that takes it in its path."""
    ids = {
        (path, method): operation["operationId"]
        for path, method, operation in _operations(doc)
        if path.startswith("/v1/")
    }
    for path, method, operation in _operations(doc):
        source = {"get": "$response.body#/data/0/id", "post": "$response.body#/id"}.get(method)
        answer = operation["responses"].get("200")
        if source is None or answer is None or "{" in path:
            continue
        for (target, _), name in ids.items():
            found = re.fullmatch(re.escape(path) + r"/\{(\w+)\}(/[^{}]*)?", target)
            if found:
                answer.setdefault("links", {})[name] = {"operationId": name, "parameters": {found[1]: source}}
