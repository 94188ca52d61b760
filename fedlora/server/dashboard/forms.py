"""What a person has filled in: the body of a request, as a form or as JSON."""

import json
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request

from fedlora.errors import ConfigError

_CSRF = "csrf"
_MOST_FIELDS = 20


class Form(BaseModel):
    """What a request may say; anything else in it is a mistake. Fields left empty count as not given."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_max_length=4096)


Filled = TypeVar("Filled", bound=Form)


async def read_form(request: Request, kind: type[Filled]) -> Filled:
    """The request's body as a `kind`. Raises ConfigError with every mistake, but without what was given: a secret."""
    plain = _fields(request.headers.get("content-type", ""), await request.body())
    plain.pop(_CSRF, None)
    try:
        return kind.model_validate(plain)
    except ValidationError as error:
        raise ConfigError([f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]) from None


def _fields(media_type: str, body: bytes) -> dict[str, Any]:
    kind = media_type.partition(";")[0].strip().lower()
    try:
        if kind == "application/json":
            return _object(json.loads(body or b"{}"))
        if kind == "application/x-www-form-urlencoded" or not body:
            return _pairs(parse_qsl(body.decode(), max_num_fields=_MOST_FIELDS))
    except (ValueError, RecursionError):
        raise ConfigError(["the request's body cannot be read: send a form, or one JSON object"]) from None
    raise ConfigError([f"a body of the type {kind[:60]!r} is not taken: send a form, or JSON"])


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("no object")
    return {str(key): one for key, one in value.items() if one not in ("", None)}


def _pairs(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a field twice")
    return dict(pairs)
