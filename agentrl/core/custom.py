"""Code of the user's own, named by a file: a bench (`bench=custom`) or an algorithm (`algo=custom`)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from agentrl.core.errors import UserError


def attribute_of(path: str, name: str) -> Any:
    """What the Python file at `path` calls `name`. The file runs once a process, with the rights of the run.

    Raises:
        UserError: there is no such file, or nothing of that name in it. What the file itself raises passes through.
    """
    file = Path(path).expanduser().absolute()
    module_name = f"agentrl_custom_{file.stem}"
    module = sys.modules.get(module_name)
    if module is None or module.__file__ != str(file):
        spec = importlib.util.spec_from_file_location(module_name, file)
        if spec is None or spec.loader is None or not file.is_file():
            raise UserError(f"{file} is no Python file; give one that ends in .py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module  # dataclasses look their module up
        if str(file.parent) not in sys.path:
            sys.path.append(str(file.parent))  # files beside it can be imported, and hide none of the libraries
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[module_name]  # a half-run file must not pass for a whole one
            raise
    if not hasattr(module, name):
        raise UserError(f"{file} has no {name}; docs/extending.md shows what the file must hold")
    return getattr(module, name)
