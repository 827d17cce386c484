"""Composes the configuration: turns what a person typed into Hydra's arguments, and Hydra's errors into one line.

Only this module, cli.py and sweeps.py know Hydra. A worker imports none of them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from agentrl.config.key import Group
from agentrl.config.load import all_keys, keys_of, typed_config
from agentrl.config.meanings import guess_meaning, suggest, suggest_key, suggest_verb
from agentrl.config.refusals import foreign_key
from agentrl.config.schema import VARIANTS, Config
from agentrl.config.shipped import CONF, lineage, option_files
from agentrl.config.target import resolve_model
from agentrl.config.typed import (
    SWEEPS,
    config_folders,
    escape_interpolation,
    is_sweep,
    put_flags_first,
    quote_override,
    split_names,
    without_folders,
)
from agentrl.core.errors import UserError

# Files scale values down for a model: `preset/<model>_<algo>.yaml` and `limits/<model>_<bench>.yaml`.
STAND_INS = {"tiny": "tiny_hif", "tiny_hif": "tiny"}  # both have the same size, so the files of one fit the other
SCALED = {"preset": "algo", "limits": "bench"}
GROUP = re.compile(r"[a-z]+(/[a-z]+)*")


def compose(overrides: list[str]) -> Config:
    """Compose the configuration from `overrides`, which are written as on the command line. It is not validated.

    `--config-dir DIR` may be among the overrides. Raises UserError.
    """
    try:
        values = _composed(overrides)
        if values.hydra.mode == RunMode.MULTIRUN:
            raise UserError(
                "sweep=... describes several runs, and this command takes one; give the keys of one of them"
            )
        config = typed_config(drop_hydra(values))
        config.scaled_by = scaling_files(values.hydra.runtime)
        return config
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(shorten_error(error)) from error


def compose_values(overrides: list[str]) -> DictConfig:
    """Compose the values with Hydra, without a check of types and missing keys. Raises UserError."""
    try:
        return drop_hydra(_composed(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(shorten_error(error)) from error


def drop_hydra(values: DictConfig) -> DictConfig:
    """Return the values without Hydra's own."""
    with flag_override(values, ["struct", "readonly"], [False, False]):
        own = values.copy()
        del own["hydra"]
    return own


def _composed(overrides: list[str]) -> DictConfig:
    folders = config_folders(overrides)
    arguments = hydra_arguments(overrides)
    if folders:
        places = [quote_override(f"path=file://{folder.absolute()}", False).partition("=")[2] for folder in folders]
        arguments = [*without_folders(arguments), f"hydra.searchpath=[{','.join(places)}]"]
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("config", overrides=arguments, return_hydra_config=True)


def hydra_arguments(arguments: list[str]) -> list[str]:
    """Rewrite what a person typed for Hydra, and register a new option for each model that is not a preset.

    Raises UserError if an option or a --config-dir does not exist.
    """
    sweep, folders = is_sweep(arguments), config_folders(arguments)
    for folder in folders:
        if not folder.is_dir() or str(folder) == ".":
            wrong = " needs a directory" if str(folder) == "." else f"={folder}: no such directory"
            raise UserError(f"--config-dir{wrong}; give one that exists, e.g. --config-dir ./mine")
    presets, named = option_files("model", folders), dict[str, str | None]()
    typed = []
    for argument in without_folders(put_flags_first(arguments)):
        key, _, value = argument.partition("=")
        if key == "model" and value not in (*presets, "", "null") and not SWEEPS.fullmatch(value):
            options = dict(_option_of(name, folders) for name in (split_names(value) if sweep else [value]))
            named |= options
            argument = f"model={','.join(options)}"
        typed.append(quote_override(argument, sweep))
    for group, other in SCALED.items():
        _scale_down(group, other, named, folders)
    _check_options(typed, sweep, folders)
    return [*(text for folder in folders for text in ("--config-dir", str(folder))), *typed]


def _option_of(name: str, folders: Sequence[Path]) -> tuple[str, str | None]:
    """Return the option of the group `model` for `name`, and the preset whose scaled-down values fit it.

    The option is registered if it does not exist.
    """
    meant = resolve_model(name, folders)
    if isinstance(meant, str):
        return meant, meant
    # The name of a directory is not unique, and may be that of a preset, so the option has a hash of the whole path.
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", meant.values["name"])
    number = hashlib.sha256(meant.values["path"].encode()).hexdigest()[:6]
    of_hub = meant.values["path"] == name and not Path(name).exists()
    option = plain if of_hub else f"{plain}-{number}"
    values = {key: escape_interpolation(value) for key, value in meant.values.items()}
    node = OmegaConf.create({"defaults": [{"lora": "off"}, "_self_"], **values})
    ConfigStore.instance().store(option, node, group="model")
    return option, meant.scaled_as


def _scale_down(group: str, other: str, named: Mapping[str, str | None], folders: Sequence[Path]) -> None:
    """Register files for pairs (model, option) that have none: they use the file of what they build on.

    For example, a user's bench whose file builds on minihop uses the limits of minihop.
    """
    files = option_files(group, folders)
    model_files, other_files = option_files("model", folders), option_files(other, folders)
    models = {name: list(lineage("model", name, model_files)) for name in model_files}
    options = {name: list(lineage(other, name, other_files)) for name in other_files}
    for model, other_model in STAND_INS.items():
        models[model].append(other_model)
    models |= {name: list(lineage("model", base, model_files)) if base else [] for name, base in named.items()}
    for model, bases in models.items() if group == "limits" else ():  # limits of a model on any bench
        found = next((base for base in bases if base in files), None)
        if found not in (None, model):
            ConfigStore.instance().store(
                model, OmegaConf.create({"defaults": [found]}), group=group, package="_global_"
            )
    for model, option in product(models, options):
        pairs = (f"{first}_{second}" for first, second in product(models[model], options[option]))
        found = next((pair for pair in pairs if pair in files), None)
        if found not in (None, f"{model}_{option}"):
            node = OmegaConf.create({"defaults": [found]})
            ConfigStore.instance().store(f"{model}_{option}", node, group=group, package="_global_")


