"""Pydantic's findings as sentences: the key, the given value, why it is wrong, what is allowed."""

from pydantic_core import ErrorDetails

from fedlora.config.keys import Key, did_you_mean, keys, nearest


def dotted(detail: ErrorDetails) -> str:
    """The schema key that a finding is about; a place inside a list or free mapping counts as the key itself."""
    parts = [str(part) for part in detail["loc"]]
    prefixes = [".".join(parts[:depth]) for depth in range(len(parts), 0, -1)]
    return next((prefix for prefix in prefixes if prefix in keys()), prefixes[0] if prefixes else "")


def sentence(name: str, detail: ErrorDetails, key: Key | None) -> str:
    """One finding about the key `name`; `key` describes it, where it is known."""
    if detail["type"] == "extra_forbidden":
        return f"unknown key {name!r}{did_you_mean(nearest(name, list(keys())))}"
    if detail["type"] == "missing":
        return f"{name} has no value; set it, e.g. '{name}=…'.{_allowed(key)}"
    reason = detail["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return f"{name} = {_shown(detail['input'])}: {reason}.{_allowed(key)}"


def _allowed(key: Key | None) -> str:
    if key is None:
        return ""
    return f" Allowed: {key.type}" + (f" ({key.description})" if key.description else "")


def _shown(value: object) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
