"""Adapters: the base they belong to, with its revision; what they may be put on; what they are once merged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import hub as transformers_hub

from agentrl.benches import load_bench
from agentrl.commands import merge, push
from agentrl.config.compose import compose
from agentrl.config.rules.files import check_files
from agentrl.config.schema import Model
from agentrl.core.errors import UserError
from agentrl.models.adapters import adapter_base, check_lora, lora_config, rounding_loss
from agentrl.models.loading import Needs, load_chat, load_model, load_policy
from agentrl.models.places import checkpoint_path
from agentrl.store.run import RunDirectory
from agentrl.trainers.arguments import sft_arguments
from agentrl.trainers.sft import TraceSFTTrainer, expert_dataset
from tests.support.helpers import composed, make_trainer, small

TINY = checkpoint_path("builtin:tiny")
IDS = torch.arange(5, 25)[None]
HUB = "someone/tiny"
COMMITS = {"main": "a" * 40, "old": "b" * 40}


def model_of(*overrides: str) -> Model:
    return composed(*overrides).model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache, out of reach of any network, that holds two revisions of a model which say different things."""
    cache = tmp_path / "hub"
    repository = cache / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    for name, commit in COMMITS.items():
        (repository / "refs" / name).write_text(commit)
        folder = repository / "snapshots" / commit
        shutil.copytree(TINY, folder)
    other = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    other.save_pretrained(repository / "snapshots" / COMMITS["old"])
    for module in (constants, transformers_hub.constants):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
    return cache


def trained(config: Model, folder: Path, seed: int = 0) -> torch.Tensor:
    """An adapter made as a run makes it, saved in `folder`; what base and adapter say together."""
    torch.manual_seed(seed)
    wanted = lora_config(config)
    assert wanted is not None
    wanted.init_lora_weights = False  # it does something
    adapted = get_peft_model(load_model(config), wanted)
    adapted.save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
    return logits(adapted)


def test_the_revisions_differ(hub: Path) -> None:
    old, new = (
        logits(load_model(model_of("model=custom", f"model.path={HUB}", f"model.revision={r}"))) for r in COMMITS
    )
    assert (old - new).abs().max() > 0.1


def test_the_revision_of_the_base_survives(hub: Path, tmp_path: Path) -> None:
    config = model_of("model=custom", f"model.path={HUB}", "model.revision=old", "model/lora=on")
    said = trained(config, tmp_path / "adapter")
    again = model_of("model=custom", f"model.path={tmp_path / 'adapter'}")
    torch.testing.assert_close(logits(load_model(again)), said, atol=1e-4, rtol=1e-4)
    base = adapter_base(again)
    assert base is not None and (base.path, base.revision) == (HUB, "old")


def test_a_run_is_evaluated_merged_and_pushed_with_its_revision(
    hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ("model=custom", f"model.path={HUB}", "model.revision=old", "model/lora=on")
    run = RunDirectory.create(composed(f"runs_dir={tmp_path}", *keys))
    assert run is not None
    said = trained(run.config().model, run.path / "model")
    saved = run.path / "model" / "adapter_config.json"
    for revision in ("old", None):  # None: as runs of before wrote it
        saved.write_text(json.dumps(json.loads(saved.read_text()) | {"revision": revision}))
        evaluated = compose(["algo=eval", f"model={run.path}"]).model
        torch.testing.assert_close(logits(load_model(evaluated)), said, atol=1e-4, rtol=1e-4)
        assert merge.main([str(run.path), f"out={tmp_path / f'merged-{revision}'}"]) == 0
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / f"merged-{revision}", dtype=torch.float32)
        torch.testing.assert_close(logits(merged), said, atol=1e-4, rtol=1e-4)
        run.write_json(run.summary_path, {"steps": 1, "wall_s": 1.0, "tokens": {"seen": 1}, "eval": {}})
        run.set_status("completed")
        assert push.main([str(run.path), "someone/agent", "dry_run=true"]) == 0
        assert json.loads((run.path / "hub" / "adapter_config.json").read_text())["revision"] == "old"
        assert json.loads(saved.read_text())["revision"] == revision, "the run's own file is not touched"
        assert f"{HUB} (revision old)" in (run.path / "hub" / "README.md").read_text()


@pytest.mark.parametrize("algo", ["sft", "grpo"])
def test_a_trainer_writes_the_revision_beside_the_adapter(hub: Path, tmp_path: Path, algo: str) -> None:
    config = small(f"algo={algo}", "model=custom", f"model.path={HUB}", "model.revision=old", "model/lora=on")
    if algo == "grpo":
        trainer = make_trainer(config, tmp_path, peft_config=lora_config(config.model))
    else:
        bench = load_bench(config.bench)
        chat = load_chat(config.model, Needs(True, False))
        rows = expert_dataset(chat, bench, bench.tasks("train")[:4], config.algo.components)
        arguments = sft_arguments(config, tmp_path)
        trainer = TraceSFTTrainer(
            model=load_model(config.model),
            chat=chat,
            args=arguments,
            train_dataset=rows,
            peft_config=lora_config(config.model),
            settings=config.trainer,
        )
    trainer.save_model(str(tmp_path / "model"))
    saved = json.loads((tmp_path / "model" / "adapter_config.json").read_text())
    assert (saved["base_model_name_or_path"], saved["revision"]) == (HUB, "old")


