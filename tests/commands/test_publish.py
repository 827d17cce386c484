"""`agentrl merge`, `agentrl push` and `agentrl wandb dashboard` publish the results of a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from agentrl.commands import merge, push
from agentrl.commands import wandb as wandb_command
from agentrl.commands.cli import COMMANDS
from agentrl.core.errors import UserError
from agentrl.models.loading import checkpoint_path, load_model
from agentrl.store.run import RunDirectory
from agentrl.tracking.dashboard import VIEWS, workspace
from tests.report.test_plots import KEYS as PACT_METRICS
from tests.support.helpers import composed


@pytest.fixture
def adapter_run(tmp_path: Path) -> RunDirectory:
    """A complete run whose model is a LoRA adapter that changes the base's output."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer

    run = RunDirectory.create(composed(f"runs_dir={tmp_path}", "model/lora=on"))
    assert run is not None
    config = run.config().model
    torch.manual_seed(0)
    adapted = get_peft_model(load_model(config), LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(run.path / "model")
    AutoTokenizer.from_pretrained(checkpoint_path(config.path)).save_pretrained(run.path / "model")
    finish(run)
    return run


def finish(run: RunDirectory) -> None:
    before, after = ({"mean": mean, "lo": mean - 0.25, "hi": mean + 0.25, "n": 40} for mean in (0.25, 0.5))
    difference = {"mean": 0.25, "lo": 0.125, "hi": 0.375, "n": 40}
    evaluation = {name: {"solve_rate": x} for name, x in (("before", before), ("after", after))}
    evaluation["difference"] = {"solve_rate": difference}
    summary = {"steps": 7, "wall_s": 12.3, "tokens": {"seen": 4567}, "eval": evaluation}
    run.write_json(run.summary_path, summary)
    run.set_status("completed")


def test_a_merged_adapter_works_alone_and_gives_the_same_output(adapter_run: RunDirectory) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert merge.main([str(adapter_run.path)]) == 0
    merged = adapter_run.path / "merged"
    assert not (merged / "adapter_config.json").exists()
    ids = torch.arange(5, 25)[None]
    base = load_model(adapter_run.config().model)
    plain = base(ids).logits
    adapted = PeftModel.from_pretrained(base, str(adapter_run.path / "model"))(ids).logits
    loaded = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)(ids).logits
    assert (plain - adapted).abs().max() > 1e-2, "the adapter does nothing"
    torch.testing.assert_close(loaded, adapted, atol=1e-4, rtol=1e-4)
    one, other = (AutoTokenizer.from_pretrained(path) for path in (merged, adapter_run.path / "model"))
    assert one.chat_template == other.chat_template is not None
    with pytest.raises(UserError, match="exists already"):
        merge.main([str(adapter_run.path)])
    with pytest.raises(UserError, match=r"is an adapter for .* which is only on this machine; run `agentrl merge"):
        push.main([str(adapter_run.path), "someone/agent", "dry_run=true"])
    assert push.main([str(adapter_run.path), "someone/agent", f"weights={merged}", "dry_run=true"]) == 0


@pytest.fixture
def full_run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory.create(composed(f"runs_dir={tmp_path}"))
    assert run is not None
    shutil.copytree(checkpoint_path("builtin:tiny"), run.path / "model")
    finish(run)
    return run


def test_a_dry_push_writes_the_folder_and_shows_it(full_run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="full weights already"):
        merge.main([str(full_run.path)])
    for _ in range(2):  # the second push makes the folder again
        assert push.main([str(full_run.path), "someone/agent", "dry_run=true"]) == 0
    said = capsys.readouterr().out
    folder = full_run.path / "hub"
    for name in ("README.md", "model.safetensors", "tokenizer.json", "agentrl_config.yaml", "agentrl_summary.json"):
        assert (folder / name).is_file() and name in said
    assert "nothing was sent" in said and "private someone/agent" in said
    _, head, body = (folder / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head)["tags"] == ["agentrl", "trl", "pact", "minihop"]
    cells = [
        cell.strip() for cell in next(x for x in body.splitlines() if x.startswith("| solve_rate")).split("|")[1:5]
    ]
    assert cells == ["solve_rate", "0.250 [0.000, 0.500]", "0.500 [0.250, 0.750]", "+0.250 [+0.125, +0.375]"]
    assert "7 updates, 4,567 tokens, seed 0" in body and "prompts_per_batch" in body
    commit = (json.loads(full_run.environment_path.read_text())["git"] or {}).get("commit")
    assert commit is None or commit in body


