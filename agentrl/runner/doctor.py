"""Check what can be wrong with a machine or a set-up before a run begins: one finding for each check, with its fix."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.specifiers import SpecifierSet

from agentrl.benches.bfcl.simulator import INSTALL, REQUIRED, VERSION, package_dir
from agentrl.config.benches import Bfcl
from agentrl.config.networks import known_network
from agentrl.config.rules import validate
from agentrl.config.schema import Config
from agentrl.core.errors import UserError
from agentrl.core.install import install_line, requirements
from agentrl.core.version import DISTRIBUTION
from agentrl.cost.estimate import describe_parts, format_gigabytes
from agentrl.cost.memory import GIB, estimate_memory
from agentrl.endpoint.connection import is_reachable
from agentrl.models.hub import hub_address, is_in_hub_cache
from agentrl.runner.ready import check_vllm_server
from agentrl.store.durable import sha256

Verdict = Literal["ok", "warn", "fail", "skip"]

# Private methods of TRL that our trainers override or call. They move between releases.
TRL_SEAMS: dict[str, tuple[str, ...]] = {
    "GRPOTrainer": (
        *("_calculate_rewards", "_generate_and_score_completions", "compute_loss"),
        *("_get_per_token_logps_and_entropies", "_get_train_sampler", "_prepare_inputs"),
    ),
    "SFTTrainer": ("compute_loss",),
    "DPOTrainer": ("_prepare_dataset", "compute_loss"),
}
# The published files that this program knows, by SHA-256.
KNOWN_DATA = {
    "0a51f71a44b7025645e452123af3caf2e348301922af91778e268db0188a7fab": "ToolHop, 995 rows",
    "4d59b91382fbd993653c95f97e7727b6889a19ff515a96c3c870f1885b949836": "FTRL test, 200 rows",
}
CHECKPOINT_COPIES = 3  # float32 weights and Adam's two moments


@dataclass(frozen=True)
class Finding:
    """The outcome of one check. `fix` says what to do; it is empty if nothing must be done."""

    check: str
    verdict: Verdict
    detail: str
    fix: str = ""


def diagnose(config: Config) -> Iterator[Finding]:
    """Run every check in turn. A check that breaks is reported as a failure, and the others run."""
    for check in CHECKS:
        name = check.__name__.replace("_", " ")
        try:
            yield from check(config)
        except UserError as error:
            yield Finding(name, "fail", str(error), "do what the message says")
        except Exception as error:  # the doctor must survive what it finds: it reports the fault and does not raise it
            yield Finding(name, "fail", f"{type(error).__name__}: {error}", "report this as a bug")


def python(config: Config) -> Iterator[Finding]:
    version = platform.python_version()
    wanted = SpecifierSet(importlib.metadata.metadata(DISTRIBUTION)["Requires-Python"])
    if wanted.contains(version, prereleases=True):
        yield Finding("python", "ok", version)
    else:
        yield Finding("python", "fail", version, f"install Python {wanted}")


def packages(config: Config) -> Iterator[Finding]:
    """Compare installed versions with the ranges that this package declares."""
    broken = False
    for requirement in requirements():
        fix = f"pip install '{requirement}'"
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            broken = True
            yield Finding("packages", "fail", f"{requirement.name} is not installed", fix)
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            broken = True
            detail = f"{requirement.name} {version} does not satisfy {requirement.specifier}"
            yield Finding("packages", "fail", detail, fix)
    if not broken:
        yield Finding("packages", "ok", "all within their ranges")


def torch(config: Config) -> Iterator[Finding]:
    module = importlib.import_module("torch")
    if config.hardware.device != "cuda":
        yield Finding("torch", "ok", f"{module.__version__}, on the CPU as hardware.device asks")
    elif module.cuda.is_available():
        names = {module.cuda.get_device_name(index) for index in range(module.cuda.device_count())}
        yield Finding("torch", "ok", f"{module.__version__}, {module.cuda.device_count()} x {', '.join(sorted(names))}")
    else:
        build = "this build of torch has no CUDA" if module.version.cuda is None else "no GPU is visible"
        yield Finding(
            "torch",
            "fail",
            f"{module.__version__}: {build}",
            "hardware=cpu, or install a CUDA build and check nvidia-smi",
        )


def trl_seams(config: Config) -> Iterator[Finding]:
    trl = importlib.import_module("trl")
    lost = [
        f"{owner}.{method}"
        for owner, methods in TRL_SEAMS.items()
        for method in methods
        if not hasattr(getattr(trl, owner), method)
    ]
    if lost:
        pinned = next(one for one in requirements() if one.name == "trl")
        yield Finding("TRL seams", "fail", f"trl {trl.__version__} lacks {', '.join(lost)}", f"pip install '{pinned}'")
    else:
        yield Finding("TRL seams", "ok", f"trl {trl.__version__} has every method that our trainers build on")


def vllm(config: Config) -> Iterator[Finding]:
    if config.vllm.mode == "off":
        yield Finding("vLLM", "skip", "vllm.mode=off")
        return
    if config.vllm.mode == "server":
        check_vllm_server(config)  # what it raises is a finding of its own
        yield Finding("vLLM", "ok", f"the server at vllm.url={config.vllm.url} is the one that this run wants")
        return
    (wanted,) = requirements("vllm")
    fix = f"{install_line('vllm')}, or vllm.mode=off"
    try:
        version = importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        yield Finding("vLLM", "fail", "vllm.mode=colocate, but vllm is not installed", fix)
        return
    fits = wanted.specifier.contains(version, prereleases=True)
    detail = f"{version}, TRL supports {wanted.specifier}"
    yield Finding("vLLM", "ok", detail) if fits else Finding("vLLM", "fail", detail, fix)


def sandbox(config: Config) -> Iterator[Finding]:
    from agentrl.sandbox import Sandbox

    with Sandbox() as box:
        missing = box.missing()
        worked = box.call("def add(a, b): return a + b", "add", {"a": 1, "b": 2}).json == "3"
    if not worked:
        yield Finding(
            "sandbox", "fail", "a tool call returned nothing", "report this as a bug, with the kernel's version"
        )
    elif missing:
        yield Finding(
            "sandbox",
            "fail" if config.sandbox == "strict" else "warn",
            f"the sandbox does not restrict: {', '.join(missing)}",
            "allow user namespaces, Landlock and seccomp to this process (containers often forbid them)",
        )
    else:
        yield Finding("sandbox", "ok", "files, network and processes are out of reach of tool code")


def configuration(config: Config) -> Iterator[Finding]:
    warnings = validate(config)
    for warning in warnings:
        yield Finding("configuration", "warn", warning)
    if not warnings:
        summary = f"algo={config.algo.name} model={config.model.name} bench={config.bench.name}"
        yield Finding("configuration", "ok", summary)


def chat_template(config: Config) -> Iterator[Finding]:
    """Load the tokenizer and check that its template renders tool calls and keeps turns, or a system message."""
    loading = importlib.import_module("agentrl.models.loading")
    local = config.model.path.startswith("builtin:") or Path(config.model.path).expanduser().exists()
    if (
        not local
        and not is_in_hub_cache(config.model.path, "model", config.model.revision)
        and not is_reachable(hub_address())
    ):
        yield Finding(
            "chat template",
            "warn",
            f"{config.model.path} is not on this disk and cannot be reached, so its template was not read",
            "model.path=<local checkpoint>, or run this where the hub can be reached",
        )
        return
    if not config.bench.tools:
        loading.load_chat(config.model, loading.Needs(tools=False, system=True))
        yield Finding("chat template", "ok", f"{config.model.path} renders system messages")
        return
    chat = loading.load_chat(config.model, loading.Needs(tools=True, system=False))
    rewritten = "" if chat.template is None else "; TRL's prefix-preserving variant of it is used"
    yield Finding("chat template", "ok", f"{config.model.path} renders tool calls and keeps earlier turns{rewritten}")


def data(config: Config) -> Iterator[Finding]:
    path = getattr(config.bench, "path", None)
    if path is None:
        hub = getattr(config.bench, "hub_id", None)
        if hub is None:
            yield Finding("data", "ok", config.bench.without_path or f"{config.bench.name} is generated")
        elif is_in_hub_cache(hub, "dataset") or is_reachable(hub_address()):
            yield Finding("data", "ok", f"{hub} from the hub")
        else:
            yield Finding("data", "fail", f"{hub}: the hub cannot be reached", "bench.path=<file on this disk>")
        return
    file = Path(path).expanduser()
    if not file.exists():
        yield Finding("data", "fail", f"bench.path={path} does not exist", "give the path of an existing file")
    elif file.is_file():
        digest = sha256(file)
        known = KNOWN_DATA.get(digest)
        yield Finding(
            "data", "ok", f"{path}: {known or 'not a published file that this program knows'} ({digest[:12]})"
        )
    else:
        yield Finding("data", "ok", f"{path}: {len(list(file.iterdir()))} files")


def bfcl(config: Config) -> Iterator[Finding]:
    lost = [name for name in REQUIRED if importlib.util.find_spec(name) is None]
    if not isinstance(config.bench, Bfcl):
        yield Finding("bfcl", "skip", "only bench=bfcl needs it" + (" (not installed)" if lost else ""))
    elif lost:
        yield Finding("bfcl", "fail", f"{', '.join(lost)} not installed", INSTALL)
    else:
        package_dir()
        yield Finding("bfcl", "ok", f"bfcl-eval {VERSION} and what it needs for multi-turn and memory")


def disk(config: Config) -> Iterator[Finding]:
    folder = Path(config.runs_dir).expanduser().absolute()
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        yield Finding("disk", "fail", f"{folder} is not writable", "choose a writable runs_dir=...")
        return
    free = shutil.disk_usage(folder).free / 2**30
    network = known_network(config)
    if network is None:
        yield Finding("disk", "ok", f"{free:.1f} GB free for runs_dir={config.runs_dir}; the model's size is not known")
        return
    lora = config.model.lora
    saved = network.adapter(lora.r, lora.target_modules) if lora.enabled else network.parameters
    # All kept checkpoints, the one being written, and the final weights.
    needed = 4 * saved * (CHECKPOINT_COPIES * (config.trainer.keep_checkpoints + 1) + 1) / 2**30
    detail = f"{free:.1f} GB free for runs_dir={config.runs_dir}, checkpoints need about {format_gigabytes(needed)} GB"
    if free < needed:
        yield Finding("disk", "fail", detail, "another runs_dir=..., trainer.keep_checkpoints=1, or model/lora=on")
    else:
        yield Finding("disk", "ok", detail)


def memory_of_machine(config: Config) -> Iterator[Finding]:
    network = known_network(config)
    if network is None:
        yield Finding("memory", "skip", "the model's size is not known before it is loaded")
        return
    if config.hardware.device == "cuda":
        module = importlib.import_module("torch")
        if not module.cuda.is_available():
            yield Finding("memory", "skip", "no GPU to measure; agentrl plan says which GPUs would do")
            return
        have, where = float(module.cuda.get_device_properties(0).total_memory), "of GPU memory"
    else:
        have, where = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")), "of memory"
    needed = estimate_memory(config, network, have)
    detail = f"{have / GIB:.1f} GiB {where}; {needed.peak} needs {describe_parts(needed.phases[needed.peak])}"
    if needed.most > have:
        smaller = "a smaller model, model/lora=on, a smaller rollout.cache_tokens or trainer.tokens_per_batch, or FSDP"
        yield Finding("memory", "fail", detail, f"{smaller} (hardware.accelerate_config); see agentrl plan")
    else:
        yield Finding("memory", "ok", detail)


def tracker(config: Config) -> Iterator[Finding]:
    name = config.tracker.name
    if name in ("trackio", "tensorboard") and importlib.util.find_spec(name) is None:
        yield Finding("tracker", "fail", f"{name} is not installed", f"{install_line(name)}, or tracker=none")
    elif name != "wandb":
        yield Finding("tracker", "ok", f"tracker={name} needs no network")
    elif not (os.environ.get("WANDB_API_KEY") or "api.wandb.ai" in _text(Path("~/.netrc").expanduser())):
        yield Finding("tracker", "fail", "no W&B key on this machine", "wandb login, or tracker=wandb_offline")
    elif not is_reachable("https://api.wandb.ai"):
        yield Finding(
            "tracker", "warn", "api.wandb.ai cannot be reached", "tracker=wandb_offline, and wandb sync later"
        )
    else:
        yield Finding("tracker", "ok", "W&B key present, api.wandb.ai reachable")


def _text(path: Path) -> str:
    return path.read_text(errors="replace", encoding="utf-8") if path.is_file() else ""


CHECKS: tuple[Callable[[Config], Iterator[Finding]], ...] = (
    *(python, packages, torch, trl_seams, vllm, sandbox),
    *(configuration, chat_template, data, bfcl, disk, memory_of_machine, tracker),
)
