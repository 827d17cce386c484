"""Every shipped value composes and validates; every impossible one is refused in one line that names the key."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from agentrl.config import algos, benches, schema
from agentrl.config import help as config_help
from agentrl.config.algos import ALGOS
from agentrl.config.benches import BENCHES, HIF_BENCHES
from agentrl.config.compose import compose as compose_command
from agentrl.config.load import all_keys, load_config, typed_config
from agentrl.config.schema import Config
from agentrl.config.validate import CHOICES, validate
from agentrl.errors import UserError
from agentrl.estimate import count_parameters, estimate

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
GROUPS = sorted(config_help.GROUPS)
HIPO = ("hipo", "sys_only", "user_only", "fixed_lambda", "dpo", "split_softmax", "focal_lora")
NEEDED = {  # keys without a value, and the method and the judge that suites of instruction hierarchies ask for
    "model=custom": ["model.path=some/checkpoint"],
    "bench=ftrl": [f"bench.path={ROOT}"],
    **{
        f"bench={name}": [
            *([] if name == "systemcheck" else [f"bench.path={ROOT}"]),
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


@pytest.fixture(autouse=True)
def hydra_here() -> Iterator[None]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


@cache
def composed(groups: tuple[str, ...]) -> str:
    return OmegaConf.to_yaml(compose("config", overrides=list(groups)))


def config_of(*overrides: str) -> Config:
    """As the command line would compose it; keys are set without Hydra, whose composition takes a third of a second."""
    groups = tuple(override for override in overrides if override.split("=")[0] in GROUPS)
    raw = OmegaConf.create(composed(groups))
    for override in overrides:
        if override not in groups:
            key, value = override.lstrip("+").split("=", 1)
            OmegaConf.update(raw, key, OmegaConf.to_container(OmegaConf.create(f"value: {value}"))["value"])
    return typed_config(raw)


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
        with pytest.raises(UserError, match=f"pip install 'agentrl\\[{package}\\]'"):
            validate(config_of(*overrides))
        return
    assert validate(config_of(*overrides)) == []


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
        if bench in (*HIF_BENCHES, "minihif"):
            fits = algo in (*HIPO, "sft")
        else:
            fits = algo not in HIPO
        if fits:
            validate(config_of(*overrides, *needed))
        else:
            with pytest.raises(UserError):
                validate(config_of(*overrides, *needed))


def test_hipo_defaults_are_the_papers_and_bring_bench_and_model() -> None:
    config = config_of("algo=hipo", "model=qwen3-1.7b", "bench=systemcheck")
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
        config = config_of(f"algo={algo}")
        assert (config.bench.name, config.model.name) == ("minihif", "tiny_hif")
        assert (config.algo.user_weight, config.dual.kind, config.dual.initial) == (weight, kind, multiplier)


def test_constraints_are_a_list_of_checked_groups() -> None:
    several = "algo.constraints=[{name: a, reward: sys, kind: conflict, threshold: 0.5, initial: 1}]"
    assert config_of("algo=hipo", several).algo.constraints[0].kind == "conflict"
    assert "unknown key algo.constraints.0.tau" in refusal("algo=hipo", "algo.constraints=[{name: a, tau: 1}]")
    assert "threshold has no value" in refusal("algo=hipo", "algo.constraints=[{name: a, reward: sys, kind: null}]")
    assert "not a list of groups" in refusal("algo=hipo", "algo.constraints=[sys]")
    twice = "algo.constraints=[{name: a, reward: sys, kind: null, threshold: 0.5, initial: 1},"
    twice += "{name: a, reward: user, kind: null, threshold: 0.5, initial: 1}]"
    assert "share a name" in refusal("algo=hipo", twice)


def test_every_directory_of_conf_is_a_documented_group() -> None:
    found = {str(file.parent.relative_to(CONF)) for file in CONF.rglob("*.yaml")} - {"."}
    assert found == set(GROUPS) | {"preset", "limits"}


def test_pact_defaults_are_the_papers() -> None:
    config = config_of("algo=pact", "model=qwen3-4b", "bench=toolhop", "hardware=gpu")
    assert (config.trainer.prompts_per_batch, config.trainer.minibatch_prompts) == (256, 32)
    assert (config.trainer.learning_rate, config.trainer.epochs, config.trainer.max_steps) == (1e-6, 3, -1)
    rollout = config.rollout
    assert (rollout.num_generations, rollout.temperature, rollout.max_turns) == (8, 1.0, 10)
    assert (rollout.max_prompt_tokens, rollout.max_completion_tokens) == (7000, 23000)
    assert (config.algo.sft_coef, config.algo.q, config.algo.kl_coef) == (0.1, 0.4, 0.001)
    assert (config.anneal.kind, config.anneal.start, config.anneal.end) == ("linear", 0.8, 0.2)
    assert (config.reward.name, config.reward.matching, config.reward.unmatched_penalty) == ("matching", "hungarian", 0)


def test_tiny_is_scaled_down_and_the_command_line_and_experiments_win() -> None:
    assert config_of().trainer.max_steps > 0
    assert config_of().trainer.prompts_per_batch < 256
    assert config_of("trainer.max_steps=7").trainer.max_steps == 7
    assert config_of("bench=toolhop").rollout.max_prompt_tokens > config_of().rollout.max_prompt_tokens
    assert config_of("experiment=pact_toolhop_qwen3_4b").trainer.prompts_per_batch == 256
    assert config_of("experiment=pact_toolhop_qwen3_4b", "model=tiny").trainer.prompts_per_batch < 256


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
        config = config_of(f"algo={algo}", "trainer.learning_rate=2e-6", "tracker.tags=[a,b]")
        (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(asdict(config))))
        assert load_config(tmp_path) == config
        assert type(load_config(tmp_path).algo) is ALGOS[algo]


# --- what is refused ----------------------------------------------------------------------------------------------


def refusal(*overrides: str) -> str:
    with pytest.raises(UserError) as error:
        validate(config_of(*overrides))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("+trainer.learning_rat=1", "did you mean learning_rate"),
        ("+algo.beta=1", "unknown key algo.beta"),
        ("+extra=1", "unknown key extra"),
        ("seed=abc", "seed='abc' must be of type int"),
        ("trainer.max_steps=1.5", "must be of type int"),
        ("trainer.learning_rate=fast", "must be of type float"),
        ("dry_run=perhaps", "must be of type bool"),
        ("tracker.tags=one", "must be of type list of str"),
        ("bench.train_hops=[a,b,c,d]", "must be of type list of float"),
        ("seed=null", "must be of type int"),
        ("algo.name=ppo", "algo.name='ppo' is not a known algo"),
        ("algo.name=null", "algo.name=None is not a known algo"),
        ("trainer=3", "is not a group of keys"),
        ("model=custom", "model.path has no value"),
        ("bench=ftrl", "bench.path has no value"),
        ("name=${nope}", "name: Interpolation key 'nope' not found"),
    ],
)
def test_unknown_keys_and_wrong_types(override: str, words: str) -> None:
    assert words in refusal(override)


IMPOSSIBLE = [
    ("algo=hipo algo.tau=1.2", "algo.tau=1.2: rewards lie in [0, 1]"),
    ("algo=hipo algo.tau=-0.1", "algo.tau"),
    ("algo=hipo algo.user_weight=-1", "algo.user_weight"),
    ("algo=user_only algo.user_weight=0", "nothing is left to learn from"),
    ("algo=hipo algo.importance_level=turn", "algo.importance_level"),
    ("algo=hipo algo.reference=4bit", "NF4 has kernels for CUDA alone; set algo.reference=copy"),
    ("algo=hipo algo.max_repetition=2", "algo.max_repetition"),
    ("algo=hipo dual.initial=30", "must lie in [0, dual.cap=20]"),
    ("algo=hipo bench=minihop", "bench=minihop: has one reward"),
    ("algo=grpo bench=minihif", "has no tools for algo=grpo"),
    ("algo=hipo bench=systemcheck", "judge=program: no program grades bench=systemcheck"),
    ("algo=hipo bench.path=x.jsonl", "minihif is generated"),
    ("dual.kind=newton", "dual.kind=newton is not a choice"),
    ("dual.cap=0", "dual.cap"),
    ("dual.ema_decay=1", "dual.ema_decay"),
    ("dual.patience=0", "dual.patience"),
    ("dual=log dual.initial=0", "0 stays 0"),
    ("dual.on_infeasible=halt", "dual.on_infeasible"),
    ("algo.q=1.5", "algo.q=1.5"),
    ("algo.q=-0.1", "algo.q"),
    ("algo.q=nan", "algo.q=nan"),
    ("algo.sft_coef=-1", "algo.sft_coef"),
    ("algo.rl_coef=0 algo.sft_coef=0", "nothing is left to train on"),
    ("algo.rl_coef=0 algo.q=1", "nothing is left to train on"),
    ("algo.clip_eps=0", "algo.clip_eps"),
    ("algo.kl_coef=-1", "algo.kl_coef"),
    ("algo.entropy_coef=inf", "algo.entropy_coef"),
    ("algo.kl_context=both", "algo.kl_context=both is not a choice"),
    ("algo.loss_aggregation=tokens", "did you mean token?"),
    ("algo.trace.drop=[tools]", "algo.trace.drop=tools"),
    ("algo.trace.rendering=chat", "algo.trace.rendering"),
    ("algo.trace.max_tokens=0", "algo.trace.max_tokens"),
    ("algo.schedule.reasoning=segments", "did you mean segment?"),
    ("sandbox=lax", "choose from auto, strict"),
    ("algo.schedule.call=full", "algo.schedule.call"),
    ("algo.schedule.switch_points=[0.2,0.4,0.6]", "four ascending"),
    ("algo.schedule.switch_points=[0.2,0.6,0.4,0.8]", "four ascending"),
    ("algo.schedule.switch_points=[0.2,0.4,0.6,1.8]", "four ascending"),
    ("algo.advantage.kind=gae", "algo.advantage.kind"),
    ("algo.advantage.gamma=1.1", "algo.advantage.gamma"),
    ("algo.advantage.scale=0", "algo.advantage.scale"),
    ("algo.advantage.eps=0", "algo.advantage.eps"),
    ("algo=sft algo.components=[]", "algo.components"),
    ("algo=sft algo.components=[thoughts]", "choose from reasoning"),
    ("anneal.start=0.1", "at least anneal.end=0.2"),
    ("anneal.start=1.1", "anneal.start"),
    ("anneal.horizon=0", "anneal.horizon"),
    ("anneal.horizon=1.01", "anneal.horizon"),
    ("anneal=steps anneal.num_steps=1", "anneal.num_steps"),
    ("anneal.kind=exponential", "anneal.kind"),
    ("rollout.num_generations=1", "rollout.num_generations=1"),
    ("rollout.temperature=0", "rollout.temperature=0"),
    ("rollout.top_p=0", "rollout.top_p"),
    ("rollout.max_turns=0", "rollout.max_turns"),
    ("rollout.max_turn_tokens=99999", "rollout.max_turn_tokens"),
    ("rollout.engine=sglang", "rollout.engine"),
    ("reward.name=solve", "reward.name"),
    ("reward.matching=optimal", "reward.matching"),
    ("reward.unmatched_penalty=-1", "reward.unmatched_penalty"),
    ("reward=ot reward.ot_reg=0", "reward.ot_reg=0.0: must be above 0"),
    ("reward=ftrl reward.ftrl_variant=f2", "reward.ftrl_variant=f2 is not a choice; did you mean f1?"),
    ("reward=toolrl reward.toolrl.schedule=fast", "reward.toolrl.schedule"),
    ("algo=grpo reward=ftrl bench=bfcl", "reward=ftrl: bench=bfcl has no sub-answers"),
    ("trainer.minibatch_prompts=3", "must divide trainer.prompts_per_batch=16; nearest is 2"),
    ("trainer.micro_batch=7", "7 does not divide; nearest is 8"),
    ("trainer.micro_batch=0", "trainer.micro_batch"),
    ("trainer.max_steps=0", "trainer.max_steps"),
    ("trainer.max_steps=-2", "trainer.max_steps"),
    ("trainer.max_steps=-1 trainer.epochs=0", "trainer.epochs"),
    ("trainer.learning_rate=0", "trainer.learning_rate"),
    ("trainer.learning_rate=nan", "trainer.learning_rate"),
    ("trainer.save_steps=-1", "trainer.save_steps"),
    ("trainer.lr_schedule=cosin", "did you mean cosine?"),
    ("eval.limit=0", "eval.limit"),
    ("eval.samples=0", "eval.samples"),
    ("eval.temperature=-1", "eval.temperature"),
    ("bench.path=data.json", "minihop is generated"),
    ("bench.train_tasks=0", "bench.train_tasks"),
    ("bench.train_hops=[0.5,0.5,0.5,0.5]", "sum to 1"),
    ("bench.test_hops=[1]", "sum to 1"),
    ("bench=toolhop bench.path=/nowhere/ToolHop.json", "bench.path=/nowhere/ToolHop.json: no such file"),
    ("bench=toolhop bench.test_fraction=1", "bench.test_fraction"),
    ("bench=toolhop bench.rule=exact", "bench.rule"),
    ("bench=toolhop bench.scenario=direct", "no expert traces"),
    ("bench=toolhop bench.scenario=direct algo=sft", "no expert traces"),
    ("bench=toolhop bench.scenario=direct algo=grpo", "set reward=answer"),
    ("bench=ftrl bench.path=/nowhere", "bench.path=/nowhere: no such file or directory"),
    (f"bench=ftrl bench.path={ROOT} bench.test_fraction=0", "bench.test_fraction=0"),
    (f"bench=ftrl bench.path={ROOT} bench.answer_tag=test", "bench.answer_tag=test is not a choice"),
    ("model.path=./nowhere", "model.path=./nowhere: no checkpoint there"),
    ("model.dtype=int8", "model.dtype"),
    ("model.dtype=float16", "set model.dtype=float32"),
    ("model.attn_implementation=flash_attention_2", "set model.attn_implementation=sdpa"),
    ("model.family=gpt2", "model.family"),
    ("model.lora.r=0", "model.lora.r"),
    ("model.lora.dropout=1", "model.lora.dropout"),
    ("model/lora=on model.lora.target_modules=[]", "model.lora.target_modules"),
    ("hardware.vllm=colocate", "vLLM rollouts need a GPU"),
    ("hardware.device=tpu", "hardware.device"),
    ("hardware.processes=0", "hardware.processes"),
    ("hardware.processes=3", "multiple of hardware.processes=3"),
    ("hardware.threads=0", "hardware.threads"),
    ("hardware.accelerate_config=/nowhere.yaml", "hardware.accelerate_config=/nowhere.yaml: no such file"),
    ("tracker.name=mlflow", "tracker.name"),
    ("name=a/b", "name='a/b'"),
    ("run_id=..", "run_id='..'"),
    ("runs_dir=''", "runs_dir"),
    ("seed=-1", "seed=-1"),
    ("judge=openai", "judge.model has no value"),
    ("judge=openai judge.model=m judge.api_key_env=sk-0123", "never the key itself"),
    ("judge=openai judge.model=m judge.base_url=ftp://host", "must be http(s)://"),
    ("judge=openai judge.model=m judge.max_cost=1", "without prices nothing costs anything"),
    ("judge=openai judge.model=m judge.user_rubric=/nowhere.md", "judge.user_rubric=/nowhere.md: no such file"),
    ("judge=distilled judge.path=/nowhere", "make one with agentrl judge distill"),
    ("algo=dpo algo.beta=0", "algo.beta"),
    ("algo=dpo rollout.num_generations=1", "a pair is two replies"),
    ("algo=dpo algo.pairs=/nowhere.jsonl", "algo.pairs"),
    ("algo=split_softmax algo.k=0", "algo.k"),
    ("algo=focal_lora algo.head_share=1.5", "algo.head_share"),
]


@pytest.mark.parametrize(
    ("overrides", "words"), IMPOSSIBLE, ids=[case[0].replace(str(ROOT), ".") for case in IMPOSSIBLE]
)
def test_impossible_combinations(overrides: str, words: str) -> None:
    assert words in refusal(*overrides.split())


def test_direct_scenario_is_possible_without_traces() -> None:
    assert validate(config_of("bench=toolhop", "bench.scenario=direct", "algo=grpo", "reward=answer")) == []


def test_unwise_values_warn() -> None:
    assert "bf16" in validate(config_of("hardware.bf16=true"))[0]
    assert "lost to rounding" in validate(config_of("model=qwen3-1.7b", "model.dtype=bfloat16"))[0]
    assert validate(config_of("model=qwen3-1.7b", "model.dtype=bfloat16", "model/lora=on")) == []


def test_damaged_configuration_files(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    with pytest.raises(UserError, match="does not exist"):
        load_config(tmp_path / "none")
    for content in ("a: [1", "- 1\n- 2", ""):
        file.write_text(content)
        with pytest.raises(UserError):
            load_config(tmp_path)


# --- the estimate -------------------------------------------------------------------------------------------------


def test_estimate_of_the_papers_run() -> None:
    # 2000 tasks / 256 a batch = 7 whole batches, 3 epochs = 21 batches of 8 updates of 32 prompts x 8 rollouts.
    result = estimate(config_of("algo=pact", "model=qwen3-4b", "hardware=gpu", "bench.train_tasks=2000"))
    assert (result.rollout_batches, result.updates) == (21, 168)
    assert result.sequences == 168 * 32 * 8
    assert result.rollout_tokens == 21 * 256 * 8 * 23000
    # float32 weights, gradients, two moments and a reference: 5 x 4 GB x (1e9 / 2**30)
    assert result.memory_gb is not None
    assert sum(result.memory_gb.values()) == pytest.approx(5 * 4 * 4.0e9 / 2**30)


def test_estimate_counts_a_local_checkpoint(tmp_path: Path) -> None:
    header = b'{"a": {"dtype": "F32", "shape": [3, 5], "data_offsets": [0, 60]}, "__metadata__": {}}'
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(60))
    config = config_of(f"model.path={tmp_path}")
    assert count_parameters(config) == 15
    (tmp_path / "model.safetensors").write_bytes(b"\x05")
    assert count_parameters(config) is None


def test_every_hub_model_has_a_known_size() -> None:
    for file in (CONF / "model").glob("*.yaml"):
        path: Any = yaml.safe_load(file.read_text())["path"]
        if path != "???" and not path.startswith("builtin:"):
            assert count_parameters(config_of(f"model={file.stem}")), file


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
