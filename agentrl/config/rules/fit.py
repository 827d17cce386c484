"""Do algorithm, bench, reward and judge go together?"""

from __future__ import annotations

from agentrl.config.algos.evaluate import Evaluate
from agentrl.config.algos.pact import Pact
from agentrl.config.algos.sides import Hipo
from agentrl.config.algos.table import ALGOS
from agentrl.config.algos.traced import Sft
from agentrl.config.benches import ToolHop
from agentrl.config.checks import require
from agentrl.config.judges import EmbeddingJudge, OpenAIJudge
from agentrl.config.schema import Config


def check_fit(config: Config) -> list[str]:
    """Check what the chosen groups need from each other. Returns warnings. Raises UserError."""
    bench, reward = config.bench, config.reward
    golds_rule = f"bench={bench.name} has no sub-answers of tools; set reward=answer, or bench=ftrl, toolhop or minihop"
    known = bench.sub_answers or isinstance(config.algo, Sft)
    require(reward.name != "ftrl" or known, "reward", reward.name, golds_rule)
    _rewards(config)
    _training_rows(config)
    check_classifier(config)
    _direct(config)
    _template(config)
    _packed(config)
    _prices(config)
    return _warnings(config)


def _ungraded(config: Config) -> bool:
    return config.judge.name == "program" and config.bench.grades == "none"


def _rewards(config: Config) -> None:
    """Methods on instruction hierarchies need a bench with two rewards; the others need tools."""
    bench, algo = config.bench, config.algo
    similarity = (
        f"compares replies with the user's request, and no program grades r_sys of bench={bench.name}; choose "
        "judge=openai, local or distilled"
    )
    require(not (isinstance(config.judge, EmbeddingJudge) and bench.grades == "none"), "judge", "embedding", similarity)
    if algo.wants == "two sides":
        two_rule = (
            f"has one reward, but algo={algo.name} needs one for the system and one for the user; set bench=minihif or "
            "another HIF suite"
        )
        require(bench.two_sided, "bench", bench.name, two_rule)
        judge_rule = f"no program can grade bench={bench.name}; choose judge=openai, local or distilled"
        require(not _ungraded(config), "judge", config.judge.name, judge_rule)
    elif bench.two_sided:
        sides = [name for name, keys in ALGOS.items() if keys.wants == "two sides"]
        tools_rule = (
            f"has no tools for algo={algo.name}; choose algo={', '.join(sides)} or sft, or evaluate it with "
            "agentrl eval"
        )
        require(algo.wants == "anything", "bench", bench.name, tools_rule)


def _training_rows(config: Config) -> None:
    """An evaluation suite has no training rows unless test_fraction leaves it some."""
    if config.algo.trains:
        config.bench.check_training_rows()


def check_classifier(config: Config) -> None:
    """Raise UserError for a judge that cannot be asked with the fixed prompt of a classifier."""
    classifier, judge = config.bench.classified_by(), config.judge
    if classifier is None:
        return
    kind_rule = (
        f"bench={config.bench.name} asks the fixed prompt of {classifier}, as only judge=local and judge=openai do"
    )
    require(judge.name in ("program", "local", "openai"), "judge", judge.name, kind_rule)
    for name in ("system_rubric", "user_rubric"):
        file = getattr(judge, name, None)
        require(
            file is None,
            f"judge.{name}",
            file,
            f"bench={config.bench.name} asks a fixed prompt and no rubric; set null",
        )


def ungraded_text(config: Config) -> str:
    """Return what a user is told whose bench needs a classifier, where no model is named."""
    return (
        f"judge=program: a model with the prompt of {config.bench.classified_by()} grades the replies of "
        f"bench={config.bench.name}; choose judge=local judge.path=... or judge=openai (docs/side.md says which model)"
    )


def _direct(config: Config) -> None:
    if isinstance(config.bench, ToolHop) and config.bench.scenario == "direct":
        tools = "without tools there are no expert traces; set bench.scenario=mandatory or free"
        traceless = config.algo.rollouts and "traces" not in config.algo.reads
        require(traceless, "bench.scenario", "direct", f"algo={config.algo.name}: {tools}")
        answer_rule = "without tools there is no call to match; set reward=answer, or bench.scenario=mandatory or free"
        require(config.reward.name == "answer", "bench.scenario", "direct", answer_rule)


def _template(config: Config) -> None:
    if isinstance(config.algo, Evaluate) and config.algo.endpoint.base_url is not None:
        template = config.model.chat_template
        server_rule = "the server renders conversations with its own; give the template to the server, and set null"
        require(template is None, "model.chat_template", template, server_rule)


