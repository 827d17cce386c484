"""What a person sees of warnings, and of Ctrl-C while the libraries are imported."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest

import agentrl
from agentrl.__main__ import main


def test_only_agentrls_own_warnings_are_put_on_one_line() -> None:
    own = Path(agentrl.__file__).parent / "models" / "adapters.py"
    program = f"""
import warnings
from agentrl.core.quiet import quiet_libraries
quiet_libraries()
quiet_libraries()
warnings.warn_explicit("16 bits round.", UserWarning, {str(own)!r}, 3)
warnings.warn_explicit("Other.", UserWarning, "/lib/x.py", 3)
warnings.warn_explicit("Later.", FutureWarning, "/lib/x.py", 4)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stderr.splitlines() == ["agentrl: warning: 16 bits round.", "/lib/x.py:3: UserWarning: Other."]


def test_ctrl_c_during_the_imports_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(types.ModuleType):
        def __getattr__(self, name: str) -> None:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "agentrl.commands.cli", Slow("agentrl.commands.cli"))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
