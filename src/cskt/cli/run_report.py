"""Report of a run folder: the content of its files as one HTML page."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cskt.cli.parsing import command_line
from cskt.config import RunConfig, to_dict
from cskt.config.file_names import CONFIG, REPORT
from cskt.evaluation.results import EPOCH, REFERENCE_MODELS, ZERO_SHOT
from cskt.report.learning_curves import learning_curves
from cskt.report.pages import Chart, Section, write_report
from cskt.report.pictured_results import PicturedResult
from cskt.report.tables import ResultRow
from cskt.training.events import first_event, ignored_lines, last_event, read_events
from cskt.training.run_folder import RunFolder
from cskt.utils.paths import inside


def write_run_report(
    folder: Path,
    *,
    title: str = "",
    extra_rows: Sequence[ResultRow] = (),
    answers: Sequence[PicturedResult] = (),
    next_commands: Sequence[str] = (),
) -> Path:
    """Write `report.html` into a run folder, and return its path.

    Args:
        folder: of a run.
        title: of the page; the run's name and data set if empty.
        extra_rows: results that are not in the run's files, shown first.
        answers: sentences with their hits.
        next_commands: commands that the reader may want to run next.
    """
    events, config = read_events(folder), RunFolder(folder).config
    start, end = first_event(events, "start"), last_event(events, "end")
    rows = selection_rows(events, config.name)
    facts = {
        "data set": f"{config.data.dataset}, {start.get('train_identities', '?')} identities,"
        f" {start.get('train_pairs', '?')} image-caption pairs",
        "selected on": config.data.select_on,
        "backbone": f"{start.get('backbone', config.backbone.name)}",
        "seed": str(config.seed),
        "machine": f"{platform.system()} {platform.machine()}, device {start.get('device', config.device)}",
        "software": f"cskt {start.get('version', '?')}, torch {start.get('torch', '?')}",
    }
    if end:
        facts["training time"] = f"{end['seconds']:.0f} s"
        facts["peak memory"] = f"{end['peak_memory_bytes'] / 1e9:.2f} GB"
    if ignored := ignored_lines(folder):
        facts["ignored lines of metrics.jsonl"] = ignored
    path = inside(folder, REPORT, follow_links=False)
    write_report(
        path,
        title=title or f"{config.name} on {config.data.dataset}",
        rows=[*extra_rows, *rows],
        sections=[
            *warning_sections({"": warnings_of(events)}),
            *([Section("Answers", answers=answers)] if answers else []),
            Section("Learning curves", charts=[curves_chart(events)], half=True),
        ],
        configs={CONFIG: to_dict(config)},
        facts=facts,
        next_commands=next_commands or [evaluate_command(folder, config)],
        headline=next(reversed(extra_rows or rows), None),
    )
    return path


def evaluate_command(folder: Path, config: RunConfig) -> str:
    """Return the command that evaluates a run, or a folder of runs, on all data sets that it was trained on."""
    roots = [config.data.root, *(other.root for other in config.data.mix)]
    return command_line("evaluate", folder, *(word for root in roots for word in ("--root", root)))


def warnings_of(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the warnings that a run recorded about itself at its start and end; see `cskt.training.checks`."""
    return [str(line) for event in events if event["event"] in ("start", "end") for line in event.get("warnings") or []]


def warning_sections(warnings: Mapping[str, Sequence[str]]) -> list[Section]:
    """Return a section with the warnings that runs, by label, recorded about themselves; none without warnings."""
    found = {label: lines for label, lines in warnings.items() if lines}
    return [Section("Warnings", "Signs in a run that it cannot have learned.", warnings=found)] if found else []


def run_summary(config: RunConfig | None, events: Sequence[dict[str, Any]]) -> str:
    """Return in one line how a model was trained; plain CLIP has no config."""
    if config is None or not config.is_trainable:
        return "not trained"
    start, end = first_event(events, "start"), last_event(events, "end")
    parts = [
        f"trained on {config.data.dataset}",
        f"selected on {config.data.select_on}",
        f"backbone {start.get('backbone', config.backbone.name)}",
        f"seed {config.seed}",
    ]
    if end:
        parts += [f"{end['seconds']:.0f} s on {start.get('device', '?')}", f"{end['peak_memory_bytes'] / 1e9:.2f} GB"]
    return " · ".join(parts)


def curves_chart(events: Sequence[dict[str, Any]], name: str = "learning-curves", title: str = "") -> Chart:
    """Return the learning curves of a run."""
    alt = "Line charts: R1, R5, R10 and mAP by epoch; loss by step; learning rate by step."
    return Chart(name, learning_curves(events), alt, title)


def selection_rows(events: Sequence[dict[str, Any]], name: str) -> list[ResultRow]:
    """Return zero-shot CLIP, step 0, the best epoch on the selection split, and the last one of a run that keeps it,
    as far as they were recorded."""
    evaluations = [event for event in events if event["event"] == "evaluation"]
    start = first_event(events, "start")
    total = start.get("total_parameters")
    zero_shot = {
        (event["dataset"], event["split"]): event["t2i"]["r1"] for event in evaluations if event["stage"] == ZERO_SHOT
    }

    def reference(event: Mapping[str, Any]) -> float | None:
        return None if event["stage"] == ZERO_SHOT else zero_shot.get((event["dataset"], event["split"]))

    rows = [
        ResultRow(
            REFERENCE_MODELS[event["stage"]],
            event["t2i"],
            0,
            total,
            f"on {event['split']}",
            zero_shot_r1=reference(event),
        )
        for event in evaluations
        if event["stage"] in REFERENCE_MODELS
    ]
    if epochs := [event for event in evaluations if event["stage"] == EPOCH]:
        best = max(epochs, key=lambda event: event["t2i"]["r1"])
        label, note = f"{name}, epoch {best['epoch']}", f"selected on {best['split']}"
        trainable = start.get("trainable_parameters")
        rows.append(ResultRow(label, best["t2i"], trainable, total, note, zero_shot_r1=reference(best)))
        if "last_r1" in last_event(events, "end"):
            last, label = epochs[-1], f"{name}, last epoch {epochs[-1]['epoch']}"
            note = f"on {last['split']}"
            rows.append(ResultRow(label, last["t2i"], trainable, total, note, zero_shot_r1=reference(last)))
    return rows
