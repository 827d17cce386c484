"""Every shipped value composes and validates, and the papers' defaults are the papers'."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import pytest
from omegaconf import OmegaConf
from pydantic.fields import FieldInfo

from agentrl.config import help as config_help
from agentrl.config.algos.table import ALGOS
from agentrl.config.benches import BENCHES
from agentrl.config.compose import compose as compose_command
from agentrl.config.key import Group, Holds, choices, extra, group_in, key, limits, type_name, variants
from agentrl.config.load import all_keys, keys_of, load_config, make_group
from agentrl.config.rules import validate
from agentrl.config.schema import Config
from agentrl.config.traits import BenchKeys
from agentrl.core.errors import UserError
from agentrl.store.identity import is_in_identity
from tests.support.helpers import CONF, SIDE, SUITES, composed
from tests.support.methods import PACKAGED, SIDES

ROOT = Path(__file__).resolve().parents[2]
GROUPS = sorted(config_help.GROUPS)
JUDGED = ("judge=openai", "judge.model=some-model")


def accepted_path(name: str, cls: type[BenchKeys]) -> list[str]:
    """A directory or a file that a bench takes as its `path`, if it must have one."""
    if "path" not in cls.model_fields or cls.model_fields["path"].annotation is not str:
        return []
    for place in (ROOT, ROOT / "README.md", ROOT / "examples" / "bench_sums.py"):
        with suppress(UserError):
            cls.model_construct(name=name, path=str(place)).check_path()
            return [f"bench.path={place}"]
    raise AssertionError(f"bench={name} takes neither a directory nor a file")


NEEDED = {  # keys without a value, and the method and the judge that suites of instruction hierarchies ask for
    "model=custom": ["model.path=some/checkpoint"],
    **{f"bench={name}": accepted_path(name, cls) for name, cls in BENCHES.items()},
    **{
        f"bench={name}": [
            *accepted_path(name, BENCHES[name]),
            *(["bench.test_fraction=0.2"] if name in ("iheval", "realguardrails") else []),  # rows to train on
            *("algo=hipo", "judge=openai", "judge.model=some-model"),
        ]
        for name in SUITES
    },
    **{f"bench={name}": ["algo=eval", f"bench.path={ROOT / 'README.md'}", *JUDGED] for name in SIDE},
    "bench=minihif": ["algo=hipo"],
    "experiment=smollm2_hipo": [f"bench.path={ROOT}"],
    "experiment=smollm2_rules": [f"bench.path={ROOT}", f"traces={ROOT / 'README.md'}"],
    "algo=custom": [f"algo.path={ROOT}/examples/algo_rloo.py"],
    "judge=openai": ["judge.model=some-model"],
    "judge=local": ["judge.path=some/checkpoint"],
}


def options_together() -> list[tuple[str, ...]]:
    """Every option of every group. Options of groups that do not ask for one another are composed together."""
    apart = ("algo", "bench", "experiment", "judge", "reward")
    together = [group for group in GROUPS if group not in apart]
    named = {group: [f"{group}={option}" for option in config_help.options(CONF, group)] for group in GROUPS}
    rows = itertools.zip_longest(*(named[group] for group in together), fillvalue="")
    return [*((option,) for group in apart for option in named[group]), *(tuple(filter(None, row)) for row in rows)]


# --- what ships ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("options", options_together(), ids=" ".join)
def test_every_option_composes_and_validates(options: tuple[str, ...], tmp_path: Path) -> None:
    overrides = [*options, *(key for option in options for key in NEEDED.get(option, []))]
    if options == ("judge=distilled",):
        (tmp_path / "distilled.json").touch()
        overrides.append(f"judge.path={tmp_path}")
    packages = {option.removeprefix("tracker=") for option in options} & {"trackio", "tensorboard"}
    if missing := [package for package in packages if find_spec(package) is None]:
        with pytest.raises(UserError, match=f"pip install '?{missing[0]}"):
            validate(composed(*overrides))
        overrides.append("tracker=none")
    # a judge and a bench that asks none may meet here
    assert [text for text in validate(composed(*overrides)) if "asks no judge" not in text] == []


def combinations() -> list[tuple[str, str, str]]:
    """Every algorithm with every bench, and with a packaged model where a file scales the pair down for it."""
    algos, benches = (config_help.options(CONF, group) for group in ("algo", "bench"))
    found = list(itertools.product(algos, ("qwen3-1.7b",), benches))
    # one rule refuses every training method on a side evaluation
    found = [one for one in found if one[2] not in SIDE or one[0] in ("eval", "grpo", "hipo")]
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
        elif bench in SIDE:
            fits = False
        elif bench in (*SUITES, "minihif"):
            fits = algo in (*SIDES, "sft")
        else:
            fits = algo not in SIDES
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


# --- a key is declared in one place -----------------------------------------------------------------------------------


def groups(cls: type[Group] = Config) -> Iterator[type[Group]]:
    """The class of every group of keys, each once."""
    found = [cls]
    for one in found:
        yield one
        for item in one.model_fields.values():
            below = [*variants(item).values(), *([inner] if (inner := group_in(item.annotation)) else [])]
            found += [group for group in below if group not in found]


def declared() -> list[tuple[str, FieldInfo]]:
    return [(f"{cls.__name__}.{name}", item) for cls in groups() for name, item in cls.model_fields.items()]


@pytest.mark.parametrize(("place", "item"), declared(), ids=[place for place, _ in declared()])
def test_every_key_has_a_sentence_without_its_range_and_no_default(place: str, item: FieldInfo) -> None:
    assert re.fullmatch(r"[^\n]+\.", str(item.description))
    assert item.is_required() or extra(item)["record"]
    words = choices(item.annotation)
    typed = [word for word in words if re.search(rf"'{re.escape(word)}'", str(item.description))]
    assert not typed, "choices are named in the type"
    assert len(words) != 1, "one choice is none"
    if re.search(r"\b(file|directory)\b", str(item.description)) and type_name(item.annotation).startswith("str"):
        only_a_name = place.rsplit(".", 1)[-1] in ("name", "run_id", "out")
        assert only_a_name or extra(item)["place"] or place == "Distillation.cache", "a path is declared by place="
    if limits(item):
        assert not re.search(r"[\[(][01], ?[01][\])]|above 0|at least 1", str(item.description)), (
            "key() states the range"
        )


def test_choices_ranges_and_defaults_reach_reference_help_and_refusals_from_the_class() -> None:
    """The whole of a new key: one line of a class, and its value in a YAML file."""

    class Made(Group):
        shape: Literal["round", "flat"] = key("Shape.", means=("like a ball", "like a plate"))
        share: float = key("Share.", gt=0, le=1, hint=" (the paper: 0.3)")
        parts: list[Literal["a", "b"]] = key("Parts.")
        pair: Annotated[list[int], Holds(lambda pair: len(pair) == 2, "must be two numbers")] = key("Pair.")
        steps: int | None = key("Steps; null is endless.", ge=1)

    assert list(keys_of(Made, "made.")) == [
        ("made.shape", Made.model_fields["shape"].annotation, "Shape. 'round': like a ball; 'flat': like a plate."),
        ("made.share", float, "Share. In (0, 1]."),
        ("made.parts", Made.model_fields["parts"].annotation, "Parts. Any of a, b."),
        ("made.pair", list[int], "Pair. Two numbers."),
        ("made.steps", Made.model_fields["steps"].annotation, "Steps; null is endless. At least 1."),
    ]
    assert [type_name(kind) for _, kind, _ in keys_of(Made)] == [
        "str",
        "float",
        "list of str",
        "list of int",
        "int or null",
    ]
    good = {"shape": "flat", "share": "1", "parts": ["b"], "pair": ["1", 2], "steps": None}
    assert make_group(Made, good).model_dump() == good | {"share": 1.0, "pair": [1, 2]}
    for wrong, words in (
        ({"shape": "flet"}, "shape=flet is not a choice; did you mean flat?"),
        ({"share": 0}, "share=0: must lie in (0, 1] (the paper: 0.3)"),
        ({"share": "much"}, "share='much' must be of type float. Share. In (0, 1]."),
        ({"share": True}, "share=true must be of type float. Share. In (0, 1]."),
        ({"parts": ["c"]}, "parts=c is not a choice; choose from a, b"),
        ({"pair": [1]}, "pair=[1]: must be two numbers"),
        ({"pair": [1, "x"]}, "pair holds 'x' but must be of type list of int. Pair. Two numbers."),
        ({"share": "inf"}, "share=inf: must be a finite number; must lie in (0, 1] (the paper: 0.3)"),
        ({"steps": 0}, "steps=0: must be at least 1, or null"),
        ({"step": 1}, "unknown key step; did you mean steps?"),
    ):
        with pytest.raises(UserError, match=f"^{re.escape(words)}$"):
            make_group(Made, good | wrong)
    with pytest.raises(UserError, match=re.escape("pair has no value; set pair=... (Pair. Two numbers.)")):
        make_group(Made, good | {"pair": "???"})


def test_every_choice_and_range_stands_in_the_reference() -> None:
    reference = (ROOT / "docs" / "config.md").read_text()
    for _, kind, doc in all_keys():
        assert doc.replace("|", "\\|") in reference
        assert all(word in doc for word in choices(kind))


def test_as_many_meanings_as_choices() -> None:
    with pytest.raises(TypeError, match=r"Odd.one: 1 meanings, 2 choices"):

        class Odd(Group):
            one: Literal["a", "b"] = key("One.", means=("first",))


def test_reference_is_in_sync() -> None:
    assert (ROOT / "docs" / "config.md").read_text() == config_help.reference(), "run `make docs`"


def test_a_saved_configuration_loads_as_it_was(tmp_path: Path) -> None:
    for algo in ("pact", "grpo", "sft"):
        config = composed(f"algo={algo}", "trainer.learning_rate=2e-6", "tracker.tags=[a,b]")
        (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config.model_dump())))
        assert load_config(tmp_path) == config
        assert type(load_config(tmp_path).algo) is ALGOS[algo]


def test_the_file_of_an_older_run_is_read_without_keys_that_are_gone(tmp_path: Path) -> None:
    config = composed("trainer.tokens_per_batch=30000")
    values = config.model_dump(exclude={"scaled_by"})
    values["rollout"]["engine"], values["bench"]["path"], values["trainer"]["micro_batch"] = "trl", None, 4
    del values["trainer"]["tokens_per_batch"], values["trainer"]["engine"]
    del values["rollout"]["cache_tokens"], values["faults"]["dead_tools"]
    del values["algo"]["advantage"]["signs"], values["algo"]["q_from"], values["algo"]["conditioned"]
    del values["algo"]["constraints"], values["bench"]["forbid"]
    del values["algo"]["schedule"]["level_from"], values["algo"]["schedule"]["call_from"]
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(values)))
    assert load_config(tmp_path) == config
    suite = composed("algo=hipo").model_dump(exclude={"scaled_by"})
    del suite["bench"]["free"]
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(suite)))
    assert load_config(tmp_path) == composed("algo=hipo")
    del values["vllm"]
    values["hardware"] |= {"vllm": "server", "vllm_url": "http://elsewhere:1"}
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(values)))
    moved = {"mode": "server", "url": "http://elsewhere:1"}
    assert load_config(tmp_path).vllm.model_dump() == config.vllm.model_dump() | moved
    del values["sweep"]
    values["objective"] = "eval.after.reward.mean"
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(values)))
    assert load_config(tmp_path).sweep.metric == "eval.after.reward.mean"
    values["rollout"]["motor"] = "trl"
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(values)))
    with pytest.raises(UserError, match=r"unknown key rollout\.motor"):
        load_config(tmp_path)


def test_a_choice_that_has_another_name_now_is_read_and_suggested(tmp_path: Path) -> None:
    config = composed("bench=ftrl", "bench.path=x.jsonl", "bench.rules=corrected")
    values = config.model_dump(exclude={"scaled_by"})
    values["bench"]["rules"] = "mended"
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(values)))
    assert load_config(tmp_path).bench.rules == "corrected"
    with pytest.raises(UserError, match=r"bench\.rules=mended is not a choice; did you mean corrected\?"):
        composed("bench=ftrl", "bench.path=x.jsonl", "bench.rules=mended")


def test_a_key_that_is_gone_is_refused_with_what_took_its_place() -> None:
    for typed in ("rollout.engine=trl", "+rollout.engine=trl"):
        with pytest.raises(UserError, match=r"unknown key rollout\.engine; it was removed: .* vllm\.mode=colocate"):
            compose_command([typed])
    with pytest.raises(UserError, match=r"trainer\.micro_batch; it was removed: trainer\.tokens_per_batch bounds"):
        compose_command(["algo=sft", "trainer.micro_batch=8"])
    with pytest.raises(UserError, match=r"unknown key objective; it is sweep\.metric now"):
        compose_command(["objective=eval.after.reward.mean"])
    for old, new in (("vllm=off", r"vllm\.mode"), ("vllm_url=http://x", r"vllm\.url")):
        with pytest.raises(UserError, match=rf"unknown key hardware\.{old.split('=')[0]}; it is {new} now"):
            compose_command([f"hardware.{old}"])
    with pytest.raises(UserError, match=r"bench\.path is not a key of the chosen bench"):
        compose_command(["bench.path=tasks.json"])


@pytest.mark.parametrize(
    ("overrides", "files"),
    [
        ([], ["preset/tiny_pact", "limits/tiny", "limits/tiny_minihop"]),
        (["model=tiny_hif"], ["preset/tiny_pact", "limits/tiny_hif", "limits/tiny_minihop"]),  # some stand in
        (["bench=pairs", "bench.path=x", "algo=hipo"], ["preset/tiny_hif_hipo", "limits/tiny_hif"]),
        (["model=qwen3-4b"], []),
    ],
)
def test_a_run_knows_the_files_that_scaled_it_down(overrides: list[str], files: list[str]) -> None:
    config = compose_command(overrides)
    assert config.scaled_by == [f"conf/{file}.yaml" for file in files]
    assert not is_in_identity("scaled_by") and "scaled_by" not in {key for key, _, _ in all_keys()}


PRESETS = {file.stem for file in (CONF / "preset").glob("*.yaml")}
WITHOUT = [
    name for name, keys in PACKAGED.items() if keys.trains and not {f"tiny_{name}", f"tiny_hif_{name}"} & PRESETS
]


@pytest.mark.parametrize("algo", WITHOUT)
def test_a_method_without_a_preset_is_scaled_down_as_the_one_whose_values_it_takes_over(algo: str) -> None:
    config = compose_command([f"algo={algo}"])
    assert "conf/preset/tiny" in config.scaled_by[0] and config.trainer.max_steps > 0
    assert compose_command([f"algo={algo}", "model=qwen3-1.7b", "bench=toolhop"]).scaled_by == []


def test_files_of_the_users_that_scale_down_are_named_in_full(tmp_path: Path) -> None:
    for name, text in {
        "bench/own.yaml": "defaults: [minihop]\n",
        "limits/tiny_own.yaml": "# @package _global_\nrollout: {max_turns: 3}\n",
    }.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    config = compose_command(["--config-dir", str(tmp_path), "bench=own"])
    assert config.rollout.max_turns == 3
    assert config.scaled_by == [
        "conf/preset/tiny_pact.yaml",
        "conf/limits/tiny.yaml",
        f"{tmp_path}/limits/tiny_own.yaml",
    ]


def test_damaged_configuration_files(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    with pytest.raises(UserError, match="does not exist"):
        load_config(tmp_path / "none")
    for content in ("a: [1", "- 1\n- 2", ""):
        file.write_text(content)
        with pytest.raises(UserError):
            load_config(tmp_path)


# --- commands beside runs -----------------------------------------------------------------------------------------


def test_a_command_composes_as_a_run_does(tmp_path: Path) -> None:
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "short.yaml").write_text("defaults: [minihop]\ntrain_tasks: 7\n")
    config = compose_command(["seed=3", "--config-dir", str(tmp_path), "bench=short"])
    assert (config.seed, config.bench.train_tasks, config.algo.name) == (3, 7, "pact")
    with pytest.raises(UserError, match="bench=toolhob is not a choice; did you mean toolhop"):
        compose_command(["bench=toolhob"])
