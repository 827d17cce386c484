"""Fills the templates of the pages and tables that agentrl writes."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape


def render_template(package: str, name: str, **values: Any) -> str:
    """Return the template `name` of a package with `values` in it. A page of HTML has all text escaped.

    Raises jinja2.UndefinedError if the template names a value that is not given.
    """
    environment = Environment(
        loader=PackageLoader(package, "."),
        autoescape=select_autoescape(["html.jinja"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(values)