def test_a_push_makes_the_repository_and_uploads_the_folder(
    full_run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    class Api:
        def create_repo(self, repository: str, **keys: Any) -> None:
            calls.append((repository, keys))

        def upload_folder(self, **keys: Any) -> Any:
            calls.append((keys["repo_id"], keys))
            return type("Commit", (), {"commit_url": "https://hub/commit"})

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert push.main([str(full_run.path), "someone/agent", "private=false"]) == 0
    assert calls[0] == ("someone/agent", {"private": False, "exist_ok": True})
    assert calls[1][1]["folder_path"] == full_run.path / "hub"


def test_a_push_without_network_is_one_line_and_keeps_the_folder(
    full_run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"was not uploaded: .*The folder is ready") as error:
        push.main([str(full_run.path), "someone/agent"])
    assert "\n" not in str(error.value) and (full_run.path / "hub" / "README.md").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{run}"], "name a run directory and a repository: agentrl push"),
        (["{run}", "someone/agent", "dry_run=yes"], "must be true or false"),
        (["{run}", "agent"], "must be OWNER/NAME"),
        (["{run}", "some one/agent"], "is not a repository.s name"),
        (["{run}", "someone/agent", "weights=/nowhere"], "holds no model"),
    ],
)
def test_a_senseless_push_is_refused(full_run: RunDirectory, arguments: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        push.main([argument.format(run=full_run.path) for argument in arguments])


def test_an_unfinished_run_is_not_pushed(full_run: RunDirectory) -> None:
    full_run.set_status("interrupted")
    with pytest.raises(UserError, match="is interrupted, and a model card needs its results"):
        push.main([str(full_run.path), "someone/agent"])


def test_the_views_show_metrics_that_runs_write(capsys: pytest.CaptureFixture[str]) -> None:
    hipo = {"lambda/sys", "ema/sys", "tau/sys", "filtered", "loss/total", "kl", "clip_ratio", "entropy", "lr"}
    hipo |= {
        f"{name}{part}" for name in ("r_sys", "r_user", "violation_rate") for part in ("", "/conflict", "/aligned")
    }
    both = {"completion/max_tokens", "completion/truncated", "completion/mean_tokens", "grad_norm", "tokens_per_s"}
    apart = {f"{name}/{context}" for name in ("kl", "clip_ratio", "entropy") for context in ("prompt", "trace")}
    apart |= {"trace/cut", "trace/none"}
    known = {
        "pact": {*PACT_METRICS, *both, "frac_reward_zero_std", "anneal/anchored", "tools/calls"} | apart,
        "hipo": hipo | both | {"missing/sys", "missing/user"},
    }
    for algo, headings in VIEWS.items():
        shown = {metric for panels in headings.values() for metrics in panels.values() for metric in metrics}
        assert shown - known[algo] == set()
    assert wandb_command.main(["dashboard", "algo=hipo", "dry_run=true"]) == 0
    assert "lambda/sys" in capsys.readouterr().out
    with pytest.raises(UserError, match="algo=dpo has no view"):
        wandb_command.main(["dashboard", "algo=dpo"])


@pytest.mark.parametrize("algo", VIEWS)
def test_every_view_can_be_built(algo: str) -> None:
    pytest.importorskip("wandb_workspaces", reason="the extra 'dashboard' is not installed")
    view = json.loads(workspace(algo, "team", "agentrl")._to_model().model_dump_json(by_alias=True))
    text = json.dumps(view)
    assert f"agentrl {algo.upper()}" in text
    assert ("constraint/lambda/sys" in text) == (algo == "hipo")
    assert ("annealing/anneal/level" in text) == (algo == "pact")


def test_the_commands_are_listed() -> None:
    assert {"merge", "push", "wandb"} <= set(COMMANDS)
