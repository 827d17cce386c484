"""What a person sees of warnings, and of Ctrl-C while the libraries are imported."""

from __future__ import annotations

import sys
import types
import warnings
from pathlib import Path

import pytest

import agentrl
from agentrl.__main__ import main
from agentrl.core.quiet import quiet_libraries


def test_only_agentrls_own_warnings_are_put_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # put back afterwards
    with warnings.catch_warnings():
        quiet_libraries()
        own = str(Path(agentrl.__file__).parent / "models" / "adapters.py")
        assert warnings.formatwarning("16 bits round.", UserWarning, own, 3) == "agentrl: warning: 16 bits round.\n"
        assert warnings.formatwarning("Other.", UserWarning, "/lib/x.py", 3) == "/lib/x.py:3: UserWarning: Other.\n"


def test_ctrl_c_during_the_imports_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(types.ModuleType):
        def __getattr__(self, name: str) -> None:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "agentrl.commands.cli", Slow("agentrl.commands.cli"))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
