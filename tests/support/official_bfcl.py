"""Run as a file: the official `bfcl evaluate` on result files, with the vendors' client libraries stubbed.

bfcl-eval imports the client of every model vendor it knows before it evaluates anything; none is used for scoring.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from unittest.mock import MagicMock

VENDORS = [
    "anthropic",
    "boto3",
    "botocore",
    "cohere",
    "datamodel_code_generator",
    "dotenv",
    "google",
    "mistralai",
    "openai",
    "qwen_agent",
    "tabulate",
    "tenacity",
    "tree_sitter",
    "tree_sitter_java",
    "tree_sitter_javascript",
    "writerai",
    "ibm_watsonx_ai",
]


class Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        missing = name.split(".")[0] in VENDORS
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if missing else None

    def create_module(self, spec):
        return MagicMock(name=spec.name)

    def exec_module(self, module):
        pass


if __name__ == "__main__":
    sys.meta_path.insert(0, Stubs())
    from bfcl_eval.eval_checker.eval_runner import main

    model, *categories = sys.argv[1:]
    main([model], categories, None, None, partial_eval=True)
