"""Group runs into an experiment: runs that differ only in the seed are one arm, named by the keys that set it apart.

Intervals are over seeds (Student's t) if an arm has two or more seeds with different values, else over the items of a
run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from agentrl.config.load import update_old_values
from agentrl.core.errors import UserError, first_line
from agentrl.core.stats import ROUNDING, Interval, are_shares, paired_difference, seeds_interval, t_interval
from agentrl.evaluation.results import LINEARISED, item_values, played_items
from agentrl.report.lineage import lineage
from agentrl.store.identity import flatten, is_in_identity
from agentrl.store.run import RunDirectory, find_runs

# The metrics that a reader looks for first; the others follow in alphabetical order, as summaries hold them.
HEADLINES = ("solve_rate", "r_user", "r_sys", "answer_correct", "solve_f1", "valid", "correct")
# The keys that name a difference best; the first ones are tried first.
TELLING = ("algo.name", "model.name", "bench.name", "reward.name", "dual.kind", "anneal.kind", "hardware.name")


@dataclass(frozen=True)
class RunRecord:
    """One run as read from its directory. `settings` are the flat keys that determine its result, seed included."""

    path: Path
    settings: dict[str, Any]
    status: dict[str, Any]
    summary: dict[str, Any] | None  # None until the run is complete

    @property
    def directory(self) -> RunDirectory:
        return RunDirectory(self.path)

    @property
    def seed(self) -> int:
        return int(self.settings["seed"])

    @property
    def evaluation(self) -> dict[str, dict[str, dict[str, float]]]:
        """The `eval` entry of summary.json: phase -> metric -> interval; empty for an unfinished run."""
        return self.summary["eval"] if self.summary else {}

    @property
    def by(self) -> dict[str, dict[str, dict[str, dict[str, dict[str, float]]]]]:
        """The `by` entry, for each group of items: group -> value -> phase -> metric -> interval."""
        return self.summary.get("by", {}) if self.summary else {}


@dataclass
class Arm:
    """Runs that share all settings but the seed, ordered by their seeds: one of each seed."""

    values: tuple[Any, ...]  # values of the keys that tell the arms apart
    label: str
    runs: list[RunRecord] = field(default_factory=list)
    repeated: list[RunRecord] = field(default_factory=list)  # earlier runs of the same seeds, which do not count

    @property
    def completed(self) -> list[RunRecord]:
        return [run for run in self.runs if run.summary is not None]


def load_records(paths: Iterable[Path]) -> list[RunRecord]:
    """Load the runs at or below `paths`, or of sweeps recorded there, each once; dry runs are left out.

    Raises:
        UserError: a path does not exist, or there is no run.
    """
    found: dict[Path, RunRecord] = {}
    dry = 0
    paths = list(paths)
    for given in [run for path in paths for run in (_swept(path) or [path])]:
        if not given.exists():
            raise UserError(f"{given} does not exist; name run directories, or a directory that holds some")
        for path in map(Path.absolute, find_runs(given)):
            if path in found:
                continue
            directory = RunDirectory(path)
            if directory.status()["status"] == "dry_run":  # nothing was run
                dry += 1
                continue
            found[path] = RunRecord(path, read_settings(path), directory.status(), directory.summary())
    if not found and dry:
        raise UserError(
            f"only dry runs in {', '.join(map(str, paths))}; repeat their command without dry_run=true to run them"
        )
    if not found:
        raise UserError(f"no run in {', '.join(map(str, paths))}; a run directory holds status.json and config.yaml")
    return list(found.values())


def _swept(path: Path) -> list[Path]:
    """Return the run directories in a sweep's record; empty if `path` is not a sweep."""
    if not (path / "sweep.json").is_file():
        return []
    jobs = json.loads((path / "sweep.json").read_text(encoding="utf-8"))["jobs"]
    return [Path(job["run"]) for job in jobs if job["run"] is not None and Path(job["run"]).exists()]