def test_a_pushed_adapter_is_read_with_its_own_and_its_bases_revision(hub: Path, tmp_path: Path) -> None:
    config = model_of("model=custom", f"model.path={HUB}", "model.revision=old", "model/lora=on")
    said = trained(config, tmp_path / "adapter")
    repository = hub / "models--someone--adapter"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("d" * 40)
    (repository / "refs" / "v1").write_text("c" * 40)
    shutil.copytree(tmp_path / "adapter", repository / "snapshots" / ("c" * 40))
    trained(config, repository / "snapshots" / ("d" * 40), seed=1)
    loaded = load_model(model_of("model=custom", "model.path=someone/adapter", "model.revision=v1"))
    torch.testing.assert_close(logits(loaded), said, atol=1e-4, rtol=1e-4)
    assert not any("lora" in name for name, _ in loaded.named_parameters())


def faint(config: Model, folder: Path, seed: int = 0) -> torch.Tensor:
    """As `trained`, with an adapter that changes weights by less than 16 bits can hold; what the pair says."""
    torch.manual_seed(seed)
    wanted = lora_config(config)
    assert wanted is not None
    adapted = get_peft_model(load_model(config), wanted)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=1e-4)
    adapted.save_pretrained(folder)
    return logits(adapted)


def test_16_bits_do_not_round_an_adapter_that_is_evaluated(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    said = faint(model_of("model/lora=on", "model.dtype=bfloat16"), tmp_path / "first")
    evaluated = model_of("model=custom", f"model.path={tmp_path / 'first'}", "model.dtype=bfloat16", "model/lora=on")
    torch.testing.assert_close(logits(load_policy(evaluated)), said, atol=0, rtol=0)
    assert not any("rounds them" in str(warning.message) for warning in recwarn)
    with pytest.warns(
        UserWarning, match=r"first: merging this adapter into weights of bfloat16 rounds them, .* 8\d% of"
    ):
        assert (logits(load_model(evaluated)) - said).abs().max() > 0

    both = faint(evaluated, tmp_path / "second", seed=1)  # trained on the rounded sum, so evaluated on it
    stacked = model_of("model=custom", f"model.path={tmp_path / 'second'}", "model.dtype=bfloat16")
    torch.testing.assert_close(logits(load_policy(stacked)), both, atol=0, rtol=0)


def test_the_rounding_loss_of_hand_made_weights(tmp_path: Path) -> None:
    """1 + 2^-10 rounds to 1 in bfloat16 and is lost whole; 1 + 2^-7 is kept."""
    for step, lost in ((2.0**-10, 1.0), (2.0**-7, 0.0)):
        model: Any = load_model(model_of("model.dtype=bfloat16"))
        layer = model.model.layers[0].self_attn.q_proj
        layer.weight.data.fill_(1.0)
        settings = LoraConfig(r=1, lora_alpha=1, target_modules=["0.self_attn.q_proj"])
        adapted = get_peft_model(model, settings)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.data.fill_(step if "lora_B" in name else 1.0)
        assert rounding_loss(adapted) == lost


def test_merge_writes_the_type_that_is_asked_for(tmp_path: Path) -> None:
    run = RunDirectory.create(composed(f"runs_dir={tmp_path}", "model/lora=on", "model.dtype=bfloat16"))
    assert run is not None
    faint(run.config().model, run.path / "model")
    AutoTokenizer.from_pretrained(TINY).save_pretrained(run.path / "model")
    with pytest.warns(UserWarning, match="for agentrl merge, dtype=float32"):
        assert merge.main([str(run.path)]) == 0
    assert merge.main([str(run.path), f"out={tmp_path / 'whole'}", "dtype=float32"]) == 0
    places = (run.path / "merged", tmp_path / "whole")
    rounded, whole = (AutoModelForCausalLM.from_pretrained(place, dtype="auto") for place in places)
    assert (rounded.dtype, whole.dtype) == (torch.bfloat16, torch.float32)
    exact = PeftModel.from_pretrained(load_model(model_of()), str(run.path / "model"))
    torch.testing.assert_close(logits(whole), logits(exact), atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match="dtype=int8: must be float32, bfloat16 or float16"):
        merge.main([str(run.path), "dtype=int8"])


def test_an_adapter_trained_on_an_adapter_keeps_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trained(model_of("model/lora=on"), Path("first"))
    both = trained(model_of("model=custom", "model.path=./first", "model/lora=on"), Path("second"), seed=1)
    monkeypatch.chdir("/")  # the first is found from anywhere
    loaded = load_model(model_of("model=custom", f"model.path={tmp_path / 'second'}"))
    torch.testing.assert_close(logits(loaded), both, atol=1e-4, rtol=1e-4)


def test_an_adapter_without_a_tokenizer_takes_its_bases(tmp_path: Path) -> None:
    trained(model_of("model/lora=on"), tmp_path / "adapter")
    for file in (tmp_path / "adapter").glob("*token*"):
        file.unlink()
    chat = load_chat(model_of("model=custom", f"model.path={tmp_path / 'adapter'}"), Needs(True, False))
    assert chat.ids("<|im_end|>") == [2]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is damaged"),
        ("[]", "names no base"),
        ("{}", "names no base"),
        ('{"base_model_name_or_path": ""}', "no base"),
    ],
)
def test_a_broken_adapter_is_one_line(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(UserError, match=said) as error:
        load_model(model_of("model=custom", f"model.path={tmp_path}"))
    assert "\n" not in str(error.value)


def test_an_adapter_that_names_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    with pytest.raises(UserError, match="names no base"):
        load_model(model_of("model=custom", f"model.path={tmp_path}"))


def test_an_adapter_whose_base_was_moved_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/gone/base"}))
    config = composed("algo=eval", "model=custom", f"model.path={tmp_path}")
    for refuse in (lambda: check_files(config), lambda: adapter_base(config.model)):
        with pytest.raises(
            UserError, match=r"base of this adapter, /gone/base, is gone; write its new place into"
        ) as said:
            refuse()
        assert str(tmp_path / "adapter_config.json") in str(said.value) and "\n" not in str(said.value)


TIED = {
    "embed_tokens": {"target_modules": ["q_proj", "embed_tokens"]},
    "lm_head": {"target_modules": ["q_proj", "lm_head"]},
    "both": {"target_modules": ["embed_tokens", "lm_head"]},
    "together": {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    "saved lm_head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "saved embed_tokens": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "single tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [5, 6, 7]},
}


@pytest.mark.parametrize("kind", TIED)
def test_an_adapter_on_tied_embeddings_says_the_same_merged_and_saved(tmp_path: Path, kind: str) -> None:
    """Adapters of other tools may touch the embeddings; the merged checkpoint parts them where they differ."""
    torch.manual_seed(0)
    settings = LoraConfig(r=4, task_type="CAUSAL_LM", init_lora_weights=False, **TIED[kind])  # type: ignore[arg-type]
    adapted = get_peft_model(load_model(model_of()), settings)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "modules_to_save" in name or "trainable_tokens_delta" in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    said = logits(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    alone = logits(PeftModel.from_pretrained(load_model(model_of()), str(tmp_path / "adapter")))
    torch.testing.assert_close(alone, said, atol=1e-4, rtol=1e-4)
    merged = load_model(model_of("model=custom", f"model.path={tmp_path / 'adapter'}"))
    torch.testing.assert_close(logits(merged), said, atol=1e-3, rtol=1e-3)
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(logits(again), said, atol=1e-3, rtol=1e-3)


def lora(targets: str, *more: str) -> Model:
    return model_of("model/lora=on", f"model.lora.target_modules={targets}", *more)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ("[q_prj]", "no module q_prj; did you mean q_proj"),
        ("[q_proj,v_prj]", "no module v_prj; did you mean v_proj"),
        ("[query_key_value]", "no module query_key_value"),
        ("[mlp]", "Qwen3MLP"),
        ("[q_norm]", "is not supported"),
        ("[lm_head]", "lm_head is the output layer"),
        ("[q_proj,embed_tokens]", "share their weights"),
        ("[model.embed_tokens]", "share their weights"),
    ],
)
def test_impossible_targets_are_one_line_before_the_weights_are_read(
    targets: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    with pytest.raises(UserError, match=said) as error:
        check_lora(lora(targets))
    assert "\n" not in str(error.value) and "all-linear" in str(error.value)
    assert len(str(error.value)) < 700


@pytest.mark.parametrize("targets", ["all-linear", "[q_proj,v_proj]", "[layers.0.self_attn.q_proj]", "null"])
def test_possible_targets_pass_and_train(targets: str) -> None:
    config = lora(targets)
    check_lora(config)
    wanted = lora_config(config)
    assert wanted is not None
    adapted = get_peft_model(load_model(config), wanted)
    names = {n.split(".lora_A")[0].rpartition(".")[2] for n, _ in adapted.named_parameters() if ".lora_A" in n}
    seven = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert names == (
        seven if targets in ("all-linear", "null") else set(targets.strip("[]").rpartition(".")[2].split(","))
    )


def test_targets_of_an_adapters_base_are_looked_up_there(tmp_path: Path) -> None:
    trained(model_of("model/lora=on"), tmp_path / "adapter")
    with pytest.raises(UserError, match="no module q_prj"):
        check_lora(lora("[q_prj]", "model=custom", f"model.path={tmp_path / 'adapter'}"))


def test_untied_embeddings_may_carry_an_adapter(tmp_path: Path) -> None:
    model = load_model(model_of())
    model.config.tie_word_embeddings = False
    model.config.save_pretrained(tmp_path)
    check_lora(lora("[embed_tokens,q_proj]", "model=custom", f"model.path={tmp_path}"))
