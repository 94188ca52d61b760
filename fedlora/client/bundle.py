"""What an owner can hand to somebody who helps: how the site is, and nothing of its data, keys, ledgers or folders."""

import importlib.metadata
import json
import platform
import re
import zipfile
from collections.abc import Iterator
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement

from fedlora.client.controls import paused, read_status
from fedlora.client.home import SiteHome, holder
from fedlora.client.own_files import write_own
from fedlora.client.policy_file import load_policy
from fedlora.client.site_log import FIELDS, log_file
from fedlora.errors import PolicyError, StoreError
from fedlora.server.durable import explained
from fedlora.words import counted

LEFT_OUT = "(left out)"

_RULES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"-----BEGIN [^-]+-----.*?(-----END [^-]+-----|\Z)", re.DOTALL), "(key)"),
    (re.compile(r"(?<=://)[^\s/@]+@"), "(login)@"),
    (re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]+"), "(mail address)"),
    (re.compile(r"(?P<quote>['\"])(?:~|\.{1,2})?/[^'\"\n]*(?P=quote)"), "(path)"),
    (re.compile(r"(?<![\w:/.~])(?:~|\.{1,2})?/[^\s'\",;:)\]}]+"), "(path)"),
    (re.compile(r"\b[A-Za-z]:\\[^\s'\",;)\]}]+"), "(path)"),
    (re.compile(r"(?<![A-Za-z0-9_=-])[A-Za-z0-9_=-]{32,}(?![A-Za-z0-9_=-])"), "(digest or token)"),
)
_KEPT = ("time", "level", "logger", "line")


def redact(text: str) -> str:
    """`text` without keys, logins, mail addresses, paths, and what may be a digest or a token."""
    for pattern, instead in _RULES:
        text = pattern.sub(instead, text)
    return text


def bundle(home: SiteHome, out: Path) -> list[str]:
    """Writes a zip file (mode 0600) to `out`, and returns the names of the files in it.

    Log lines lose the values in their texts, errors their texts: both may tell of rows. Raises StoreError if `out`
    exists or cannot be written.
    """
    if out.exists():
        raise StoreError(f"{out} exists already: name a file that does not")
    parts = dict(_parts(home))
    content = BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in parts.items():
            archive.writestr(name, text)
    with explained("write the bundle", out, needed=len(content.getvalue())):
        write_own(out, content.getvalue())
    return list(parts)


def _parts(home: SiteHome) -> Iterator[tuple[str, str]]:
    yield "versions.json", _json(_versions())
    yield "status.json", _json(_status(home))
    yield "policy.yaml", _policy(home)
    for path in _log_files(home):
        with explained("read", path):
            text = path.read_text(encoding="utf-8", errors="replace")
        yield f"log/{path.name}", "\n".join(map(_line, text.splitlines())) + "\n"


def _versions() -> dict[str, Any]:
    names = sorted({Requirement(text).name for text in importlib.metadata.requires("fedlora") or ()})
    packages = {name: _version(name) for name in ["fedlora", *names]}
    system = {"system": platform.system(), "release": platform.release(), "machine": platform.machine()}
    return {"python": platform.python_version(), **system, "packages": packages}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _status(home: SiteHome) -> dict[str, Any]:
    running = holder(home) is not None
    reason = paused(home)
    try:
        status = read_status(home)
    except StoreError as error:
        return {"running": running, "paused": reason is not None, "status": redact(str(error))}
    facts = {} if status is None else asdict(status)
    if facts.get("last_error"):
        facts["last_error"] = LEFT_OUT
    return {"running": running, "paused": reason is not None, "status": facts}


def _policy(home: SiteHome) -> str:
    """The policy's values, without the owner's comments and paths; of one with mistakes, how many it has."""
    try:
        values = load_policy(home.policy).model_dump(mode="json")
    except PolicyError as error:
        return f"# the policy has {counted(len(error.problems), 'mistake')}: {LEFT_OUT}\n"
    for rule in (*values["models"].values(), *values["data"].values()):
        rule["path"] = LEFT_OUT if rule["path"] is not None else None
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _log_files(home: SiteHome) -> list[Path]:
    newest = log_file(home)
    return sorted(path for path in home.log.glob(f"{newest.name}*") if path.is_file() and not path.is_symlink())


def _line(text: str) -> str:
    """A line of the log with what may travel of it."""
    try:
        found = json.loads(text)
        kept = {name: found[name] for name in (*_KEPT, *FIELDS) if name in found}
        return json.dumps(
            {**kept, "template": redact(str(found["template"])), **_error(found.get("error"))}, ensure_ascii=False
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        return json.dumps({"template": LEFT_OUT})


def _error(found: Any) -> dict[str, Any]:
    """Without its text."""
    if not isinstance(found, dict):
        return {}
    kept = {"type": found.get("type"), "frames": found.get("frames"), **_cause(found.get("cause"))}
    return {"error": kept}


def _cause(found: Any) -> dict[str, Any]:
    return {"cause": _error(found)["error"]} if isinstance(found, dict) else {}


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