def group_into_arms(records: list[RunRecord]) -> tuple[list[str], list[Arm]]:
    """Return the fewest keys that tell the arms apart, and the arms in the order of their values."""
    keys = distinguishing_keys([record.settings for record in records])
    arms: dict[str, Arm] = {}
    for record in sorted(records, key=lambda record: record.seed):
        values = tuple(record.settings.get(key) for key in keys)
        name = repr(values)
        if name not in arms:
            arms[name] = Arm(values, label="")
        arms[name].runs.append(record)
    ordered = sorted(arms.values(), key=lambda arm: [rank(value) for value in arm.values])
    for arm in ordered:
        _drop_repeated(arm)
    for arm in ordered:  # a label names only what tells an arm apart from the arms of its own algorithm
        kin = [one for one in ordered if keys[:1] != ["algo.name"] or one.values[0] == arm.values[0]]
        shown = [i == 0 or len({repr(one.values[i]) for one in kin}) > 1 for i in range(len(keys))]
        told = [(key, value) for key, value, use in zip(keys, arm.values, shown, strict=True) if use]
        arm.label = _label([key for key, _ in told], tuple(value for _, value in told), arm.runs[0])
    return keys, ordered


def _drop_repeated(arm: Arm) -> None:
    """Keep one run of each seed: the last one that is complete, else the last one. A repetition is no further seed."""
    kept: dict[int, RunRecord] = {}
    for run in sorted(arm.runs, key=lambda run: (run.summary is not None, str(run.status.get("updated", "")))):
        kept[run.seed] = run
    arm.repeated = [run for run in arm.runs if run is not kept[run.seed]]
    arm.runs = [run for run in arm.runs if run is kept[run.seed]]


def distinguishing_keys(settings: list[dict[str, Any]]) -> list[str]:
    """Return few keys whose values separate all settings, the seed aside; telling keys are preferred."""
    everything = {key for one in settings for key in one if key != "seed"}
    varying = [key for key in sorted(everything) if len({repr(one.get(key)) for one in settings}) > 1]
    # A list often repeats a number (HIPO's constraints hold its tau), and makes a poor name.
    plain = sorted(varying, key=lambda key: any(isinstance(one.get(key), list | dict) for one in settings))
    ordered = [*(key for key in TELLING if key in varying), *(key for key in plain if key not in TELLING)]
    chosen: list[str] = []
    for key in ordered:
        if _parts(settings, [*chosen, key]) > _parts(settings, chosen):
            chosen.append(key)
    return chosen


def pool_metric(arm: Arm, phase: str, metric: str, part: tuple[str, str] | None = None) -> Interval | None:
    """Return a metric of an arm in the phase "before", "after" or "difference"; None if no run has it.

    `part` restricts it to a group of items, e.g. ("hops", "3").
    """
    cells = []
    for run in arm.completed:
        phases = run.evaluation if part is None else run.by.get(part[0], {}).get(part[1], {})
        cell = phases.get(phase, {}).get(metric)
        if cell is not None and cell.get("mean") is not None:
            cells.append(Interval.from_dict(cell))
    if not cells:
        return None
    means = [cell.mean for cell in cells]
    if max(means) - min(means) <= ROUNDING:  # a single run, or seeds with equal values: only the items give an interval
        return max(cells, key=lambda cell: cell.hi - cell.lo if cell.known else -1.0)
    return seeds_interval(means, low=-1.0 if phase == "difference" else 0.0)


def difference_pairs(arms: list[Arm]) -> list[tuple[Arm, Arm]]:
    """Return every pair of arms in the order of subtraction, (base, trained).

    An arm that the other was trained from comes first. If neither was, the earlier arm comes first.
    """
    pairs = [(one, other) for i, one in enumerate(arms) for other in arms[i + 1 :]]
    return [(other, one) if _descends_from(one, other) else (one, other) for one, other in pairs]


def _descends_from(one: Arm, other: Arm) -> bool:
    """Check whether the model of `one` was trained from that of `other`, directly or over several runs."""
    first, second = (lineage(arm.runs[0].path, arm.runs[0].settings) for arm in (one, other))
    return second[0] in first[1:]


def compare_arms(one: Arm, other: Arm, metric: str) -> Interval | None:
    """Return `other` - `one` after training over the common seeds: paired by seed if seeds differ, else by item."""
    left, right = ({run.seed: run for run in arm.completed} for arm in (one, other))
    found = {}
    for seed in sorted(left.keys() & right.keys()):
        first, second = (side[seed].evaluation.get("after", {}).get(metric, {}).get("mean") for side in (left, right))
        if first is not None and second is not None:
            found[seed] = first, second
    if not found:
        return None
    gaps = [second - first for first, second in found.values()]
    if max(gaps) - min(gaps) > ROUNDING:
        shares = all(are_shares(pair) for pair in found.values())
        return seeds_interval(gaps, low=-1.0) if shares else t_interval(gaps)
    return _by_item([left[seed] for seed in found], [right[seed] for seed in found], metric)


