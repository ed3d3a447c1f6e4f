"""The OpenAPI document: paths from the routes, every schema from the record classes themselves.

`python -m penstock.infra.gateway.openapi` writes it to openapi.json beside this file; a test keeps the two the same.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import json
import typing
from enum import StrEnum
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from penstock.infra.gateway.records import ErrorAnswer
from penstock.schemas import jsonl
from penstock.schemas.records import RecordField, fields_of

PATH = Path(__file__).with_name("openapi.json")
ERRORS = {
    401: "No API key, or one that is not known here",
    403: "The API key is of another tenant",
    404: "Nobody has this id",
    409: "Another tenant has this id",
    413: "The body is too long",
    422: "The request breaks a rule: `field` says where",
    429: "Too much waits, and the tenant asks more than its share: ask again after Retry-After seconds",
    503: "Too much waits, or a role or the broker cannot be reached: ask again after Retry-After seconds",
    504: "No answer in time",
}
_PLAIN: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer", "format": "int64"},
    float: {"type": "number", "format": "double"},
    bool: {"type": "boolean"},
    bytes: {"type": "string", "format": "byte"},
}
_MILLIS = "epoch milliseconds; ISO 8601 with an offset is taken too"

_used: set[type] = {ErrorAnswer}
_relaxed: dict[str, tuple[type, tuple[str, ...]]] = {}


def ref(record: type) -> dict[str, str]:
    """A reference to the schema of a record class, which the document will then hold."""
    _used.add(record)
    return {"$ref": f"#/components/schemas/{record.__name__}"}


def body(record: type, filled_in: tuple[str, ...] = ()) -> dict[str, Any]:
    """`openapi_extra` of a route whose body is this record as JSON. `filled_in`: what the gateway adds if it lacks."""
    schema: dict[str, Any] = ref(record)
    if filled_in:
        name = f"{record.__name__}Body"
        _relaxed[name] = (record, filled_in)
        schema = {"$ref": f"#/components/schemas/{name}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def answers(status: int, record: type | None, description: str, *errors: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route: its good answer, and which errors it may give."""
    good: dict[str, Any] = {"description": description}
    if record is not None:
        good["content"] = {"application/json": {"schema": ref(record)}}
    error = {"application/json": {"schema": ref(ErrorAnswer)}}
    return {status: good, **{code: {"description": ERRORS[code], "content": error} for code in (*errors, 422)}}


def schemas() -> dict[str, Any]:
    """Every schema that the routes refer to, and those within."""
    out: dict[str, Any] = {}
    for record in sorted(_used, key=lambda one: one.__name__):
        _add(record, out)
    for name, (record, filled_in) in _relaxed.items():
        whole = out[record.__name__]
        required = [field for field in whole["required"] if field not in filled_in]
        out[name] = {**whole, "title": name, "required": required}
    return dict(sorted(out.items()))


def _add(record: type, out: dict[str, Any]) -> None:
    if record.__name__ in out:
        return
    if issubclass(record, StrEnum):
        out[record.__name__] = {"type": "string", "enum": [member.value for member in record]}
        return
    schema: dict[str, Any] = {"type": "object", "title": record.__name__}
    out[record.__name__] = schema
    if record.__doc__:
        schema["description"] = " ".join(record.__doc__.split())
    schema["properties"] = {field.name: _property(field, out) for field in fields_of(record)}
    required = [
        field.name for field in fields_of(record) if field.default is dataclasses.MISSING and not field.optional
    ]
    if required:
        schema["required"] = required


def _property(field: RecordField, out: dict[str, Any]) -> dict[str, Any]:
    kind = _kind(field.hint, out)
    if field.optional:
        kind = {"anyOf": [kind, {"type": "null"}]}
    doc = "; ".join(part for part in (field.doc, _MILLIS if field.millis else None) if part)
    if doc:
        kind = {**kind, "description": doc} if "$ref" not in kind else {"allOf": [kind], "description": doc}
    if field.default is not dataclasses.MISSING and field.default is not None:
        default = field.default
        kind = {**kind} if "$ref" not in kind else {"allOf": [kind]}
        if dataclasses.is_dataclass(default):
            kind["default"] = jsonl.to_json(default)
        else:
            kind["default"] = list(default) if isinstance(default, tuple) else default
    return kind


def _kind(hint: Any, out: dict[str, Any]) -> dict[str, Any]:
    while typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    if hint in _PLAIN:
        return dict(_PLAIN[hint])
    origin = typing.get_origin(hint)
    if origin is tuple:
        return {"type": "array", "items": _kind(typing.get_args(hint)[0], out)}
    if origin is collections.abc.Mapping:
        return {"type": "object", "additionalProperties": _kind(typing.get_args(hint)[1], out)}
    _add(hint, out)
    return {"$ref": f"#/components/schemas/{hint.__name__}"}


def document(app: FastAPI) -> dict[str, Any]:
    """The whole document. The same for every configuration, keys or none."""
    made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    components = made.setdefault("components", {})
    components["schemas"] = schemas()
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "apiKey": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
    }
    made["security"] = [{}, {"bearer": []}, {"apiKey": []}]  # {}: where no keys are configured
    return made


def text(made: dict[str, Any]) -> str:
    return json.dumps(made, indent=2, ensure_ascii=False, sort_keys=True) + "\n"


def main() -> None:
    from penstock.infra.gateway.app import describe_app

    PATH.write_text(text(document(describe_app())), encoding="utf-8")


if __name__ == "__main__":
    from penstock.infra.gateway import openapi  # the module that the routes know, not this second copy of it

    openapi.main()
