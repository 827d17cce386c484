"""Refuse a checkpoint that lacks weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentrl.core.errors import UserError


def require_complete(path: str, report: Mapping[str, Any]) -> None:
    """Raise UserError if weights were missing. transformers fills them with random numbers and only logs it.

    `report` is what `from_pretrained` returns with `output_loading_info=True`.
    """
    if lost := missing_weights(report):
        raise UserError(
            f"model.path={path}: {len(lost)} weights are missing or have another shape (first: {lost[0]}); the "
            "checkpoint belongs to another architecture or is incomplete; name another checkpoint"
        )


def missing_weights(report: Mapping[str, Any], besides: str | None = None) -> list[str]:
    """Return the names of weights that were missing or had another shape, without those that begin with `besides`."""
    lost = [*report["missing_keys"], *(str(entry) for entry in report["mismatched_keys"])]
    return sorted(name for name in lost if besides is None or not name.startswith(besides))
