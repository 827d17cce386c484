"""`agentrl eval model=... bench=a,b [samples=K] [key=value ...]`: evaluate models as they are, on any benches.

Every pair of model and bench has its own run directory (algo=eval). The same command continues where it stopped.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from agentrl.commands.arguments import file_to_write, key_lines, split_keys
from agentrl.config.algos.evaluate import Evaluate
from agentrl.config.benches import BENCHES
from agentrl.config.compose import compose
from agentrl.config.inherit import bench_of, sampling_of, tasks_of
from agentrl.config.rules.split import DIVISION
from agentrl.config.schema import Config
from agentrl.config.typed import restore_typed_names, split_names
from agentrl.core.errors import UserError
from agentrl.runner.launch import INTERRUPTED, USER_ERROR
from agentrl.runner.start import check, start
from agentrl.store.identity import run_path
from agentrl.store.redact import mask_secrets

KEYS = {
    "model": "Presets, run directories, checkpoints, adapters or hub ids, separated by commas; default: tiny.",
    "bench": "Benches, separated by commas; default: that of the runs among the models, else minihop.",
    "suite": "pact or hipo, instead of bench: the benches of that paper, and its table with our numbers beside it.",
    "samples": "Episodes per item (eval.samples); more than 1 adds pass@k and pass^k.",
    "temperature": "0 decodes greedily, above 0 samples (eval.temperature); default: that of the bench.",
    "top_p": "Nucleus sampling mass if temperature is above 0 (eval.top_p); default: that of the bench.",
    "endpoint": "Address of an OpenAI-compatible server; model= is then the model's name there.",
    "out": "File for the tables: .md (Markdown), .tex (LaTeX), or .csv (only the numbers).",
}
HELP = f"""agentrl eval model=NAME[,NAME] bench=NAME[,NAME] [key=value ...]

Evaluates every model on every bench, and prints a table for each bench with 95% intervals.

{key_lines(KEYS)}

All other keys are those of a run (agentrl --help). With several benches, a key of one bench begins with its name:
toolhop.path=ToolHop.json ftrl.path=test.jsonl. Benches of any kind can be mixed. Examples:
  agentrl eval model=qwen3-1.7b bench=toolhop,ftrl toolhop.path=ToolHop.json ftrl.path=test.jsonl hardware=gpu
  agentrl eval model=runs/minihop-tiny-pact/s0-1a2b3c4d,tiny bench=minihop samples=4 temperature=1
  agentrl eval model=tiny,tiny_hif bench=minihop,minihif
  agentrl eval endpoint=http://localhost:8000/v1 model=my-model bench=minihop
  agentrl eval suite=pact model=qwen3-4b hardware=gpu ftrl.path=test.jsonl toolhop.path=ToolHop.json"""


def main(arguments: list[str]) -> int:
    """Evaluate every pair and print the results; return the worst exit code of the evaluations."""
    own, overrides = split_keys(arguments, KEYS)
    out = file_to_write(own["out"], kinds=(".md", ".tex", ".csv")) if "out" in own else None
    models = split_names(own.get("model", "tiny"))
    benches, suite = _benches(own, models)
    jobs = [compose_job(model, bench, own, overrides, benches, models) for model in models for bench in benches]
    if suite == "hipo" and jobs and jobs[0].judge.name == "program":
        raise UserError("suite=hipo: its table needs a judge's verdicts; choose judge=openai, local or distilled")
    names = [typed_names(own, overrides, config.bench.name) for config in jobs]
    good = [_is_good(config, typed) for config, typed in zip(jobs, names, strict=True)]
    if not all(good):
        return USER_ERROR  # nothing begins: the others would take their time, and the table would lack a row
    worst, refused = 0, set[Path]()
    for config, typed in zip(jobs, names, strict=True):
        try:
            code = start(config)
        except UserError as error:  # the other evaluations continue
            _complain(error, typed)
            code = USER_ERROR
            refused.add(run_path(config))  # it may hold results of other data or weights
        worst = max(worst, code)
        if code == INTERRUPTED:
            return code
    from agentrl.report.evaluations import evaluation_tables, plain_text  # draws, and so imports slow libraries

    tables = list(evaluation_tables(jobs, suite, models, refused))
    text = "\n\n".join(map(plain_text, tables))
    print(f"\n{text}")
    if out is not None and out.suffix in (".tex", ".csv"):
        from agentrl.report.arms import load_records
        from agentrl.report.files import write_tables

        write_tables(
            out, tables, load_records(path for path in map(run_path, jobs) if path.exists() and path not in refused)
        )
    elif out is not None:
        out.write_text(text + "\n", encoding="utf-8")
    return worst


def _is_good(config: Config, typed: dict[str, str]) -> bool:
    try:
        check(config)
    except UserError as error:
        _complain(error, typed)
        return False
    return True


def _complain(error: UserError, typed: dict[str, str]) -> None:
    message = mask_secrets(f"agentrl: error: {restore_typed_names(str(error), typed)}")
    Console(stderr=True, soft_wrap=True).print(message, markup=False, highlight=False)


def typed_names(own: dict[str, str], overrides: list[str], bench: str) -> dict[str, str]:
    """Return the keys of the configuration for which the user gave another word of this command."""
    names: dict[str, str] = {f"eval.{key}": key for key in ("samples", "temperature", "top_p") if key in own}
    names |= {"algo.endpoint.base_url": "endpoint"} if "endpoint" in own else {"model.path": "model"}
    if any(override.lstrip("+").startswith(f"{bench}.") for override in overrides):
        names["bench."] = f"{bench}."
    return names


def default_bench(own: dict[str, str], models: list[str]) -> str:
    """Return the bench that is played if the user names none. Raises UserError if the models' runs leave it open."""
    return "minihop" if "endpoint" in own else bench_of(models) or "minihop"


