"""Shell commands that install what is missing. They work in a checkout and with an installed wheel."""

from __future__ import annotations

import importlib.metadata

from packaging.requirements import Requirement

from agentrl.core.version import DISTRIBUTION


def requirements(extra: str | None = None) -> list[Requirement]:
    """Return the packages that this package requires, or those that one of its extras adds.

    Raises:
        importlib.metadata.PackageNotFoundError: this is a checkout that was never installed.
    """
    every = [Requirement(text) for text in importlib.metadata.requires(DISTRIBUTION) or []]
    if extra is None:
        return [one for one in every if one.marker is None or one.marker.evaluate({"extra": ""})]
    return [one for one in every if one.marker is not None and one.marker.evaluate({"extra": extra})]


def install_line(extra: str) -> str:
    """Return the shell command that installs the packages of `extra`."""
    try:
        wanted = requirements(extra)
    except importlib.metadata.PackageNotFoundError:
        wanted = []
    if not wanted:  # a checkout that was never installed, or before it had this extra
        return f"pip install -e '.[{extra}]' in the checkout"
    return "pip install " + " ".join(f"'{one.name}{one.specifier}'" if one.specifier else one.name for one in wanted)
