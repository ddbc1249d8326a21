"""The OpenAPI 3.1 document: the routing table as clients' tools read it.

Schemas come from the very models that read requests, and from those that the tests hold replies against. The same table
gives the same bytes. HEAD is served wherever GET is and has no entry of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from fluxora.http import reply_models as shown
from fluxora.http.openapi_parts import (
    INFO,
    LIMIT_HEADERS,
    REFUSALS,
    REPLY_HEADERS,
    REQUEST_HEADERS,
    SECURITY_SCHEMES,
    refusal,
)
from fluxora.http.operations import TAGS, Answered, Operation
from fluxora.http.pushed_event import EVENT_FORMS

if TYPE_CHECKING:
    from fluxora.http.routes import Route

Schema = dict[str, Any]
_SCHEMAS = "#/components/schemas/{name}"
_REFERRED = (shown.Error, *shown.PAYLOADS, *EVENT_FORMS)  # that other schemas name by hand
_JSON = "application/json"


def document(routes: Sequence[Route], version: str) -> bytes:
    """The routes that have an operation, as OpenAPI 3.1 in JSON, one line."""
    documented = [(route, route.operation) for route in routes if route.operation is not None]
    bodies = [body for _, operation in documented for body in _bodies(operation)]
    schemas, components = _schemas((*_REFERRED, *bodies))
    of_type = dict(zip((*_REFERRED, *bodies), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route, operation in documented:
        paths.setdefault(route.pattern, {})[route.method.lower()] = _operation(route, operation, of_type)
    used = {operation.tag for _, operation in documented}
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {**INFO, "version": version},
            "servers": [{"url": "/"}],
            "tags": [{"name": name, "description": text} for name, text in TAGS.items() if name in used],
            "paths": paths,
            "components": {
                "schemas": dict(sorted(components.items())),
                "headers": {**REPLY_HEADERS, **LIMIT_HEADERS},
                "responses": {name: refusal(status) for status, (name, _, _) in REFUSALS.items()},
                "securitySchemes": SECURITY_SCHEMES,
            },
        }
    )


def _bodies(operation: Operation) -> Iterable[Any]:
    if operation.body is not None:
        yield operation.body
    yield from (reply.body for reply in operation.replies.values() if reply.body is not None)


def _operation(route: Route, operation: Operation, of_type: dict[Any, Schema]) -> dict[str, Any]:
    shape: dict[str, Any] = {"operationId": operation.id, "tags": [operation.tag], "summary": operation.summary}
    if operation.description:
        shape["description"] = operation.description
    if parameters := _parameters(operation):
        shape["parameters"] = parameters
    if operation.body is not None:
        content: dict[str, Any] = {"schema": of_type[operation.body]}
        if operation.example is not None:
            content["example"] = operation.example
        shape["requestBody"] = {"required": operation.body_required, "content": {_JSON: content}}
    limited = route.access.kind is not None
    replies = {
        str(status): _reply(reply, of_type, limited=limited) for status, reply in sorted(operation.replies.items())
    }
    for status in _refused(route, operation):
        replies.setdefault(str(status), {"$ref": f"#/components/responses/{REFUSALS[status][0]}"})
    shape["responses"] = replies
    shape["security"] = _security(route, operation)
    return shape


def _refused(route: Route, operation: Operation) -> list[int]:
    """The error statuses of an operation: its own, those that its route brings, and those of every route."""
    access = route.access
    refused = {400, 406, 500, 503, *operation.refusals}
    if operation.body is not None:
        refused |= {408, 413, 415}
    if access.identifies or operation.token:
        refused.add(401)
    if access.scope is not None:
        refused.add(403)
    if access.kind is not None or access.identifies or operation.token:
        refused.add(429)
    return sorted(refused)


def _security(route: Route, operation: Operation) -> list[dict[str, list[str]]]:
    """Alternatives; the empty one is nobody."""
    access = route.access
    if operation.token:
        return [{"WorkerToken": []}]
    if access.scope is None:
        return []
    scopes = [access.scope]
    return [*([{}] if access.anonymous_ok else []), {"ApiKey": scopes}, {"Bearer": scopes}]


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    parameters: list[dict[str, Any]] = []
    for name, kind in operation.path.items():
        (schema,), _ = _schemas((kind,))
        parameters.append(_parameter(name, "path", schema, required=True, style="simple"))
    if operation.query is not None:
        _, components = _schemas((operation.query,))
        model = components[operation.query.__name__]
        for name, schema in model["properties"].items():
            parameters.append(_parameter(name, "query", schema, required=name in model["required"], style="form"))
    parameters += [REQUEST_HEADERS[name] for name in operation.headers]
    return parameters


def _parameter(name: str, place: str, schema: Schema, *, required: bool, style: str) -> dict[str, Any]:
    """A parameter is there or not: what is null in a model is an absent one."""
    alternatives = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(alternatives) == 1:
        outer = {key: value for key, value in schema.items() if key != "anyOf"}
        schema = {**alternatives[0], **outer}
    description = schema.pop("description", None)
    said = {} if description is None else {"description": description}
    return {"name": name, "in": place, **said, "required": required, "style": style, "schema": schema}


def _reply(reply: Answered, of_type: dict[Any, Schema], *, limited: bool) -> dict[str, Any]:
    headers = ("x-request-id", *reply.headers, *(LIMIT_HEADERS if limited else ()))
    shape: dict[str, Any] = {
        "description": reply.description,
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in headers},
    }
    if reply.body is not None:
        shape["content"] = {reply.media_type: {"schema": of_type[reply.body]}}
    if reply.links:
        shape["links"] = {
            name: {"operationId": name, "parameters": {"id": "$response.body#/id"}} for name in reply.links
        }
    return shape


def _schemas(types: Sequence[Any]) -> tuple[list[Schema], dict[str, Schema]]:
    """The schema of each type, and the components that they refer to by name."""
    schemas, components = msgspec.json.schema_components(types, ref_template=_SCHEMAS)
    return (
        [_on_the_wire(schema) for schema in schemas],
        {name.lstrip("_"): _on_the_wire(kind) for name, kind in components.items()},
    )


def _on_the_wire(node: Any) -> Any:
    """A schema as the wire has it.

    A pattern speaks of text: what is an int inside (an amount, a position) is a string outside. A default of null says
    no more than that the member may be absent. Text that was broken into lines is not. What is private in a module has
    a name here all the same.
    """
    if isinstance(node, list):
        return [_on_the_wire(item) for item in node]
    if not isinstance(node, dict):
        return node
    shape = {key: _on_the_wire(value) for key, value in node.items()}
    if "pattern" in shape and isinstance(shape["pattern"], str):
        shape["type"] = "string"
        if "default" in shape:
            shape["default"] = str(shape["default"])
    if shape.get("default", shape) is None:
        del shape["default"]
    if "enum" in shape and "type" not in shape:
        shape["type"] = "string"
    if isinstance(shape.get("description"), str):
        shape["description"] = " ".join(shape["description"].split())
    if isinstance(shape.get("title"), str):
        shape["title"] = shape["title"].lstrip("_")
    if "$ref" in shape:
        shape["$ref"] = shape["$ref"].replace("/_", "/")
    return shape