def _check_options(arguments: Sequence[str], sweep: bool, folders: Sequence[Path]) -> None:
    """Raise UserError if a person chose an option that does not exist.

    Hydra would pass over an unknown preset, because its entry of the defaults list is optional. It refuses null and
    numbers in words that do not name the group.
    """
    for argument in arguments:
        group, _, value = argument.lstrip("+~").partition("=")
        files = option_files(group, folders) if GROUP.fullmatch(group) else {}
        if not files:
            continue
        if argument.startswith("~") and group not in SCALED:
            raise UserError(f"{argument}: a run needs this group; choose {group}=NAME (agentrl --help lists the names)")
        if "=" not in argument or "${" in value or SWEEPS.fullmatch(value) or ("," in value and not sweep):
            continue
        made = {name.removesuffix(".yaml") for name in ConfigStore.instance().repo.get(group, {})}
        known = sorted(made | set(files) if group in SCALED else files)
        for name in split_names(value) if sweep else [value.strip("'\"")]:
            if name == "null" and group in SCALED:
                raise UserError(f"{argument}: write '~{group}' to take the values that are not scaled down")
            if name not in made | set(files):
                raise UserError(f"{group}={name} is not a choice{suggest(name, known)}")


def scaling_files(runtime: Any) -> list[str]:
    """List the files of preset/ and limits/ that Hydra took, in the order in which they apply.

    `runtime` is Hydra's. Paths of packaged files start at conf/; paths in --config-dir are complete.
    """
    folders = [Path(source.path) for source in runtime.config_sources if source.schema == "file"]
    taken = []
    for place in ("preset", "limits@_global_", "limits"):
        group, name = place.partition("@")[0], runtime.choices.get(place)
        files = option_files(group, folders)
        if name not in files:  # the option refers to another file, or does not exist
            made = ConfigStore.instance().repo.get(group, {}).get(f"{name}.yaml")
            name = made.node.defaults[0] if made is not None else None
        if name in files:
            file = files[name]
            taken.append(str(file.relative_to(CONF.parent) if file.is_relative_to(CONF) else file))
    return taken


def shorten_error(error: Exception) -> str:
    """Shorten an error of Hydra to one line that says what to write instead."""
    text = str(error)
    if found := re.search(r"Could not override '([^']+)'", text):
        known = sorted({key for key, _, _ in all_keys()})
        if found[1] in known:
            group = found[1].split(".")[0]
            owners = [option for option, cls in VARIANTS.get(group, {}).items() if found[1] in _names(cls, group)]
            return foreign_key(found[1], group, owners)
        return f"unknown key {found[1]}{suggest_key(found[1], known)}"
    if found := re.search(r"Could not find '([\w./-]+)/([^/']*)'", text):
        options = re.findall(r"^\t([^\s=]+)$", text, re.MULTILINE)  # including those of --config-dir
        return f"{found[1]}={found[2]} is not a choice{suggest(found[2], options)}"
    if found := re.search(r"Could not override '?([\w./@-]+)'?\.?\s*No match in the defaults list", text):
        meant = guess_meaning(found[1])
        return f"unknown group {found[1]}; " + (
            f"did you mean {meant}?" if meant else "agentrl --help lists the groups"
        )
    if type(error).__name__ == "OverrideParseException":
        return _unreadable(str(getattr(error, "override", "")), " ".join(text.splitlines()[0].split()))
    if "Ambiguous value for argument" in text:
        key, _, value = text.splitlines()[0].partition("'")[2].rstrip("'").partition("=")
        return f"{key}={value}: add -m to sweep; write a list as '{key}=[{value}]', a text as {key}=\"'{value}'\""
    found = re.match(r"Error merging override ([\w.]+)=(\[?)", text)
    if found and "Cannot merge DictConfig with ListConfig" in str(error.__cause__):
        if found[2]:
            return f"{found[1]} is a group of keys; set the keys below it, e.g. {found[1]}.KEY=..."
        return f"{found[1]} holds a list; write it as '{found[1]}=[...]'"
    cause = f" ({str(error.__cause__).splitlines()[0]})" if error.__cause__ and str(error.__cause__) else ""
    return " ".join(line.strip() for line in text.splitlines()[:2]) + cause


def _names(cls: type[Group], group: str) -> list[str]:
    return [name for name, _, _ in keys_of(cls, f"{group}.")]


def _unreadable(typed: str, text: str) -> str:
    """Say what to write in place of an argument that Hydra's grammar refuses."""
    key, equals, value = typed.partition("=")
    if not equals:
        return f"'{typed}' is not key=value{suggest_word(typed)}"
    if value[:1] in ("[", "{"):
        return f"'{typed}' cannot be read; write a value as key=value, a list as '{key}=[1,2]' or '{key}=[\"a b\"]'"
    return f"'{typed}' cannot be read ({text}); put quotes around the value, inside the shell's: {key}=\"'...'\""


def suggest_word(word: str, verbs: Iterable[str] = ()) -> str:
    """Return '; did you mean X?' for a bare word: an option without its group, a command, another tool's word."""
    for folder in ("algo", "model", "bench", "hardware", "reward", "judge", "tracker", "experiment", "sweep"):
        if word in option_files(folder):
            return f"; did you mean {folder}={word}?"
    if "/" in word:
        return f"; did you mean model={word}?"
    return suggest_verb(word, verbs)
