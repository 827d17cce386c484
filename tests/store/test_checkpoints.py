"""Checkpoints: whole or not there, damage recognised, the last and the best kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentrl.store import checkpoints
from agentrl.store.checkpoints import MANIFEST, best_checkpoint, find_damage, find_latest, prune, seal, writing_folder


def write(folder: Path, step: int, **metrics: float) -> Path:
    """A sealed checkpoint with two files, one of them in a folder."""
    draft = writing_folder(folder) / f"checkpoint-{step}"
    (draft / "inner").mkdir(parents=True)
    (draft / "model.bin").write_bytes(bytes([step]) * 100)
    (draft / "inner" / "state.json").write_text("{}")
    return seal(folder, step, metrics)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def no_warning(text: str) -> None:
    pytest.fail(text)


def test_a_sealed_checkpoint_lists_its_files(tmp_path: Path) -> None:
    path = write(tmp_path, 3, reward=0.5)
    content = json.loads((path / MANIFEST).read_text())
    assert (content["step"], content["metrics"]) == (3, {"reward": 0.5})
    assert content["files"]["inner/state.json"] == {
        "bytes": 2,
        "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",  # of "{}"
    }
    assert set(content["files"]) == {"model.bin", "inner/state.json"}
    assert find_damage(path) is None
    assert find_latest(tmp_path, no_warning) == path


def test_the_newest_is_by_number(tmp_path: Path) -> None:
    assert find_latest(tmp_path, no_warning) is None
    for step in (2, 10, 9):
        write(tmp_path, step)
    assert find_latest(tmp_path, no_warning) == tmp_path / "checkpoint-10"


def cut(path: Path) -> None:
    (path / "model.bin").write_bytes(b"\x04" * 50)


def flip(path: Path) -> None:
    (path / "model.bin").write_bytes(b"\x04" * 99 + b"\x05")


def lose(path: Path) -> None:
    (path / "inner" / "state.json").unlink()


def unlist(path: Path) -> None:
    (path / MANIFEST).unlink()


def tear(path: Path) -> None:
    (path / MANIFEST).write_text('{"step": 4, "files": {"model')


def mistype(path: Path) -> None:
    (path / MANIFEST).write_text("[]")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (cut, "model.bin has 50 bytes instead of 100"),
        (flip, "the content of model.bin has changed"),
        (lose, "inner/state.json is missing"),
        (unlist, "manifest.json is missing"),
        (tear, "manifest.json cannot be read"),
        (mistype, "manifest.json cannot be read"),
    ],
)
def test_a_damaged_one_is_set_aside_and_the_one_before_it_used(tmp_path: Path, harm, words: str) -> None:
    write(tmp_path, 2)
    harm(write(tmp_path, 4))
    warnings: list[str] = []
    assert find_latest(tmp_path, warnings.append) == tmp_path / "checkpoint-2"
    assert len(warnings) == 1
    assert words in warnings[0]
    assert "checkpoint-4.damaged" in warnings[0]
    assert (tmp_path / "checkpoint-4.damaged").is_dir()  # nothing is lost
    assert find_latest(tmp_path, no_warning) == tmp_path / "checkpoint-2"  # said once
    write(tmp_path, 4)  # the resumed run comes here again
    assert find_latest(tmp_path, no_warning) == tmp_path / "checkpoint-4"


def test_what_was_being_written_is_no_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 2)
    draft = writing_folder(tmp_path) / "checkpoint-4"
    draft.mkdir()
    (draft / "model.bin").write_bytes(b"half")
    assert find_latest(tmp_path, no_warning) == tmp_path / "checkpoint-2"
    assert not writing_folder(tmp_path).exists()


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 9, 10):
        write(tmp_path, step)
    prune(tmp_path, 2)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-9"]


@pytest.mark.parametrize(("best", "step"), [("reward", 2), ("-reward", 1), ("absent", None)])
def test_the_best_is_kept_too(tmp_path: Path, best: str, step: int | None) -> None:
    for number, reward in ((1, 0.1), (2, 0.9), (3, 0.4), (4, float("nan")), (5, 0.2)):
        write(tmp_path, number, reward=reward)
    prune(tmp_path, 1, best)
    assert names(tmp_path) == [f"checkpoint-{number}" for number in (step, 5) if number is not None]
    assert best_checkpoint(tmp_path, best) == (tmp_path / f"checkpoint-{step}" if step else None)


def test_a_removal_that_is_killed_leaves_no_half_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(path: Path) -> None:
        (path / "model.bin").unlink()
        raise KeyboardInterrupt

    write(tmp_path, 1)
    write(tmp_path, 2)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.shutil, "rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            prune(tmp_path, 1)
    assert names(tmp_path) == ["checkpoint-2"]
    assert find_latest(tmp_path, no_warning) == tmp_path / "checkpoint-2"
