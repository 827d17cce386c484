"""Composition of the configuration: where conf/ lies, what a command composes, Hydra's errors in one line.

With cli.py and sweeps.py the only place that knows Hydra; a worker imports none of them.
"""

from __future__ import annotations

import re
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from agentrl.config.load import all_keys, suggest, typed_config
from agentrl.config.schema import Config
from agentrl.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]
# The wheel carries conf/ inside the package; in a checkout it lies beside it.
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"


def compose(overrides: list[str]) -> Config:
    """The configuration that `overrides` (as on the command line) describe; not validated. Raises UserError.

    `--config-dir DIR` may stand among them, as it may before a run.
    """
    overrides = list(overrides)
    if "--config-dir" in overrides:
        position = overrides.index("--config-dir")
        folder = overrides[position + 1 : position + 2]
        if not folder or not Path(folder[0]).is_dir():
            raise UserError("--config-dir needs a directory that exists, e.g. --config-dir ./mine")
        overrides[position : position + 2] = [f"hydra.searchpath=[file://{Path(folder[0]).absolute()}]"]
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            return typed_config(hydra.compose("config", overrides=overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(one_line(error)) from error


def one_line(error: Exception) -> str:
    """Hydra's own errors, short, and with what to write instead."""
    text = str(error)
    if found := re.search(r"Could not override '([^']+)'", text):
        known = sorted({key for key, _, _ in all_keys()})
        if found[1] in known:
            group = found[1].split(".")[0]
            return f"{found[1]} belongs to another {group} than the one chosen; agentrl --help lists the keys of each"
        return f"unknown key {found[1]}{suggest_key(found[1], known)}"
    if found := re.search(r"Could not find '([\w./-]+)/([^/']+)'", text):
        options = [file.stem for file in sorted((CONF / found[1]).glob("*.yaml"))]
        return f"{found[1]}={found[2]} is not a choice{suggest(found[2], options)}"
    if found := re.search(r"Could not override '?([\w./@-]+)'?\.?\s*No match in the defaults list", text):
        return f"unknown group {found[1]}; agentrl --help lists the groups and their options"
    if type(error).__name__ == "OverrideParseException":
        first = " ".join(text.split("See https://")[0].split())
        return f"{first}; overrides look like key=value, lists are quoted: 'key=[1,2]'"
    if "Ambiguous value for argument" in text:
        return f"{text.splitlines()[0]}; a comma sweeps: add -m, or quote a list: 'key=[1,2]'"
    cause = f" ({str(error.__cause__).splitlines()[0]})" if error.__cause__ and str(error.__cause__) else ""
    return " ".join(line.strip() for line in text.splitlines()[:2]) + cause


def suggest_key(key: str, known: list[str]) -> str:
    """' ; did you mean X?' by the whole key first, then by its last part: `trainer.lr` and `max_steps` are both met."""
    whole = suggest(key, known)
    if "did you mean" in whole:
        return whole
    last = key.rsplit(".", 1)[-1]
    ends = [candidate for candidate in known if candidate.rsplit(".", 1)[-1] == last]
    return f"; did you mean {ends[0]}?" if ends else "; agentrl --help lists the keys"
