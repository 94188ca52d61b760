"""Filling a page's template. Everything that comes from a configuration or a client is escaped."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import fedlora
from fedlora.words import number


def render(template: str, path: Path, **contents: Any) -> Path:
    """Writes the page that `template` makes of `contents` to `path`, with the style sheet inside; returns `path`.

    Missing folders are made. Raises OSError if the file cannot be written.
    """
    environment = Environment(
        loader=PackageLoader("fedlora.simulations.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    style = (Path(__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")
    page = environment.get_template(template).render(
        style=Markup(style),  # noqa: S704 -- our own file
        version=fedlora.__version__,
        **contents,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path
