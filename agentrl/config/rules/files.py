"""Do the files exist that keys name? Hub ids are checked elsewhere (models/hub.py)."""

from __future__ import annotations

from pathlib import Path

from agentrl.config.algos import CustomAlgo, Dpo, Evaluate
from agentrl.config.benches import Bfcl
from agentrl.config.checks import require, require_python_file
from agentrl.config.judges import DistilledJudge, EmbeddingJudge, LocalJudge, OpenAIJudge
from agentrl.config.schema import Config
from agentrl.config.templates import check_template
from agentrl.core.gguf import holds_gguf, is_gguf

PREPARED = "models/minilm"  # where make minilm puts the encoder: not the form of a hub id


def check_files(config: Config) -> None:
    """Raise UserError for a path that does not exist or is of the wrong kind."""
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
    path, folder = config.model.path, Path(config.model.path).expanduser()
    local = path.startswith(("/", "./", "../", "~")) or folder.exists() or path.count("/") > 1 or is_gguf(path)
    if not local or (isinstance(config.algo, Evaluate) and config.algo.endpoint.base_url is not None):
        return
    if is_gguf(path):
        require(folder.is_file(), "model.path", path, "no such file; name an existing one, or a hub id")
        require(holds_gguf(folder), "model.path", path, "does not hold GGUF; download the file again")
        return
    require(not folder.is_file(), "model.path", path, "is a file; give the directory with config.json, or a GGUF file")
    found = (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file()
    path_rule = "is not a checkpoint (no config.json); give a directory made by save_pretrained, or a hub id"
    require(found, "model.path", path, path_rule)
    kind, adapter = config.model.quantize, (folder / "adapter_config.json").is_file()
    merge_rule = "an adapter is merged into whole weights; run agentrl merge and name what it writes, or set null"
    require(kind is None or not adapter, "model.quantize", kind, merge_rule)
