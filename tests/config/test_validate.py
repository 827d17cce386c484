"""Values and combinations that cannot work are refused in one line that names the key; unwise ones warn."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentrl.config.compose import compose
from agentrl.config.rules import machine, validate
from agentrl.core.errors import UserError
from tests.support.helpers import composed

ROOT = Path(__file__).resolve().parents[2]


def refusal(*overrides: str) -> str:
    with pytest.raises(UserError) as error:
        validate(composed(*overrides))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("+trainer.learning_rat=1", "did you mean learning_rate"),
        ("+algo.beta=1", "algo.beta is not a key of the chosen algo; it is a key of algo=dpo"),
        ("+algo.betta=1", "unknown key algo.betta"),
        ("+extra=1", "unknown key extra"),
        ("seed=abc", "seed='abc' must be of type int"),
        ("trainer.max_steps=1.5", "must be of type int"),
        ("trainer.learning_rate=fast", "must be of type float"),
        ("dry_run=perhaps", "must be of type bool"),
        ("tracker.tags=one", "must be of type list of str"),
        ("bench.train_hops=[a,b,c,d]", "must be of type list of float"),
        ("seed=null", "seed=null must be of type int"),
        ("algo.q=true", "algo.q=true must be of type float"),
        ("algo.name=ppo", "algo.name='ppo' is not a known algo"),
        ("algo.name=null", "algo.name=null is not a known algo"),
        ("trainer=3", "is not a group of keys"),
        ("model=custom", "model.path has no value"),
        ("bench=ftrl", "bench.path has no value"),
        ("name=${nope}", "name: Interpolation key 'nope' not found"),
    ],
)
def test_unknown_keys_and_wrong_types(override: str, words: str) -> None:
    assert words in refusal(override)


IMPOSSIBLE = [
    ("algo=hipo algo.tau=1.2", "algo.tau=1.2: must lie in [0, 1], as rewards do (the paper: 0.7)"),
    ("algo=hipo algo.tau=-0.1", "algo.tau"),
    ("algo=hipo algo.user_weight=-1", "algo.user_weight"),
    ("algo=user_only algo.user_weight=0", "leaves nothing to learn from"),
    ("algo=hipo traces=README.md", "traces=README.md: algo=hipo reads no traces; set null"),
    ("algo=user_only dual.initial=1", "dual.initial=1.0: algo=user_only learns from r_user alone; set 0, or choose"),
    (
        "algo=user_only dual.initial=0 algo.constraints.0.initial=2",
        "algo.constraints.0.initial=2.0: algo=user_only learns from r_user alone",
    ),
    ("algo=sys_only algo.user_weight=1", "algo.user_weight=1.0: algo=sys_only learns from the constraints alone; set"),
    ("algo=fixed_lambda dual=sgd", "dual.kind=sgd: algo=fixed_lambda keeps its multipliers; set fixed, or choose"),
    ("algo=sys_only dual.kind=pid", "dual.kind=pid: algo=sys_only keeps its multipliers"),
    ("algo=hipo algo.importance_level=turn", "algo.importance_level"),
    ("algo=hipo algo.reference=4bit", "NF4 needs CUDA; set algo.reference=copy"),
    ("algo=hipo algo.max_repetition=2", "algo.max_repetition"),
    ("algo=hipo dual.initial=30", "dual.initial=30.0: must lie in [0, dual.cap=20]"),
    ("algo=hipo bench=minihop", "bench=minihop: has one reward"),
    ("algo=grpo bench=minihif", "has no tools for algo=grpo"),
    ("algo=hipo bench=systemcheck", "judge=program: no program can grade bench=systemcheck"),
    ("dual.kind=newton", "dual.kind=newton is not a choice"),
    ("dual.cap=0", "dual.cap"),
    ("dual.ema_decay=1", "dual.ema_decay"),
    ("dual.patience=0", "dual.patience"),
    ("dual=log dual.initial=0", "0 would stay 0"),
    ("dual.on_infeasible=halt", "dual.on_infeasible"),
    ("trainer.keep_best=''", "trainer.keep_best='': must not be empty, or null"),
    ("algo.q=1.5", "algo.q=1.5"),
    ("algo.q=-0.1", "algo.q"),
    ("algo.q=nan", "algo.q=nan"),
    ("algo.sft_coef=-1", "algo.sft_coef"),
    ("algo.rl_coef=0 algo.sft_coef=0", "leaves no loss to train with"),
    ("algo.rl_coef=0 algo.q=1", "leaves no loss to train with"),
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
    ("reward.name=solve", "reward.name"),
    ("reward.matching=optimal", "reward.matching"),
    ("reward.unmatched_penalty=-1", "reward.unmatched_penalty"),
    ("reward=ot reward.ot_reg=0", "reward.ot_reg=0: must be above 0"),
    ("reward=ftrl reward.ftrl_variant=f2", "reward.ftrl_variant=f2 is not a choice; did you mean f1?"),
    ("reward=toolrl reward.toolrl.schedule=fast", "reward.toolrl.schedule"),
    ("algo=grpo reward=ftrl bench=bfcl", "reward=ftrl: bench=bfcl has no sub-answers"),
    ("trainer.minibatch_prompts=3", "must divide trainer.prompts_per_batch=16; the nearest is 2"),
    ("algo=focal_lora trainer.engine=packed", "trainer.engine=packed: algo=focal_lora reads attention weights"),
    ("trainer.engine=compiled", "trainer.engine=compiled: needs CUDA"),
    ("trainer.engine=packed model.attn_implementation=eager", "needs model.attn_implementation=sdpa, not eager"),
    ("algo=sft hardware.processes=2 trainer.prompts_per_batch=6 trainer.minibatch_prompts=3", "a multiple of 2"),
    (
        "algo=pact hardware.processes=2 trainer.minibatch_prompts=1",
        "algo=pact adds a term for each prompt to the update that holds the prompt's rollouts",
    ),
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
    ("bench.train_tasks=0", "bench.train_tasks"),
    ("bench.train_hops=[0.5,0.5,0.5,0.5]", "sum to 1"),
    ("bench.test_hops=[1]", "sum to 1"),
    ("bench=toolhop bench.path=/", "bench.path=/: is a directory; give the file in it"),
    ("traces=/", "traces=/: is a directory; give a file"),
    ("bench=toolhop bench.path=/nowhere/ToolHop.json", "bench.path=/nowhere/ToolHop.json: no such file"),
    ("bench=toolhop bench.test_fraction=1", "bench.test_fraction"),
    ("bench=toolhop bench.rule=exact", "bench.rule"),
    ("bench=toolhop bench.scenario=direct", "no expert traces"),
    ("bench=toolhop bench.scenario=direct algo=sft", "no expert traces"),
    ("bench=toolhop bench.scenario=direct algo=grpo", "set reward=answer"),
    ("bench=ftrl bench.path=/nowhere", "bench.path=/nowhere: no such file or directory"),
    (f"bench=ftrl bench.path={ROOT} bench.test_fraction=0", "bench.test_fraction=0"),
    (f"bench=ftrl bench.path={ROOT} bench.answer_tag=test", "bench.answer_tag=test is not a choice"),
    ("model.path=./nowhere", "model.path=./nowhere: is not a checkpoint"),
    ("model.dtype=int8", "model.dtype"),
    ("model.dtype=float16", "set model.dtype=float32"),
    ("model.attn_implementation=flash_attention_2", "set model.attn_implementation=sdpa"),
    ("model.family=gpt2", "model.family"),
    ("model.lora.r=0", "model.lora.r"),
    ("model.lora.dropout=1", "model.lora.dropout"),
    ("model/lora=on model.lora.target_modules=[]", "model.lora.target_modules"),
    ("vllm.mode=colocate", "vllm.mode=colocate: needs a GPU; start a server (vllm.mode=server)"),
    ("vllm.mode=server vllm.url=localhost:8000", "vllm.url=localhost:8000: must be the address"),
    ("vllm.mode=server vllm.url=http://a:1/v1", "vllm.url=http://a:1/v1: must be the address of a vLLM server without"),
    ("hardware=gpu vllm.mode=colocate vllm.tensor_parallel=2", "vllm.tensor_parallel=2: must divide"),
    ("vllm.mode=server vllm.tensor_parallel=3 model=qwen3-1.7b", "divisor of the model's 16 attention heads"),
    ("trainer.compile=true", "did you mean trainer.engine=compiled?"),
    ("vllm.mode=server vllm.sleep=true", "vllm.sleep=true: frees the memory of a GPU"),
    ("rollout.ahead=1", "rollout.ahead=1: this process cannot sample while it trains; start a vLLM server"),
    ("hardware=gpu vllm.mode=colocate rollout.ahead=1", "rollout.ahead=1: this process cannot sample while it trains"),
    ("hardware=gpu vllm.mode=server rollout.ahead=1 vllm.sleep=true", "vllm.sleep=true: with rollout.ahead=1 the"),
    ("rollout.ahead=2", "rollout.ahead=2: must lie in [0, 1]"),
    ("vllm.mode=server vllm.context=100", "vllm.context=100: leaves no room behind a prompt"),
    ("vllm.mode=server model/lora=on model.lora.r=1000", "model.lora.r=1000: vLLM takes adapters of rank 512"),
    ("vllm.mode=server vllm.kv_cache=int4", "vllm.kv_cache=int4 is not a choice"),
    ("vllm.memory=0", "vllm.memory=0"),
    ("vllm=server", "vllm='server' is not a group of keys; set the keys below it, e.g. vllm.mode=..."),
    ("hardware.device=tpu", "hardware.device"),
    ("hardware.processes=0", "hardware.processes"),
    ("hardware.processes=3", "multiple of hardware.processes=3"),
    ("hardware.threads=0", "hardware.threads"),
    ("hardware.accelerate_config=/nowhere.yaml", "hardware.accelerate_config=/nowhere.yaml: no such file"),
    ("tracker.name=mlflow", "tracker.name"),
    ("name=a/b", "name=a/b: must be a plain directory name"),
    ("run_id=..", "run_id=..: must be a plain directory name"),
    ("runs_dir=''", "runs_dir"),
    ("seed=-1", "seed=-1"),
    ("judge=openai", "judge.model has no value"),
    ("judge=openai judge.model=m judge.api_key_env=sk-0123", "never the key itself"),
    ("judge=openai judge.model=m judge.base_url=ftp://host", "must be http(s)://"),
    ("judge=openai judge.model=m judge.max_cost=1", "needs prices, or the cost is always 0"),
    ("judge=openai judge.model=m judge.user_rubric=/nowhere.md", "judge.user_rubric=/nowhere.md: no such file"),
    ("judge=embedding judge.path=/nowhere", "holds no sentence encoder; run make minilm"),
    (
        "algo=hipo bench=systemcheck judge=embedding",
        "no program grades r_sys of bench=systemcheck; choose",
    ),
    ("judge=distilled judge.path=/nowhere", "make one with agentrl judge distill"),
    ("algo=dpo algo.beta=0", "algo.beta"),
    ("algo=dpo rollout.num_generations=1", "a pair needs two replies"),
    ("algo=dpo algo.pairs=/nowhere.jsonl", "algo.pairs"),
    ("algo=split_softmax algo.k=0", "algo.k"),
    ("algo=focal_lora algo.head_share=1.5", "algo.head_share"),
    ("algo=chord algo.mu.peak=1.1", "algo.mu.peak=1.1: must lie in [0, 1]"),
    ("algo=chord algo.mu.peak=0.01", "algo.mu.valley=0.05: must be at most algo.mu.peak=0.01"),
    ("algo=chord algo.mu.decay_steps=-1", "algo.mu.decay_steps"),
    ("algo=chord algo.token_weight=psi", "did you mean phi?"),
    ("algo=luffy algo.shaping=0", "algo.shaping=0: must be above 0 (the paper: 0.1)"),
    ("algo=srft algo.shaping=0", "algo.shaping=0: must be above 0"),
    ("algo=srft algo.sft_coef=-1", "algo.sft_coef"),
    ("algo=hint_grpo algo.hint_start=1.5", "algo.hint_start=1.5: must lie in [0, 1]"),
    ("algo=hint_grpo algo.hint_end=0.8 algo.hint_start=0.5", "algo.hint_end=0.8: must be at most algo.hint_start=0.5"),
    ("algo=luffy rollout.num_generations=1", "rollout.num_generations=1"),
    ("algo=luffy algo.clip_eps=0.2", "algo.clip_eps"),
    ("algo=chord bench=minihif", "has no tools for algo=chord"),
    ("algo=chord bench=toolhop bench.scenario=direct", "no expert traces"),
    ("algo=luffy bench=toolhop bench.scenario=direct", "no expert traces"),
]


@pytest.mark.parametrize(
    ("overrides", "words"), IMPOSSIBLE, ids=[case[0].replace(str(ROOT), ".") for case in IMPOSSIBLE]
)
def test_impossible_combinations(overrides: str, words: str) -> None:
    assert words in refusal(*overrides.split())


ACCELERATE = [  # what the file says, what is chosen, what the refusal says; None where it goes through
    (
        "distributed_type: DEEPSPEED",
        "hardware=cpu",
        "=DEEPSPEED needs GPUs; set hardware=gpu or multi_gpu",
    ),
    ("distributed_type: FSDP", "hardware=cpu", "distributed_type=FSDP needs GPUs"),
    ("distributed_type: MULTI_GPU", "hardware=cpu", "distributed_type=MULTI_GPU needs GPUs"),
    ("distributed_type: MEGATRON_LM", "hardware=cpu", "set hardware=gpu or multi_gpu"),
    ("distributed_type: deepspeed", "hardware=cpu", "distributed_type=DEEPSPEED needs GPUs"),
    ("distributed_type: MEGATRON_LM", "hardware=gpu", "distributed_type=MEGATRON_LM, but agentrl trains with"),
    ("distributed_type: 'NO'", "hardware=multi_gpu", "starts one process, not hardware.processes=4; set ddp"),
    ("use_cpu: true", "hardware=gpu", "puts the processes on the CPU, but hardware=gpu"),
    ("distributed_type: MULTI_CPU", "hardware=gpu", "puts the processes on the CPU"),
    ("num_machines: 2", "hardware=gpu", "has num_machines=2; set hardware.nodes=2"),
    ("num_processes: 8", "hardware=gpu", "has num_processes=8; set hardware.processes=8"),
    ("- a list", "hardware=gpu", "has no keys"),
    ("a: [", "hardware=gpu", "cannot be read as YAML"),
    ("", "hardware=gpu", "has no keys"),
    ("distributed_type: DEEPSPEED\nnum_processes: 1\nnum_machines: 1", "hardware=gpu", None),
    ("distributed_type: FSDP", "hardware=gpu", None),
    ("distributed_type: MULTI_CPU\nuse_cpu: true", "hardware=cpu", None),
    ("distributed_type: 'NO'", "hardware=cpu", None),
]


@pytest.mark.parametrize(("content", "hardware", "words"), ACCELERATE)
def test_what_an_accelerate_file_asks_for_is_never_dropped(
    content: str, hardware: str, words: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    overrides = (hardware, f"hardware.accelerate_config={file}")
    if words is None:
        validate(composed(*overrides))
    else:
        assert words in refusal(*overrides) and f"hardware.accelerate_config={file}: " in refusal(*overrides)


def test_ready_ways_to_share_a_model_are_known_by_name() -> None:
    for way, kind in (("fsdp2", "FSDP"), ("zero2", "DEEPSPEED"), ("zero3", "DEEPSPEED")):
        validate(composed("hardware=multi_gpu", f"hardware.accelerate_config={way}"))
        dropped = refusal("hardware=cpu", f"hardware.accelerate_config={way}")
        assert f"hardware.accelerate_config={way}: distributed_type={kind} needs GPUs" in dropped
    for hardware in ("cpu", "gpu", "multi_gpu"):
        validate(composed(f"hardware={hardware}", "hardware.accelerate_config=ddp"))
    assert "choose from ddp, fsdp2, zero2, zero3" in refusal("hardware=gpu", "hardware.accelerate_config=fsdp3")


def test_each_of_several_machines_knows_its_number_and_where_they_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    two = ("hardware=multi_gpu", "hardware.nodes=2")
    assert "hardware.nodes=3: must divide hardware.processes=4" in refusal("hardware=multi_gpu", "hardware.nodes=3")
    assert "hardware.node_rank=null: give each of the hardware.nodes=2 machines its number" in refusal(*two)
    assert "hardware.node_rank=2: " in refusal(*two, "hardware.node_rank=2")
    assert "hardware.rendezvous=null: give all hardware.nodes=2" in refusal(*two, "hardware.node_rank=1")
    for place in ("machine0", "machine0:", ":29500", "http://machine0:29500", "machine0:70000"):
        assert "must be host:port" in refusal(*two, f"hardware.rendezvous='{place}'")
    validate(composed(*two, "hardware.node_rank=1", "hardware.rendezvous=machine0:29500"))
    monkeypatch.setenv("SLURM_NODEID", "1")
    under_slurm = composed(*two, "hardware.rendezvous=machine0:29500")
    validate(under_slurm)
    assert (under_slurm.hardware.rank_here, under_slurm.hardware.processes_here) == (1, 2)
    monkeypatch.delenv("SLURM_NODEID")
    forgotten = "hardware.node_rank=1: hardware.nodes=1 machine has the number 0 alone; set hardware.nodes"
    assert forgotten in refusal("hardware.node_rank=1")
    validate(composed("hardware.node_rank=0"))
    submitted = composed("hardware=slurm", "hardware.nodes=2")
    validate(submitted)  # the job says the rest
    assert submitted.hardware.submits and submitted.hardware.rank_here == 0


@pytest.mark.parametrize("limit", ["5:00", "0:05:00", "0-0:05", "0-0:05:00"])
def test_a_job_saves_after_it_has_begun(limit: str) -> None:
    job = ("hardware=slurm", f"hardware.slurm.time='{limit}'")
    words = f"hardware.slurm.grace=300: the job would be told to save when it begins; keep it below the limit {limit}"
    assert words in refusal(*job)
    validate(composed(*job, "hardware.slurm.grace=299"))
    validate(composed("hardware=slurm", "hardware.slurm.time=1-0", "hardware.slurm.grace=86399"))
    validate(composed("hardware=slurm", "hardware.slurm.time='0:00'"))  # SLURM's word for no limit


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("model.path=builtin:nosuch", "model.path=builtin:nosuch: no such packaged model; choose from builtin:tiny,"),
        ("judge=local judge.path=builtin:nosuch", "judge.path=builtin:nosuch: no such packaged model"),
        ("judge=local judge.path=docs", "judge.path=docs: is not a checkpoint (no config.json)"),
        ("judge=local judge.path=./gone", "judge.path=./gone: is not a checkpoint (no config.json)"),
        ("judge=local judge.path=README.md", "judge.path=README.md: is a file; give the directory"),
    ],
)
def test_weights_are_checked_wherever_a_key_names_them(keys: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    group = "algo=hipo" if "judge" in keys else "algo=pact"
    assert words in refusal(group, *keys.split())


def test_top_p_goes_with_vllm() -> None:
    for choice in ("hardware=gpu vllm.mode=colocate", "vllm.mode=server", "hardware=multi_gpu vllm.mode=server"):
        validate(composed("algo=pact", *choice.split(), "rollout.top_p=0.9"))


def test_a_key_of_another_option_is_answered_with_the_option() -> None:
    said = refusal("experiment=pact_rule", "bench=minihop_hard")  # the experiment sets bench.forbid
    assert said == "bench.forbid is not a key of the chosen bench; it is a key of bench=minihop"
    with pytest.raises(UserError) as typed:
        compose(["bench.trace_quality=noisy"])
    assert str(typed.value) == "bench.trace_quality is not a key of the chosen bench; it is a key of bench=minihop_hard"


def test_constraints_are_a_list_of_checked_groups() -> None:
    several = "algo.constraints=[{name: a, reward: sys, kind: conflict, threshold: 0.5, initial: 1}]"
    assert composed("algo=hipo", several).algo.constraints[0].kind == "conflict"
    assert "unknown key algo.constraints.0.tau" in refusal("algo=hipo", "algo.constraints=[{name: a, tau: 1}]")
    assert "threshold has no value" in refusal("algo=hipo", "algo.constraints=[{name: a, reward: sys, kind: null}]")
    form = "write it as {name: ..., reward: ..., kind: ..., threshold: ..., initial: ...}"
    assert f"algo.constraints.0='sys' is not a group of keys; {form}" == refusal("algo=hipo", "algo.constraints=[sys]")
    listed = f"algo.constraints='sys' is not a list; {form.replace('{', '[{').replace('}', '}]')}"
    assert listed == refusal("algo=hipo", "algo.constraints=sys")
    with pytest.raises(
        UserError, match=r"^algo\.constraints holds a list; write it as 'algo\.constraints=\[\.\.\.\]'$"
    ):
        compose(["algo=hipo", "algo.constraints={name: a}"])
    with pytest.raises(
        UserError, match=r"^model\.lora is a group of keys; set the keys below it, e\.g\. model\.lora\."
    ):
        compose(["model.lora=[1]"])
    for nameless in ("algo=hipo reward=sys,kind=null,threshold=0.5", "algo=pact measure=calls,side=at_most,bound=3"):
        algo, _, keys = nameless.partition(" ")
        values = ", ".join(key.replace("=", ": ") for key in keys.split(","))
        unnamed = f"algo.constraints=[{{name: '', {values}, initial: 1}}]"
        assert "algo.constraints.0.name='': must not be empty" in refusal(algo, unnamed)
    twice = "algo.constraints=[{name: a, reward: sys, kind: null, threshold: 0.5, initial: 1},"
    twice += "{name: a, reward: user, kind: null, threshold: 0.5, initial: 1}]"
    assert "share a name" in refusal("algo=hipo", twice)


def test_every_method_starts_from_an_adapter(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    start = ("model=custom", f"model.path={tmp_path}", "model.family=tiny")
    for algo in (("algo=grpo",), ("algo=pact",), ("algo=dpo", "bench=minihif"), ("algo=hipo", "bench=minihif")):
        validate(composed(*algo, *start))
        validate(composed(*algo, *start, "model/lora=on"))


def test_direct_scenario_is_possible_without_traces() -> None:
    assert validate(composed("bench=toolhop", "bench.scenario=direct", "algo=grpo", "reward=answer")) == []


@pytest.mark.parametrize(
    ("keys", "named", "why"),
    [
        ("algo.q_from=loss algo.q=1", ["q_from"], "algo.q=1"),
        ("algo.q_from=loss algo.sft_coef=0", [], ""),  # q still chooses between L^x and L^h
        ("algo.schedule.level_from=success algo.sft_coef=0", ["schedule.level_from"], "algo.sft_coef=0"),
        ("algo.schedule.level_from=loss algo.schedule.reasoning=none", ["schedule.level_from"], "reasoning=none"),
        ("algo.schedule.level_from=loss anneal=constant", [], ""),  # the levels need no shape
        ("algo.schedule.call_from=loss anneal=constant", ["schedule.call_from"], "anneal=constant"),
        ("algo.schedule.call_from=loss algo.schedule.call=fixed", ["schedule.call_from"], "schedule.call=fixed"),
        ("algo.schedule.call_from=loss algo.schedule.reasoning=full_token", ["schedule.call_from"], "full_token"),
        ("experiment=pact_by_loss", [], ""),
        ("algo.q=1 anneal=constant", [], ""),
    ],
)
def test_a_driver_that_moves_nothing_warns(keys: str, named: list[str], why: str) -> None:
    warnings = validate(composed(*keys.split()))
    assert [one.partition(" ")[0] for one in warnings] == [f"algo.{name}" for name in named]
    assert all(why in one and "changes nothing" in one for one in warnings)


@pytest.mark.parametrize(
    ("text", "slow"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 fsrm\n", False),
        ("flags\t\t: fpu amx_bf16\n", False),
        ("Features\t: fp asimd bf16\n", False),
        ("model name\t: bf16\nflags\t\t: fpu avx512f avx512_bf16x\n", True),
        (None, True),
    ],
)
def test_bfloat16_on_a_cpu_warns_where_it_is_slow(
    text: str | None, slow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    warnings = validate(composed("hardware.bf16=true"))
    assert [one.split()[0] for one in warnings] == (["hardware.bf16=true"] if slow else [])


def test_unwise_values_warn() -> None:
    assert "lost to rounding" in validate(composed("model=qwen3-1.7b", "model.dtype=bfloat16"))[0]
    assert validate(composed("model=qwen3-1.7b", "model.dtype=bfloat16", "model/lora=on")) == []
    evaluated = composed("algo=eval", "bench=minihop", "model=qwen3-1.7b", "model.dtype=bfloat16")
    assert validate(evaluated) == []  # nothing is updated


def test_a_checkpoint_beside_the_tiny_models_settings_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (said,) = (text for text in validate(compose([f"model.path={tmp_path}"])) if "model.path" in text)
    assert said.endswith(f"of that small network; model={tmp_path} takes those of any other model")
    assert not any("model.path" in text for text in validate(compose(["model=tiny"])))


def test_vllm_gets_no_adapter_as_its_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/Qwen3-4B"}')
    with pytest.raises(UserError, match="this is an adapter; merge it"):
        validate(compose([f"model={tmp_path}", "vllm.mode=server"]))
    folder = tmp_path / "run" / "model"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/Qwen3-4B"}')
    (folder.parent / "status.json").write_text("{}")
    config = composed("vllm.mode=server", f"model.path={folder}")
    with pytest.raises(UserError, match=f"this is an adapter; run agentrl merge {folder.parent}, and name"):
        validate(config)


def test_vllm_gets_the_text_part_of_a_model_alone(tmp_path: Path) -> None:
    assert "save a copy of the text model" in refusal("model=qwen3.5-4b", "vllm.mode=server")
    validate(composed("model=qwen3.5-4b"))
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_5_text"}')
    validate(composed("model=qwen3.5-4b", f"model.path={tmp_path}", "vllm.mode=server"))
