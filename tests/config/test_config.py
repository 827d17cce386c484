"""Every shipped value composes and validates, and the papers' defaults are the papers'."""

from __future__ import annotations

import itertools
from dataclasses import asdict, fields, is_dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import get_type_hints

import pytest
from omegaconf import OmegaConf

from agentrl.config import algos, benches, schema
from agentrl.config import help as config_help
from agentrl.config.algos import ALGOS
from agentrl.config.benches import BENCHES, HIF_BENCHES
from agentrl.config.compose import compose as compose_command
from agentrl.config.load import all_keys, load_config
from agentrl.config.schema import Config
from agentrl.config.validate import CHOICES, validate
from agentrl.core.errors import UserError
from tests.support.helpers import CONF, composed

ROOT = Path(__file__).resolve().parents[2]
GROUPS = sorted(config_help.GROUPS)
HIPO = ("hipo", "sys_only", "user_only", "fixed_lambda", "dpo", "split_softmax", "focal_lora")
NEEDED = {  # keys without a value, and the method and the judge that suites of instruction hierarchies ask for
    "model=custom": ["model.path=some/checkpoint"],
    "bench=ftrl": [f"bench.path={ROOT}"],
    **{
        f"bench={name}": [
            *([] if name == "systemcheck" else [f"bench.path={ROOT / 'README.md' if name == 'pairs' else ROOT}"]),
            *(["bench.test_fraction=0.2"] if name in ("iheval", "realguardrails") else []),  # rows to train on
            *("algo=hipo", "judge=openai", "judge.model=some-model"),
        ]
        for name in HIF_BENCHES
    },
    "bench=minihif": ["algo=hipo"],
    "bench=custom": [f"bench.path={ROOT}/examples/bench_sums.py"],
    "algo=custom": [f"algo.path={ROOT}/examples/algo_rloo.py"],
    "judge=openai": ["judge.model=some-model"],
    "judge=local": ["judge.path=some/checkpoint"],
}


def every_option() -> list[str]:
    return [f"{group}={option}" for group in GROUPS for option in config_help.options(CONF, group)]


# --- what ships ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("override", every_option())
def test_every_option_composes_and_validates(override: str, tmp_path: Path) -> None:
    overrides = [override, *NEEDED.get(override, [])]
    if override == "hardware=multi_gpu":  # the tiny preset's batch is for one process
        overrides.append("model=qwen3-1.7b")
    if override == "judge=distilled":
        (tmp_path / "distilled.json").touch()
        overrides.append(f"judge.path={tmp_path}")
    package = override.removeprefix("tracker=")
    if package in ("trackio", "tensorboard") and find_spec(package) is None:
        with pytest.raises(UserError, match=f"pip install '?{package}"):
            validate(composed(*overrides))
        return
    assert validate(composed(*overrides)) == []


def combinations() -> list[tuple[str, str, str]]:
    """Every algorithm with every bench, and with a packaged model where a file scales the pair down for it."""
    algos, benches = (config_help.options(CONF, group) for group in ("algo", "bench"))
    found = list(itertools.product(algos, ("qwen3-1.7b",), benches))
    for model in ("tiny", "tiny_hif"):
        scaled = [algo for algo in algos if (CONF / "preset" / f"{model}_{algo}.yaml").exists()]
        limited = [bench for bench in benches if (CONF / "limits" / f"{model}_{bench}.yaml").exists()]
        found += itertools.product(scaled, (model,), limited)
    return found


@pytest.mark.slow
def test_every_combination_composes_and_validates() -> None:
    for choice in combinations():
        overrides = tuple(f"{group}={option}" for group, option in zip(("algo", "model", "bench"), choice, strict=True))
        algo, bench = overrides[0].removeprefix("algo="), overrides[-1].removeprefix("bench=")
        both = [*NEEDED.get(overrides[0], []), *NEEDED.get(overrides[-1], [])]
        needed = [key for key in both if not key.startswith("algo=")]
        if algo == "eval":
            fits = True
        elif bench in (*HIF_BENCHES, "minihif"):
            fits = algo in (*HIPO, "sft")
        else:
            fits = algo not in HIPO
        if fits:
            validate(composed(*overrides, *needed))
        else:
            with pytest.raises(UserError):
                validate(composed(*overrides, *needed))


def test_hipo_defaults_are_the_papers_and_bring_bench_and_model() -> None:
    config = composed("algo=hipo", "model=qwen3-1.7b", "bench=systemcheck")
    trainer, rollout, dual = config.trainer, config.rollout, config.dual
    assert (trainer.learning_rate, trainer.epochs, trainer.prompts_per_batch) == (5e-6, 20, 1)
    assert (rollout.num_generations, rollout.temperature, rollout.top_p) == (4, 0.7, 0.9)
    assert (rollout.max_completion_tokens, config.algo.kl_coef) == (256, 0.05)
    assert (dual.kind, dual.initial, dual.learning_rate, dual.cap, dual.ema_decay) == ("sgd", 2.0, 0.07, 20.0, 0.9)
    (constraint,) = config.algo.constraints
    assert (constraint.reward, constraint.kind, constraint.threshold, constraint.initial) == ("sys", None, 0.7, 2.0)
    for algo, weight, kind, multiplier in (
        ("sys_only", 0.0, "fixed", 1.0),
        ("user_only", 1.0, "fixed", 0.0),
        ("fixed_lambda", 1.0, "fixed", 1.0),
    ):
        config = composed(f"algo={algo}")
        assert (config.bench.name, config.model.name) == ("minihif", "tiny_hif")
        assert (config.algo.user_weight, config.dual.kind, config.dual.initial) == (weight, kind, multiplier)


