"""Do the files exist that keys name? Hub ids are checked elsewhere (models/hub.py)."""

from __future__ import annotations

from pathlib import Path

from agentrl.config.algos.evaluate import Evaluate
from agentrl.config.algos.grpo import CustomAlgo
from agentrl.config.algos.sides import Dpo
from agentrl.config.benches import Bfcl
from agentrl.config.checks import require, require_base, require_python_file
from agentrl.config.judges import DistilledJudge, EmbeddingJudge, LocalJudge, OpenAIJudge
from agentrl.config.schema import Config
from agentrl.config.shipped import PACKAGE
from agentrl.config.templates import check_template
from agentrl.core.gguf import holds_gguf, is_gguf

PREPARED = "models/minilm"  # where make minilm puts the encoder: not the form of a hub id


def check_files(config: Config) -> None:
    """Raise UserError for a path that does not exist or is of the wrong kind."""
    unread = f"algo={config.algo.name} reads no traces; set null, or choose algo=sft"
    require(config.traces is None or config.algo.wants != "two sides", "traces", config.traces, unread)
    _file("traces", config.traces, "no such file; make it with agentrl traces build, or set null")
    if isinstance(config.algo, CustomAlgo):
        require_python_file("algo.path", config.algo.path)
    if isinstance(config.algo, Dpo):
        _file("algo.pairs", config.algo.pairs, "no such file; give one, or set null to sample pairs")
    config.bench.check_path()
    if isinstance(config.bench, Bfcl):
        check_encoder("bench.encoder", config.bench.encoder)
    judge = config.judge
    if isinstance(judge, OpenAIJudge | LocalJudge):
        packaged = "no such file; give one, or set null for the packaged rubric"
        _file("judge.system_rubric", judge.system_rubric, packaged)
        _file("judge.user_rubric", judge.user_rubric, packaged)
    if isinstance(judge, LocalJudge):
        _weights("judge.path", judge.path)
    if isinstance(judge, DistilledJudge):
        made = (Path(judge.path).expanduser() / "distilled.json").is_file()
        require(made, "judge.path", judge.path, "has no distilled.json; make one with agentrl judge distill")
    if isinstance(judge, EmbeddingJudge):
        check_encoder("judge.path", judge.path)
    check_template(config.model.chat_template)
    _checkpoint(config)


def check_encoder(key: str, path: str) -> None:
    """Refuse a local path without an encoder."""
    folder = Path(path).expanduser()
    if folder.exists() or path.startswith(("/", "./", "../", "~")) or path.count("/") != 1 or path == PREPARED:
        found = (folder / "config.json").is_file() and (folder / "1_Pooling" / "config.json").is_file()
        rule = f"holds no sentence encoder; run make minilm and set {key}={PREPARED}, or name a hub id"
        require(found, key, path, rule)


def _file(key: str, path: str | None, rule: str) -> None:
    place = Path(path or "").expanduser()
    require(path is None or not place.is_dir(), key, path, "is a directory; give a file")
    require(path is None or place.is_file(), key, path, rule)


def _checkpoint(config: Config) -> None:
    """Check the files of a local model, unless a server plays the episodes."""
    if isinstance(config.algo, Evaluate) and config.algo.endpoint.base_url is not None:
        return
    path, kind = config.model.path, config.model.quantize
    _weights("model.path", path)
    require_base(path)
    adapter = (Path(path).expanduser() / "adapter_config.json").is_file()
    merge_rule = "training merges an adapter into whole weights; run agentrl merge and name what it writes, or set null"
    require(kind is None or not (adapter and config.algo.trains), "model.quantize", kind, merge_rule)


def _weights(key: str, path: str) -> None:
    """Refuse a packaged name or a local path without weights. A hub id is checked elsewhere."""
    folder = Path(path).expanduser()
    if path.startswith("builtin:"):
        packaged = sorted(f"builtin:{file.parent.name}" for file in (PACKAGE / "tiny").glob("*/config.json"))
        require(path in packaged, key, path, f"no such packaged model; choose from {', '.join(packaged)}")
    elif is_gguf(path):
        require(folder.is_file(), key, path, "no such file; name an existing one, or a hub id")
        require(holds_gguf(folder), key, path, "does not hold GGUF; download the file again")
    elif path.startswith(("/", "./", "../", "~")) or folder.exists() or path.count("/") > 1:
        require(not folder.is_file(), key, path, "is a file; give the directory with config.json, or a GGUF file")
        found = (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file()
        rule = "is not a checkpoint (no config.json); give a directory made by save_pretrained, or a hub id"
        require(found, key, path, rule)
