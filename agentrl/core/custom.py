"""Loads the user's own Python file: a bench (`bench=custom`) or an algorithm (`algo=custom`)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from agentrl.core.errors import UserError


def load_attribute(path: str, name: str) -> Any:
    """Return the attribute `name` of the Python file at `path`. The file runs once per process, with the run's rights.

    Raises:
        UserError: the file does not exist, or has no such attribute. Exceptions of the file itself pass through.
    """
    file = Path(path).expanduser().absolute()
    module_name = f"agentrl_custom_{file.stem}"
    module = sys.modules.get(module_name)
    if module is None or module.__file__ != str(file):
        spec = importlib.util.spec_from_file_location(module_name, file)
        if spec is None or spec.loader is None or not file.is_file():
            raise UserError(f"{file} is not a Python file; give the path of a file that ends in .py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module  # dataclasses look their module up here
        if str(file.parent) not in sys.path:
            sys.path.append(str(file.parent))  # last, so that the files beside it never hide a library
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[module_name]  # the next call must not take a half-run file for a complete one
            raise
    if not hasattr(module, name):
        raise UserError(f"{file} has no {name}; docs/extending.md shows what the file must hold")
    return getattr(module, name)
