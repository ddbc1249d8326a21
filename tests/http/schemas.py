"""The published OpenAPI document as an oracle: jsonschema reads it, stellar_sdk and decimal know its formats."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from decimal import Decimal
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend
from stellar_sdk import StrKey

from fluxora.http.openapi import document
from fluxora.http.routes import ROUTES

FORMATS = FormatChecker(formats=())


@FORMATS.checks("stellar-address")
def _is_address(value: Any) -> bool:
    return not isinstance(value, str) or StrKey.is_valid_ed25519_public_key(value) or StrKey.is_valid_contract(value)


@FORMATS.checks("stellar-contract")
def _is_contract(value: Any) -> bool:
    return not isinstance(value, str) or StrKey.is_valid_contract(value)


@FORMATS.checks("decimal-amount")
def _is_amount(value: Any) -> bool:
    if not isinstance(value, str) or not re.fullmatch(r"[+-]?[0-9]+(\.[0-9]+)?", value):
        return True  # the pattern's business
    number = Decimal(value)
    fraction = value.partition(".")[2]
    return abs(number) < 2**63 and len(fraction) <= 7


@FORMATS.checks("position")
def _is_position(value: Any) -> bool:
    return not isinstance(value, str) or not value.isdecimal() or int(value) < 2**63


def _pattern(_validator, pattern, instance, _schema):
    """As ECMA 262 has it: `$` is the very end, not the place in front of a last line feed as well."""
    if isinstance(instance, str) and not re.search(re.sub(r"\$$", r"\\Z", pattern), instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


_Validator = extend(Draft202012Validator, {"pattern": _pattern})


@cache
def published() -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(document(ROUTES, "1.2.3"))
    return parsed


@cache
def _closed_components() -> dict[str, Any]:
    """The components, but with no room for members that they do not name."""
    components = deepcopy(published()["components"])
    for schema in components["schemas"].values():
        if schema.get("type") == "object" and "properties" in schema:
            schema["additionalProperties"] = False
    return components


def validator(schema: dict[str, Any], *, closed: bool = False) -> Draft202012Validator:
    """A validator of a schema that may refer to the document's components."""
    components = _closed_components() if closed else published()["components"]
    return _Validator({**schema, "components": components}, format_checker=FORMATS)


def operation(operation_id: str) -> dict[str, Any]:
    return next(
        shape
        for methods in published()["paths"].values()
        for shape in methods.values()
        if shape["operationId"] == operation_id
    )


def parameters(operation_id: str, place: str) -> dict[str, dict[str, Any]]:
    """The schema of each parameter of a place, by name."""
    shape = operation(operation_id)
    return {item["name"]: item["schema"] for item in shape.get("parameters", ()) if item["in"] == place}


def response(operation_id: str, status: int) -> dict[str, Any]:
    found: dict[str, Any] = operation(operation_id)["responses"][str(status)]
    if "$ref" in found:
        name = found["$ref"].rpartition("/")[2]
        found = published()["components"]["responses"][name]
    return found
