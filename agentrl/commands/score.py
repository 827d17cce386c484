"""`agentrl score bench=... transcripts=FILE out=FILE`: score transcripts made elsewhere. Nothing is executed.

    agentrl score bench=ftrl bench.path=test.jsonl transcripts=episodes.jsonl out=scored.jsonl

Every line of `transcripts` is copied to `out` with `metrics`, and with a `reason` if the verdict needs one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from agentrl.benches import load_bench
from agentrl.chat.transcripts import BadTranscript
from agentrl.commands.arguments import file_to_write, key_lines, split_keys
from agentrl.config.compose import compose
from agentrl.config.rules.fit import check_classifier, ungraded_text
from agentrl.config.schema import Config
from agentrl.core.bench import Classified, TranscriptBench, remarks_of
from agentrl.core.errors import UserError
from agentrl.core.jsonl import UTF_8, explain_json
from agentrl.core.stats import Interval, are_shares, linearised_macro, mean_interval, share_interval, t_interval
from agentrl.core.text import replace_surrogates

KEYS = {
    "transcripts": "File of transcripts, one JSON object per line.",
    "out": "File to write, one line per transcript; it must not exist yet.",
}
HELP = f"""agentrl score bench=NAME [bench.path=FILE] transcripts=FILE out=FILE [bench.key=value ...]

Scores transcripts as the bench's official code does. Nothing in them is executed.

{key_lines(KEYS)}

Some benches have a classifier grade replies: name it with judge=local or judge=openai (docs/side.md).