def count_missing(arm: Arm) -> int:
    """Count the items that endpoints did not play."""
    return sum(run.summary.get("missing", {}).get("items", 0) for run in arm.runs if run.summary)


def compare_by_item(one: RunRecord, other: RunRecord, metric: str) -> Interval | None:
    """Return `other` - `one` after training, paired by item, whatever their seeds; None without a common item."""
    return _by_item([one], [other], metric)


def _by_item(first: list[RunRecord], second: list[RunRecord], metric: str) -> Interval | None:
    """Return the same for the means over several runs on each side.

    None if an item has another cluster on the other side: then equal names do not mean equal items, as in two draws of
    a generated bench.
    """
    (before, clusters), (after, others) = _items(first, metric), _items(second, metric)
    common = before.keys() & after.keys()
    if not common or any(clusters[name] != others[name] for name in common):
        return None
    means = [sum(values.values()) / len(values) for values in (before, after)]
    linearised = metric in LINEARISED and are_shares(means)
    return paired_difference(before, after, clusters, shares=True if linearised else None)


def list_metrics(arms: list[Arm]) -> list[str]:
    """Return every evaluated metric, the headlines first."""
    names: dict[str, None] = {}
    for arm in arms:
        for run in arm.completed:
            for phase in ("after", "before"):
                names |= dict.fromkeys(run.evaluation.get(phase, {}))
    ordered = [*(name for name in HEADLINES if name in names), *(name for name in names if name not in HEADLINES)]
    return [
        name
        for name in ordered
        if any(pool_metric(arm, "after", name) or pool_metric(arm, "before", name) for arm in arms)
    ]


def _items(runs: list[RunRecord], metric: str) -> tuple[dict[str, float], dict[str, str]]:
    """Return a metric of every item after training, as a mean over runs, and the items' clusters."""
    values: dict[str, list[float]] = {}
    clusters: dict[str, str] = {}
    for run in runs:
        items = played_items(run.directory.records(run.directory.eval_dir / "after.jsonl"))
        clusters |= {item["id"]: item["cluster"] for item in items}
        own = item_values(items, str((run.summary or {}).get("solve_metric", ""))).get(metric, {})
        for name, value in own.items():
            values.setdefault(name, []).append(value)
    return {name: sum(several) / len(several) for name, several in values.items()}, clusters


def rank(value: Any) -> tuple[bool, float, str]:
    """Return a sort key: numbers in their order come before words in theirs."""
    number = isinstance(value, int | float)
    return not number, float(value) if number else 0.0, str(value)


def group_rank(value: str) -> tuple[bool, float, str]:
    """Return a sort key for the names of item groups: 10 hops come after 9."""
    try:
        return rank(float(value))
    except ValueError:
        return rank(value)


def _parts(settings: list[dict[str, Any]], keys: list[str]) -> int:
    return len({tuple(repr(one.get(key)) for key in keys) for one in settings})


def _label(keys: list[str], values: tuple[Any, ...], record: RunRecord) -> str:
    if not keys:
        return str(record.settings["algo.name"])
    parts = []
    for key, value in zip(keys, values, strict=True):
        if key in record.settings:  # otherwise this arm's algorithm or bench does not have the key
            parts.append(str(value) if key.endswith(".name") else f"{key.rsplit('.', 1)[-1]}={_short(value)}")
    return " ".join(parts)


def _short(value: Any) -> str:
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def read_settings(path: Path) -> dict[str, Any]:
    """Read a run's settings as flat values. A report must also read runs whose keys have changed since.

    Raises:
        UserError: the file is not YAML, or does not hold a mapping.
    """
    file = path / "config.yaml"
    try:
        values = yaml.load(file.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file} cannot be read as YAML: {first_line(error)}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file} does not hold a configuration")
    update_old_values(values)
    named = {str(key): value for key, value in values.items()}
    return {key: value for key, value in flatten(named).items() if is_in_identity(key)}
