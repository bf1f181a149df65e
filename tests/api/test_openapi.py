"""The service's own OpenAPI document is valid, whole and true, and its page needs no network."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from api.main import create_app

Json = dict[str, Any]
METHODS = ("get", "head", "post", "put", "patch", "delete")
ENVELOPE = {"$ref": "#/components/schemas/ErrorEnvelope"}


@pytest.fixture(scope="module")
def app() -> FastAPI:
    # Never entered, so nothing is connected to: the document and its page are made of the code alone.
    return create_app()


@pytest.fixture(scope="module")
def document(app: FastAPI) -> Json:
    answer = TestClient(app).get("/openapi.json")
    assert answer.status_code == 200
    found: Json = answer.json()
    return found


def operations(document: Json) -> Iterator[tuple[str, Json]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert method in METHODS
            yield f"{method.upper()} {path}", operation


def resolved(part: Json, document: Json) -> Json:
    while "$ref" in part:
        found: Any = document
        for key in part["$ref"].removeprefix("#/").split("/"):
            found = found[key]
        part = found
    return part


def routes(app: FastAPI) -> Iterator[str]:
    """Every route of the application, as its router knows it and not as its document says."""

    def walk(found: Any, prefix: str) -> Iterator[str]:
        for route in found:
            if hasattr(route, "methods"):
                for method in route.methods or ():
                    yield f"{method} {prefix}{re.sub(r':path}', '}', route.path)}"
            else:
                inner = getattr(route, "original_router", None) or getattr(route, "router", None)
                assert inner is not None, route
                context = getattr(route, "include_context", None)
                yield from walk(inner.routes, prefix + (getattr(context, "prefix", "") or ""))

    yield from walk(app.routes, "")


def test_it_is_a_valid_document(document: Json) -> None:
    validate(document)


def test_every_reference_leads_somewhere(document: Json) -> None:
    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                yield value["$ref"]
            for inner in value.values():
                yield from references(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from references(inner)

    found = set(references(document))
    assert len(found) > 30
    for reference in found:
        assert resolved({"$ref": reference}, document)
    assert "$defs" not in str(document)


def test_every_route_of_v1_is_in_it(app: FastAPI, document: Json) -> None:
    real = {route for route in routes(app) if " /v1/" in route}
    told = {name for name, _ in operations(document) if " /v1/" in name}
    assert len(real) > 30
    assert told == real


def test_every_operation_reads_well(document: Json) -> None:
    ids = [operation["operationId"] for _, operation in operations(document)]
    assert len(ids) == len(set(ids))
    tags = {tag["name"] for tag in document["tags"]}
    for name, operation in operations(document):
        assert re.fullmatch(r"[a-z]+(_[a-z]+)+", operation["operationId"]), name
        assert operation["summary"], name
        assert operation.get("description"), f"{name} has no docstring"
        assert set(operation["tags"]) <= tags, f"{name}: describe its tag in api/openapi.py"
        for parameter in operation.get("parameters", []):
            assert parameter.get("description"), f"{name}: {parameter['name']} is not described"


def test_ids_stay_as_clients_were_generated(document: Json) -> None:
    ids = {name: operation["operationId"] for name, operation in operations(document)}
    assert ids["POST /v1/files"] == "files_create"
    assert ids["GET /v1/fine_tuning/jobs"] == "jobs_list"
    assert ids["GET /v1/fine_tuning/jobs/{job_id}/events"] == "jobs_list_events"


def test_all_of_v1_needs_a_key_and_tells_its_errors(document: Json) -> None:
    for name, operation in operations(document):
        if " /v1/" not in name:
            assert operation["security"] == [], name
            continue
        assert operation["security"] == [{"key": []}], name
        answers = operation["responses"]
        assert {"400", "401", "403", "429", "500", "503"} <= answers.keys(), name
        assert ("404" in answers) == ("{" in name), name
        assert ("413" in answers) == ("requestBody" in operation), name
        for status, answer in answers.items():
            told = resolved(answer, document)
            assert "x-request-id" in told["headers"], (name, status)
            if status >= "400":
                assert told["content"]["application/json"]["schema"] == ENVELOPE, (name, status)


def test_creating_a_job_tells_what_ext_takes(document: Json) -> None:
    schemas = document["components"]["schemas"]
    assert {"$ref": "#/components/schemas/JobOptions"} in schemas["JobCreate"]["properties"]["ext"]["anyOf"]
    assert schemas["Lora"]["properties"]["rank"]["maximum"] == 512
    parameters = {
        parameter["name"].lower() for parameter in document["paths"]["/v1/fine_tuning/jobs"]["post"]["parameters"]
    }
    assert parameters == {"idempotency-key", "x-attune-ext"}
    assert "422" in document["paths"]["/v1/fine_tuning/jobs"]["post"]["responses"]


def examples(document: Json) -> Iterator[tuple[str, Json, Any]]:
    """Every example with the schema it must be true to."""
    for name, schema in document["components"]["schemas"].items():
        for example in schema.get("examples", []):
            yield name, schema, example
    for name, operation in operations(document):
        for parameter in operation.get("parameters", []):
            if "example" in parameter:
                yield f"{name} {parameter['name']}", parameter["schema"], parameter["example"]
        bodies = {"body": operation.get("requestBody", {}), **operation["responses"]}
        for body, part in bodies.items():
            for kind, media in resolved(part, document).get("content", {}).items():
                if "example" in media:
                    yield f"{name} {body} {kind}", media["schema"], media["example"]
                else:
                    assert kind == "text/event-stream", f"{name} {body} {kind} has no example"


def test_every_example_is_true_to_its_schema(document: Json) -> None:
    found = list(examples(document))
    assert len(found) > 100
    for name, schema, example in found:
        whole = {**schema, "components": document["components"]}
        errors = [f"{error.json_path}: {error.message}" for error in Draft202012Validator(whole).iter_errors(example)]
        assert not errors, (name, errors)


def test_what_creates_a_thing_links_to_what_uses_it(document: Json) -> None:
    links = document["paths"]["/v1/fine_tuning/jobs"]["post"]["responses"]["200"]["links"]
    assert links["jobs_cancel"] == {"operationId": "jobs_cancel", "parameters": {"job_id": "$response.body#/id"}}
    ids = {operation["operationId"] for _, operation in operations(document)}
    for name, operation in operations(document):
        for link in operation["responses"].get("200", {}).get("links", {}).values():
            assert link["operationId"] in ids, name


def test_a_new_route_inherits_everything() -> None:
    app = create_app()

    @app.post("/v1/things/{thing_id}/parts", tags=["files"])
    def add_part(thing_id: str) -> dict[str, str]:
        """Add one."""
        return {}

    found = app.openapi()["paths"]["/v1/things/{thing_id}/parts"]["post"]
    assert {"400", "401", "403", "404", "409", "429", "500", "503"} <= found["responses"].keys()
    assert "422" not in found["responses"]
    assert found["security"] == [{"key": []}]
    assert found["parameters"][0]["description"] == "Id of the thing."


class Page(HTMLParser):
    """What a page would load, where it links to, and what it says."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag in ("script", "link", "img", "iframe", "object", "embed"):
            self.loads.append(tag)
        self.loads += [value for name, value in attrs if name == "src" and value]
        if tag == "a":
            self.links.append(found.get("href") or "")
        if found.get("id"):
            self.ids.append(found["id"] or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_shows_every_operation_and_loads_nothing(app: FastAPI, document: Json) -> None:
    answer = TestClient(app).get("/docs")
    assert answer.status_code == 200
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    page = Page()
    page.feed(answer.text)
    assert page.loads == []
    assert "url(" not in answer.text
    assert "@import" not in answer.text
    assert len(page.ids) == len(set(page.ids))
    # Links stay on the page or lead to the document beside it.
    assert {link for link in page.links if not link.startswith("#")} == {"openapi.json"}
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    for name, operation in operations(document):
        assert operation["operationId"] in page.ids
        assert name.split()[1] in page.text
        for parameter in operation.get("parameters", []):
            assert parameter["name"] in page.text
    for schema in document["components"]["schemas"]:
        assert f"schema-{schema}" in page.ids


def test_what_the_document_says_is_text_on_the_page() -> None:
    from api import docs

    hostile = {
        "info": {"title": "<script>", "version": "1", "summary": "", "description": "`<b>` and <i>"},
        "tags": [],
        "paths": {},
        "components": {"schemas": {"A": {"type": "object", "properties": {"<x>": {"const": "<y>"}}}}},
    }
    text = docs.page(hostile)
    for tag in ("<script>", "<b>", "<i>", "<x>", "<y>"):
        assert tag not in text
    assert "<code>&lt;b&gt;</code>" in text
