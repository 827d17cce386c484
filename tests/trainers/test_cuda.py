"""Updates on a GPU are the same whichever engine scores them."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentrl.scoring.packed import PackedEngine
from agentrl.scoring.padded import PaddedEngine
from tests.trainers.test_packed_updates import assert_same, moved, update

pytestmark = pytest.mark.cuda
RTOL = 3e-5  # a GPU sums in other orders: 1.0e-5 was seen on an H100
ON_GPU = ("hardware=gpu", "hardware.bf16=false")


@pytest.mark.parametrize("method", ["grpo", "pact", "hipo"])
def test_engines_and_cuts_make_the_same_update(method: str, tmp_path: Path) -> None:
    trainer, batch = moved(method, tmp_path, *ON_GPU)
    packed = trainer.scorer
    assert isinstance(packed, PackedEngine) and trainer.model.device.type == "cuda"
    plain = update(trainer, batch, PaddedEngine(), 10**6)
    assert_same(update(trainer, batch, packed, 10**6), plain, RTOL)
    assert_same(update(trainer, batch, packed, 700), plain, RTOL)