def test_every_directory_of_conf_is_a_documented_group() -> None:
    found = {str(file.parent.relative_to(CONF)) for file in CONF.rglob("*.yaml")} - {"."}
    assert found == set(GROUPS) | {"preset", "limits"}


def test_pact_defaults_are_the_papers() -> None:
    config = composed("algo=pact", "model=qwen3-4b", "bench=toolhop", "hardware=gpu")
    assert (config.trainer.prompts_per_batch, config.trainer.minibatch_prompts) == (256, 32)
    assert (config.trainer.learning_rate, config.trainer.epochs, config.trainer.max_steps) == (1e-6, 3, -1)
    rollout = config.rollout
    assert (rollout.num_generations, rollout.temperature, rollout.max_turns) == (8, 1.0, 10)
    assert (rollout.max_prompt_tokens, rollout.max_completion_tokens) == (7000, 23000)
    assert (config.algo.sft_coef, config.algo.q, config.algo.kl_coef) == (0.1, 0.4, 0.001)
    assert (config.anneal.kind, config.anneal.start, config.anneal.end) == ("linear", 0.8, 0.2)
    assert (config.reward.name, config.reward.matching, config.reward.unmatched_penalty) == ("matching", "hungarian", 0)


def test_tiny_is_scaled_down_and_the_command_line_and_experiments_win() -> None:
    assert composed().trainer.max_steps > 0
    assert composed().trainer.prompts_per_batch < 256
    assert composed("trainer.max_steps=7").trainer.max_steps == 7
    assert composed("bench=toolhop").rollout.max_prompt_tokens > composed().rollout.max_prompt_tokens
    assert composed("experiment=pact_toolhop_qwen3_4b").trainer.prompts_per_batch == 256
    assert composed("experiment=pact_toolhop_qwen3_4b", "model=tiny").trainer.prompts_per_batch < 256


def test_presets_and_limits_belong_to_options_that_exist() -> None:
    for folder, group in (("preset", "algo"), ("limits", "bench")):
        for file in (CONF / folder).glob("*.yaml"):
            models = [name for name in config_help.options(CONF, "model") if f"{file.stem}_".startswith(f"{name}_")]
            assert models, file
            model = max(models, key=len)  # tiny_hif_sft is tiny_hif's, not tiny's
            # A file with a model's name alone is what its presets share.
            assert file.stem == model or file.stem.removeprefix(f"{model}_") in config_help.options(CONF, group), file


def test_every_key_of_the_schema_has_a_sentence_and_no_default() -> None:
    for _, _, doc in all_keys():
        assert doc.endswith("."), doc
    for cls in [*vars(schema).values(), *vars(algos).values(), *vars(benches).values()]:
        if isinstance(cls, type) and is_dataclass(cls):
            for item in fields(cls):
                assert item.metadata.get("doc"), (cls, item.name)


def test_every_choice_belongs_to_a_key() -> None:
    assert set(CHOICES) <= {key for key, _, _ in all_keys()}


def test_reference_is_in_sync() -> None:
    assert (ROOT / "docs" / "config.md").read_text() == config_help.reference(), "run `make docs`"


def test_a_saved_configuration_loads_as_it_was(tmp_path: Path) -> None:
    for algo in ("pact", "grpo", "sft"):
        config = composed(f"algo={algo}", "trainer.learning_rate=2e-6", "tracker.tags=[a,b]")
        (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(asdict(config))))
        assert load_config(tmp_path) == config
        assert type(load_config(tmp_path).algo) is ALGOS[algo]


def test_damaged_configuration_files(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    with pytest.raises(UserError, match="does not exist"):
        load_config(tmp_path / "none")
    for content in ("a: [1", "- 1\n- 2", ""):
        file.write_text(content)
        with pytest.raises(UserError):
            load_config(tmp_path)


def test_types_of_the_schema_resolve() -> None:
    for cls in (*ALGOS.values(), *BENCHES.values(), Config):
        assert get_type_hints(cls)


# --- commands beside runs -----------------------------------------------------------------------------------------


def test_a_command_composes_as_a_run_does(tmp_path: Path) -> None:
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "short.yaml").write_text("defaults: [minihop]\ntrain_tasks: 7\n")
    config = compose_command(["seed=3", "--config-dir", str(tmp_path), "bench=short"])
    assert (config.seed, config.bench.train_tasks, config.algo.name) == (3, 7, "pact")
    with pytest.raises(UserError, match="bench=toolhob is not a choice; did you mean toolhop"):
        compose_command(["bench=toolhob"])