A line of `transcripts` is {{"row": N, "messages": [...]}} (some benches take "turns" or "response" instead of messages,
see docs/benches.md). N is the row of the bench's file, counted from 0. The same line goes to `out` with "metrics" and,
if there is one, a "reason"."""
SHOWN = 5  # number of bad lines named in one message
# ToolHop divides by all rows, scored or not; other rules leave out rows without a verdict.
UNSET_IS_WRONG = ("answer_correct",)


def main(arguments: list[str]) -> int:
    own, overrides = split_keys(arguments, KEYS)
    for key, sentence in KEYS.items():
        if not own.get(key):
            raise UserError(f"{key}=... is missing. {sentence}")
    out = file_to_write(own["out"], new=True)
    config = compose(overrides)
    config.bench.check_path()
    if getattr(config.bench, "path", None) is not None:
        config.bench.path = str(Path(config.bench.path).expanduser())
    bench = load_bench(config.bench, config.sandbox)
    if not isinstance(bench, TranscriptBench):
        raise UserError(f"bench={bench.name} has no official scores for transcripts made elsewhere; name another bench")
    scored, bad = [], []
    lines = list(read_lines(Path(own["transcripts"]).expanduser()))
    verdicts = classified(config, bench, lines, out) if isinstance(bench, Classified) else {}
    for number, record, wrong in lines:
        metrics, reason = ({}, wrong) if wrong else bench.score_transcript(replace_surrogates(record))
        metrics = verdicts.get(number, metrics)
        if not metrics:
            bad.append(f"line {number}: {reason}")
        else:
            echo = {key: value for key, value in record.items() if key not in ("metrics", "reason")}
            scored.append(echo | {"metrics": metrics} | ({"reason": reason} if reason else {}))
    if bad:
        more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        raise UserError(f"transcripts={own['transcripts']}, {'; '.join(bad[:SHOWN])}{more}. Nothing was written")
    if not scored:
        raise UserError(f"transcripts={own['transcripts']} holds no transcript; name a file with one per line")
    write(out, scored)
    for remark in remarks_of(bench):
        print(remark)
    print_summary(scored, Console(soft_wrap=True, highlight=False, markup=False))
    print(f"{len(scored)} transcripts scored: {out}")
    return 0


def classified(
    config: Config, bench: Classified, lines: list[tuple[int, dict[str, Any], str | None]], out: Path
) -> dict[int, dict[str, Any]]:
    """Return the metrics by number of line, from the classifier that `judge` names. Lines that are bad have none."""
    from agentrl.evaluation.grading import classify  # imports torch, which other benches do not need
    from agentrl.judges.build import build_judge

    check_classifier(config)
    asked = config.bench.classified_by() is not None
    judge = build_judge(config, f"score {out.resolve()}", config.hardware.device) if asked else None
    if asked and judge is None:
        raise UserError(ungraded_text(config))
    replies = {}
    for number, record, wrong in lines:
        with suppress(BadTranscript):  # the bench says later what is wrong
            if not wrong:
                replies[number] = bench.read_transcript(replace_surrogates(record))
    return dict(zip(replies, map(dict, classify(bench, judge, list(replies.values()))), strict=True))


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any], str | None]]:
    """Yield line number (from 1), record, and what is wrong with it, for every line that is not blank."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"transcripts={path}: cannot read it ({error.strerror}); name a file of JSON lines") from error
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode(UTF_8 if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            yield number, {}, f"not UTF-8 (byte {error.start})"
        except (ValueError, RecursionError) as error:
            yield number, {}, f"not complete JSON ({explain_json(error)})"
        else:
            yield (number, record, None) if isinstance(record, dict) else (number, {}, "not a JSON object")


def write(out: Path, records: list[dict[str, Any]]) -> None:
    """Write all lines or no file: a half-written file has another name."""
    part = out.with_name(f"{out.name}.{os.getpid()}.part")
    try:
        # JSON can hold half a surrogate pair, but UTF-8 cannot. It is written as an escape, as it was read.
        with part.open("x", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            file.flush()
            os.fsync(file.fileno())
        os.link(part, out)  # unlike a rename, this fails if another process has made the file meanwhile
    except OSError as error:
        raise UserError(f"out={out}: cannot write it ({error.strerror}); name a file that can be written") from error
    finally:
        part.unlink(missing_ok=True)


def print_summary(records: list[dict[str, Any]], console: Console) -> None:
    """Print the mean and 95% interval of every metric; transcripts of one row are one cluster.

    If the transcripts belong to several suites or categories, the plain mean of their means is printed, too: some
    official figures are that.
    """
    columns: dict[str, tuple[list[float], list[str], list[str]]] = {}
    unset: dict[str, int] = {}
    for record in records:
        # the keys that tell the rows of a bench apart
        row = str([record.get(key) for key in ("category", "suite", "row", "id")])
        part = str(record.get("suite", record.get("category", "")))
        for name, value in record["metrics"].items():
            values, rows, parts = columns.setdefault(name, ([], [], []))
            for entry in value if isinstance(value, list) else [value]:
                if entry is None:
                    unset[name] = unset.get(name, 0) + 1
                if entry is not None or name in UNSET_IS_WRONG:
                    values.append(float(entry or 0))
                    rows.append(row)
                    parts.append(part)
    console.print("mean [95% interval, clustered by row]")
    for name, (values, rows, parts) in columns.items():
        counted = "counted as 0" if name in UNSET_IS_WRONG else "left out"
        rest = f", {unset[name]} without a verdict {counted}" if name in unset else ""
        interval = mean_interval(values, rows)
        console.print(f"{name:<16} {_told(interval)}, n={interval.n}{rest}")
        if (count := len(set(parts))) > 1:
            items = [str(position) for position in range(len(values))]
            spread = linearised_macro(dict(zip(items, values, strict=True)), dict(zip(items, parts, strict=True)))
            macro = (share_interval if are_shares(values) else t_interval)([*spread.values()], rows)
            console.print(f"{'':<16} {_told(macro)}, the mean of the means of {count} suites or categories")


def _told(interval: Interval) -> str:
    bounds = f"[{interval.lo:.4f}, {interval.hi:.4f}]" if interval.known else "[too few rows]"
    return f"{interval.mean:.4f} {bounds}"