def _packed(config: Config) -> None:
    """Refuse packed updates where the keys rule them out. `scoring.choose.check_engine` looks at the model itself."""
    engine = config.trainer.engine
    if engine in ("packed", "compiled") and config.algo.trains:
        method_rule = (
            f"algo={config.algo.name} reads attention weights, which only padded rows have; set auto or padded"
        )
        require(config.algo.packs, "trainer.engine", engine, method_rule)
        kernel = config.model.attn_implementation
        kernel_rule = f"needs model.attn_implementation=sdpa, not {kernel}; change that, or set auto or padded"
        require(kernel == "sdpa", "trainer.engine", engine, kernel_rule)
        device_rule = (
            "needs CUDA: trees are computed in uncompiled blocks on a CPU; set packed or auto, or hardware=gpu"
        )
        require(engine == "packed" or config.hardware.device == "cuda", "trainer.engine", engine, device_rule)


def _prices(config: Config) -> None:
    judge = config.judge
    if isinstance(judge, OpenAIJudge) and judge.max_cost is not None:
        priced = judge.price_prompt > 0 or judge.price_completion > 0
        free = "needs prices, or the cost is always 0; set judge.price_prompt and judge.price_completion"
        require(priced, "judge.max_cost", judge.max_cost, free)


def _idle_drivers(config: Config) -> list[str]:
    """Warn about each driver of PACT's schedules that is set and moves nothing."""
    algo, constant = config.algo, config.anneal.kind == "constant"
    if not isinstance(algo, Pact):
        return []
    schedule, untaught = algo.schedule, "algo.sft_coef=0" if algo.sft_coef == 0 else "algo.q=1" if algo.q == 1 else ""
    level = schedule.reasoning in ("fixed", "none") and f"algo.schedule.reasoning={schedule.reasoning}"
    cut = constant and schedule.reasoning != "segment" and "anneal=constant"
    whole = schedule.reasoning == "full_token" and "algo.schedule.reasoning=full_token"
    call = schedule.call in ("fixed", "none") and f"algo.schedule.call={schedule.call}"
    stopped = {
        "q_from": algo.q_from != "key" and algo.q == 1 and "algo.q=1",
        "schedule.level_from": schedule.level_from != "updates" and (untaught or level or cut),
        "schedule.call_from": schedule.call_from != "updates"
        and (untaught or whole or call or (constant and "anneal=constant")),
    }
    return [f"algo.{name} changes nothing beside {why}; leave one of them out" for name, why in stopped.items() if why]


def _reads_traces(config: Config) -> bool:
    algo = config.algo
    return "traces" in algo.reads or config.trainer.tasks == "with_trace" or (algo.trains and not algo.rollouts)


def _warnings(config: Config) -> list[str]:
    warnings = _idle_drivers(config)
    path, name = config.model.path, config.model.name
    if config.scaled_by and name in ("tiny", "tiny_hif") and not path.startswith("builtin:"):
        warnings.append(
            f"model.path={path}: model={name} stays chosen, so the run has the learning rate and the token budgets of "
            f"that small network; model={path} takes those of any other model"
        )
    if config.traces is not None and not _reads_traces(config):
        warnings.append(f"traces={config.traces}: algo={config.algo.name} does not read it")
    asked = config.bench.two_sided or config.bench.classified_by() is not None
    if config.judge.name != "program" and not asked:
        warnings.append(f"judge={config.judge.name}: bench={config.bench.name} asks no judge")
    if _ungraded(config):
        warnings.append(
            f"judge=program: no program can grade bench={config.bench.name}, so its replies are played but get neither "
            "r_sys nor r_user; judge=openai, local or distilled grades them"
        )
    if config.judge.name == "program" and config.bench.classified_by() is not None:
        warnings.append(
            f"{ungraded_text(config)}. Until then replies are played and not graded; agentrl score can grade them later"
        )
    if config.algo.imitates() and config.rollout.temperature != 1:
        warnings.append(
            f"rollout.temperature={config.rollout.temperature:g}: TRL divides all logits by it, also those of the "
            "expert's tokens; the paper uses 1"
        )
    if isinstance(config.algo, Hipo) and config.bench.grades != "all" and config.judge.name == "program":
        warnings.append(
            "judge=program: a program cannot tell whether the user was served; if the suite leaves r_user open, it is "
            "the share of the request's words in the reply; judge=openai, local or distilled read the reply, and "
            "judge=embedding compares what the two are about"
        )
    return warnings
