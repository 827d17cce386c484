"""A GGUF file is a checkpoint like any other: read once, kept, made anew where it was damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from agentrl.config.compose import compose
from agentrl.config.rules import validate
from agentrl.config.vllm import serve_command
from agentrl.core import gguf as files
from agentrl.core.errors import UserError
from agentrl.models import gguf
from agentrl.models.adapters import check_lora
from agentrl.models.loading import Needs, load_chat, load_model
from agentrl.runner import ready
from agentrl.runner.start import make_paths_absolute, start
from tests.support.gguf_files import write_gguf
from tests.support.helpers import composed, work_in_this_process

IDS = torch.arange(5, 25)[None]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "agentrl" / "gguf"


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_weights_and_tokenizer_are_those_of_the_file(tmp_path: Path, cache: Path, kind: str) -> None:
    stored = write_gguf(tmp_path / "tiny.gguf", kind)
    config = composed("model=custom", f"model.path={tmp_path / 'tiny.gguf'}", "model/lora=on").model
    loaded = load_model(config)
    torch.testing.assert_close(logits(loaded), logits(stored), atol=0, rtol=0)
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.testing.assert_close(logits(plain), logits(stored), atol=0, rtol=0)
    check_lora(config)
    chat, packaged = (load_chat(one, Needs(tools=True, system=True)) for one in (config, composed().model))
    text = chat.text([{"role": "user", "content": "Where was Ada 12 born?"}], [], True)
    assert text.startswith("<|im_start|>system\nYou are Qwen")  # the template is the file's
    assert chat.tokenizer.decode(chat.ids(text)) == text
    assert chat.tokenizer.get_vocab() == packaged.tokenizer.get_vocab()
    assert chat.ids("<|im_start|> born in Paris<|im_end|>") == packaged.ids("<|im_start|> born in Paris<|im_end|>")
    assert chat.tokenizer.eos_token == packaged.tokenizer.eos_token


def test_it_is_read_once_and_says_what_it_was_made_of(tmp_path: Path, cache: Path, capsys: Any) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    folder = gguf.checkpoint_of(tmp_path / "tiny.gguf")
    assert "Making a checkpoint of tiny.gguf" in capsys.readouterr().out
    made = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    (tmp_path / "copy").mkdir()
    os.link(tmp_path / "tiny.gguf", tmp_path / "copy" / "tiny.gguf")
    assert gguf.checkpoint_of(tmp_path / "copy" / "tiny.gguf") == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == made and not capsys.readouterr().out
    manifest = json.loads((folder / gguf.MANIFEST).read_text())
    assert manifest["source"]["sha256"] == files.content_hash(tmp_path / "tiny.gguf")
    assert set(manifest["versions"]) == {"transformers", "gguf", "torch"}
    assert "model.safetensors" in manifest["files"] and "chat_template.jinja" in manifest["files"]


@pytest.mark.parametrize("damage", ["overwritten", "no manifest", "another file"])
def test_a_damaged_copy_is_made_anew(tmp_path: Path, damage: str) -> None:
    stored = write_gguf(tmp_path / "tiny.gguf")
    folder = gguf.checkpoint_of(tmp_path / "tiny.gguf")
    weights = folder / "model.safetensors"
    if damage == "overwritten":
        time.sleep(0.02)  # a later time for the coarsest of clocks
        weights.write_bytes(bytes(weights.stat().st_size))
    elif damage == "no manifest":
        (folder / gguf.MANIFEST).write_text("{")
    else:
        (folder / "more.safetensors").write_bytes(b"")
    assert gguf.checkpoint_of(tmp_path / "tiny.gguf") == folder
    assert not (folder / "more.safetensors").exists()
    config = composed("model=custom", f"model.path={folder}").model
    torch.testing.assert_close(logits(load_model(config)), logits(stored), atol=0, rtol=0)


@pytest.mark.slow
def test_a_run_goes_from_the_file_to_its_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    monkeypatch.chdir(tmp_path)
    work_in_this_process(monkeypatch)
    values = ["model=tiny.gguf", "bench=minihop", "eval.limit=1", "rollout.max_completion_tokens=8"]
    values += ["rollout.max_turn_tokens=8", f"runs_dir={tmp_path / 'runs'}"]
    config = compose(["algo=eval", *values])
    assert config.model.name == "tiny" and start(config) == 0
    (run,) = (tmp_path / "runs").glob("*/s0-*")
    environment = json.loads((run / "environment.json").read_text())
    assert environment["data"]["model.path"] == files.content_hash(tmp_path / "tiny.gguf")
    assert f"path: {tmp_path / 'tiny.gguf'}" in (run / "config.yaml").read_text()


def test_without_its_packages_the_file_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    config = composed("model=custom", f"model.path={tmp_path / 'tiny.gguf'}")
    ready.check_ready(config)
    monkeypatch.setattr(files, "find_spec", lambda name: None if name == "sentencepiece" else object())
    with pytest.raises(UserError, match=r"needs the package sentencepiece; pip install .*gguf"):
        ready.check_ready(config)
    with pytest.raises(UserError, match="needs the package sentencepiece"):
        load_model(config.model)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    load_model(config.model)
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    ready.check_ready(config)  # what was made before needs them no more
    load_model(config.model)


@pytest.mark.parametrize(
    ("content", "said"), [(None, "no such file"), (b"<html>", "does not hold GGUF"), (b"GGUF\3\0\0\0", "as GGUF")]
)
def test_what_is_no_gguf_file_is_one_line(tmp_path: Path, content: bytes | None, said: str) -> None:
    pytest.importorskip("gguf")
    file = tmp_path / "model.gguf"
    if content is not None:
        file.write_bytes(content)
    config = composed("model=custom", f"model.path={file}")
    check = load_model if content == b"GGUF\3\0\0\0" else lambda _: validate(config)  # whose beginning is right
    with pytest.raises(UserError, match=said) as error:
        check(config.model)
    assert "\n" not in str(error.value) and str(file) in str(error.value)


def test_an_unknown_architecture_is_one_line(tmp_path: Path) -> None:
    writer = pytest.importorskip("gguf").GGUFWriter(str(tmp_path / "model.gguf"), "clip")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match=r"cannot be read as GGUF: .*clip"):
        gguf.checkpoint_of(tmp_path / "model.gguf")


def test_a_server_gets_the_checkpoint_and_is_refused_before_there_is_one(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    config = composed("model=custom", f"model.path={tmp_path / 'tiny.gguf'}", "vllm.mode=server")
    make_paths_absolute(config)
    with pytest.raises(UserError, match=r"run: python -m agentrl\.models\.gguf /.*/tiny\.gguf"):
        validate(config)
    folder = gguf.checkpoint_of(tmp_path / "tiny.gguf")
    validate(config)
    assert f"vllm serve {folder} " in serve_command(config)


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letters.txt").write_text("dear")
    command = [sys.executable, "-m", "agentrl.models.gguf", str(tmp_path / "tiny.gguf")]
    refused = subprocess.run([*command, str(tmp_path / "mine")], capture_output=True, text=True)
    assert refused.returncode == 2 and refused.stderr.endswith("name a new folder for the checkpoint\n")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letters.txt"]
    assert not (tmp_path / ".mine.lock").exists()
    assert gguf.checkpoint_of(tmp_path / "tiny.gguf", tmp_path / "made") == tmp_path / "made"
    assert (tmp_path / "made" / "config.json").is_file()


def test_an_adapters_base_that_is_gone_says_how_to_make_it(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(UserError, match=r"was made from a GGUF file and is gone; make it again: python -m"):
        load_model(composed("model=custom", f"model.path={cache / 'tiny-0123456789ab'}").model)
