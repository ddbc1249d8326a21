"""Query parameters and bodies read into models: every failing field is named in one answer, none is fixed silently.

A model is a frozen Struct of the types in `fields`; what its attributes are called on the wire is its `rename`. Beside
its fields it may have rules: `check(cls, draft)` is called with what could be read, and adds what is wrong between
fields. What a model looks like is worked out once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from fluxora.errors import BadRequest
from fluxora.http.fields import MAX_SHOWN, Invalid, Reader

M = TypeVar("M", bound=msgspec.Struct)
MAX_UNKNOWN = 20  # names of unknown members that one answer repeats: a body has room for tens of thousands
_BAD_BODY = "The body is not valid"


class Problems:
    """The failing fields of one request, in the order in which they were found."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str, str]] = []

    def add(self, field: str, code: str, message: str) -> None:
        """Note that `field` is wrong; `code` is for programs, `message` for people."""
        self.found.append((field, code, message))

    def raise_if_any(self, message: str) -> None:
        """End the request if anything was noted.

        Raises:
            BadRequest: with all the details.
        """
        if self.found:
            raise BadRequest(message, details=self.found)


class Field(msgspec.Struct, frozen=True):
    """A field of a model: its attribute, its name on the wire, and how it is read."""

    name: str
    wire_name: str
    read: Reader
    required: bool


class Draft:
    """A model's values while its rules are checked, by attribute: those that were given and could be read."""

    def __init__(self, fields: Mapping[str, Field], values: dict[str, Any]) -> None:
        self.values = values
        self.problems = Problems()
        self._fields = fields  # by wire name
        self._failed: set[str] = set()  # attributes

    def get(self, name: str) -> Any:
        """The value; None where it is absent or wrong."""
        return self.values.get(name)

    def failed(self, *names: str) -> bool:
        """True if any of these was given and is wrong: a rule that needs them cannot be judged."""
        return not self._failed.isdisjoint(names)

    def fail(self, name: str, code: str, message: str) -> None:
        """Note that a rule is broken, at the field whose change would mend it."""
        self.refuse(next(field.wire_name for field in self._fields.values() if field.name == name), code, message)

    def refuse(self, wire_name: str, code: str, message: str) -> None:
        """Note that a member is wrong, of a known name or not."""
        if field := self._fields.get(wire_name):
            self._failed.add(field.name)
        self.problems.add(wire_name[:MAX_SHOWN], code, message)


class _Plan(msgspec.Struct, frozen=True):
    """A model, worked out. `fields` by wire name; `empty` is the model of an empty query, None where that is wrong.

    `closed`: members that are not known are refused.
    """

    fields: dict[str, Field]
    closed: bool
    check: Callable[[Draft], None] | None
    empty: msgspec.Struct | None


def read_query(model: type[M], pairs: Sequence[tuple[str, str]]) -> M:
    """The parameters of one request, decoded. Unknown and repeated ones are refused.

    Raises:
        BadRequest: naming every parameter that is wrong.
    """
    plan = _plan(model)
    if not pairs and plan.empty is not None:
        return plan.empty  # type: ignore[return-value]  # made by _plan from this very model
    fields = plan.fields
    values: dict[str, Any] = {}
    draft = Draft(fields, values)
    seen: dict[str, int] = {}
    for name, text in pairs:
        times = seen[name] = seen.get(name, 0) + 1
        field = fields.get(name)
        if times > 1:
            if times == 2 and field is not None:
                draft.refuse(name, "REPEATED_PARAMETER", "The parameter stands more than once")
        elif field is None:
            draft.refuse(name, "UNKNOWN_PARAMETER", "Unknown parameter")
        else:
            try:
                values[field.name] = field.read.text(text)
            except Invalid as error:
                draft.refuse(name, error.code, str(error))
    for name, field in fields.items():
        if field.required and name not in seen:
            draft.refuse(name, "REQUIRED", "The parameter is needed")
    return _built(model, plan, draft, "The query parameters are not valid")


def read_body(model: type[M], value: Any, *, defaults: Mapping[str, Any] | None = None) -> M:
    """A JSON body. `defaults` are values by attribute for absent members that the model cannot know (the current
    second); its rules hold for them too.

    Raises:
        BadRequest: naming every member that is wrong; as "" where the body is no object.
    """
    if not isinstance(value, dict):
        raise BadRequest(_BAD_BODY, details=[("", "INVALID_TYPE", "An object is needed")])
    return _built(model, _plan(model), read_members(model, value, defaults), _BAD_BODY)


def read_members(
    model: type[msgspec.Struct], value: dict[str, Any], defaults: Mapping[str, Any] | None = None
) -> Draft:
    """The members of one JSON object, each read by itself; the model's own rules are not looked at.

    Unknown members are refused where the model forbids them: a misspelt one must not silently change what is asked for.
    An optional member that is null counts as absent.
    """
    plan = _plan(model)
    draft = Draft(plan.fields, dict(defaults or {}))
    if plan.closed:
        unknown = [name for name in value if name not in plan.fields]
        for name in unknown[:MAX_UNKNOWN]:
            draft.refuse(name, "UNKNOWN_FIELD", "Unknown field")
    for name, field in plan.fields.items():
        given = value.get(name)
        if given is None and not (field.required and field.read.takes_null and name in value):
            if field.required:
                draft.refuse(name, "REQUIRED", "The field is needed")
            continue
        try:
            draft.values[field.name] = field.read.json(given)
        except Invalid as error:
            draft.values.pop(field.name, None)
            draft.refuse(name, error.code, str(error))
    return draft


def _built(model: type[M], plan: _Plan, draft: Draft, message: str) -> M:
    if plan.check is not None:
        plan.check(draft)
    draft.problems.raise_if_any(message)
    return model(**draft.values)


@lru_cache(maxsize=256)  # every model of the program
def _plan(model: type[msgspec.Struct]) -> _Plan:
    info = inspect.type_info(model)
    assert isinstance(info, inspect.StructType)
    fields = {
        field.encode_name: Field(field.name, field.encode_name, _reader_of(model, field), field.required)
        for field in info.fields
    }
    empty = None if any(field.required for field in fields.values()) else model()
    return _Plan(fields, model.__struct_config__.forbid_unknown_fields, getattr(model, "check", None), empty)


def _reader_of(model: type[msgspec.Struct], field: inspect.Field) -> Reader:
    kinds = [field.type]
    while kinds:
        kind = kinds.pop()
        if isinstance(kind, inspect.UnionType):
            kinds += kind.types
        elif isinstance(kind, inspect.Metadata):
            reader = (kind.extra or {}).get("read")
            if isinstance(reader, Reader):
                return reader
            kinds.append(kind.type)
    raise TypeError(f"{model.__name__}.{field.name} is of no type that says how it is read")
