"""A mean with its confidence bounds, as tables and files hold it. The command line imports this: no numpy here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Interval:
    """A mean, its confidence bounds (NaN if there is too little data) and the number of values behind it."""

    mean: float
    lo: float
    hi: float
    n: int

    def as_dict(self) -> dict[str, float | int | None]:
        """Return the form of summary.json. NaN becomes null, because JSON has no NaN."""
        known = {name: None if math.isnan(value) else value for name, value in vars(self).items()}
        return {"mean": known["mean"], "lo": known["lo"], "hi": known["hi"], "n": self.n}

    @classmethod
    def from_dict(cls, cell: Mapping[str, Any]) -> Interval:
        """Read the form that `as_dict` returns."""
        mean, lo, hi = (math.nan if cell.get(name) is None else float(cell[name]) for name in ("mean", "lo", "hi"))
        return cls(mean, lo, hi, int(cell["n"]))

    @property
    def known(self) -> bool:
        """Whether there are bounds."""
        return not math.isnan(self.lo)
