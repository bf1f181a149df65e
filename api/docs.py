"""``/docs``: the OpenAPI document as one page that people read. No script, nothing from elsewhere, made once."""

import json
import re
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from jinja2 import Environment
from markupsafe import Markup, escape

Json = dict[str, Any]  # parts of the document; their shape is OpenAPI's

_TEMPLATE = Path(__file__).with_name("docs.html.jinja")
_METHODS = ("get", "head", "post", "put", "patch", "delete")
_HEADERS = {
    # The page may do nothing but be looked at.
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
}


def install(app: FastAPI) -> None:
    pages: list[str] = []

    @app.get("/docs", include_in_schema=False, response_class=HTMLResponse)
    def docs() -> HTMLResponse:
        if not pages:
            pages.append(page(app.openapi()))
        return HTMLResponse(pages[0], headers=_HEADERS)


def page(document: Json) -> str:
    """The document as HTML."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(prose=_prose, shown=_shown, json=_indented)
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        info=document["info"],
        groups=_groups(document),
        schemas=sorted(document["components"]["schemas"].items()),
        answer=lambda answer: _resolved(answer, document),
        required=lambda schema, name: name in schema.get("required", []),
    )


def _groups(document: Json) -> list[Json]:
    """Operations by tag, in the order of the tags."""
    groups = [{**tag, "operations": []} for tag in document["tags"]]
    for path, item in document["paths"].items():
        for method in _METHODS:
            if method in item:
                operation = {**item[method], "path": path, "method": method}
                next(g for g in groups if g["name"] in operation["tags"])["operations"].append(operation)
    return groups


def _resolved(part: Json, document: Json) -> Json:
    if "$ref" not in part:
        return part
    found: Any = document
    for key in part["$ref"].removeprefix("#/").split("/"):
        found = found[key]
    return dict(found)


def _prose(text: str) -> Markup:
    """Paragraphs, with what stands in backticks as code."""
    paragraphs = re.split(r"\n\s*\n", text.strip())
    marked = (re.sub(r"(`+)(.+?)\1", r"<code>\2</code>", str(escape(paragraph))) for paragraph in paragraphs)
    # Escaped above, before the marks were put in.
    return Markup("".join(f"<p>{paragraph}</p>" for paragraph in marked))


def _indented(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _shown(schema: Json) -> Markup:
    """What a value may be, in one line: ``integer, 1 to 100, default 20``."""
    return Markup(", ").join([_type(schema), *(escape(bound) for bound in _bounds(schema))])


def _type(schema: Json) -> Markup:
    if "$ref" in schema:
        name = escape(schema["$ref"].rsplit("/", 1)[-1])
        return Markup('<a href="#schema-{0}">{0}</a>').format(name)
    if "const" in schema:
        return Markup("<code>{}</code>").format(json.dumps(schema["const"]))
    if "enum" in schema:
        return Markup(" | ").join(Markup("<code>{}</code>").format(json.dumps(value)) for value in schema["enum"])
    if "anyOf" in schema:
        # The bounds of one of several types stand with it, in brackets; alone, they stand behind.
        return Markup(" or ").join(
            _type(option) + (f" ({', '.join(bounds)})" if (bounds := _bounds(option)) else "")
            for option in schema["anyOf"]
        )
    if schema.get("type") == "array":
        return Markup("list of ") + _type(schema.get("items", {}))
    if isinstance(schema.get("additionalProperties"), dict):
        return Markup("map to ") + _type(schema["additionalProperties"])
    return escape(schema.get("type", "anything"))


def _bounds(schema: Json) -> list[str]:
    found = []
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        found.append(f"{low} to {high}")
    elif low is not None:
        found.append(f"at least {low}")
    elif high is not None:
        found.append(f"at most {high}")
    for key, words in (
        ("exclusiveMinimum", "above {}"),
        ("exclusiveMaximum", "below {}"),
        ("minLength", "at least {} characters"),
        ("maxLength", "at most {} characters"),
        ("minItems", "at least {}"),
        ("maxItems", "at most {}"),
        ("pattern", "like {}"),
    ):
        if key in schema and (key, schema[key]) != ("minLength", 1):
            found.append(words.format(schema[key]))
    if schema.get("default") is not None:
        found.append(f"default {json.dumps(schema['default'])}")
    return found