def _benches(own: dict[str, str], models: list[str]) -> tuple[list[str], str | None]:
    """Return the names of the benches, and the paper whose table is asked for."""
    suite = own.get("suite")
    if suite is None:
        chosen = own["bench"] if "bench" in own else default_bench(own, models)
        return [name for name in chosen.split(",") if name], None
    from agentrl.report.published import SUITES

    if suite not in SUITES:
        raise UserError(f"suite={suite} is not a choice; choose from {', '.join(SUITES)}")
    if "bench" in own:
        raise UserError("suite=... names the benches itself; leave out bench=...")
    return list(SUITES[suite]), suite


def compose_job(
    model: str, bench: str, own: dict[str, str], overrides: list[str], benches: list[str], models: list[str]
) -> Config:
    """Return the configuration of one evaluation. All `models` play the tasks on which runs among them were trained."""
    chosen = [f"bench={bench}"]
    if "endpoint" in own:
        chosen += ["model=custom", f"model.name={model.replace('/', '--').strip('-')}", f"model.path={model}"]
        chosen += [f"algo.endpoint.base_url={own['endpoint']}"]
    else:
        chosen += [f"model={model}", *sampling_of(model, bench)]
    if own.get("suite") == "pact":
        from agentrl.report.published import SUITE_KEYS

        chosen += SUITE_KEYS.get(bench, ())
    chosen += [f"eval.{key}={own[key]}" for key in ("samples", "temperature", "top_p") if key in own]
    given: list[str] = []
    for override in overrides:
        plus = "+" if override.startswith("+") else ""  # Hydra's mark of a key that does not exist yet
        head, _, rest = override.removeprefix("+").partition(".")
        if head in benches:
            if head == bench:
                given.append(f"{plus}bench.{rest}")
        elif head in BENCHES:
            raise UserError(f"{override}: {head} is not among the benches evaluated ({', '.join(benches)})")
        else:
            given.append(override)
    try:
        if "endpoint" not in own:
            only = None if own.get("suite") is None else [f"bench.{key}" for key in DIVISION]  # the rest is the paper's
            chosen += tasks_of(models, bench, ["algo=eval", *chosen], given, only)
        config = compose(["algo=eval", *chosen, *given])
    except UserError as error:
        raise UserError(restore_typed_names(str(error), typed_names(own, overrides, bench))) from error
    if not isinstance(config.algo, Evaluate):
        name = config.algo.name
        raise UserError(
            f"algo={name} trains, and agentrl eval does not: leave it out, or train with agentrl algo={name}"
        )
    return config
