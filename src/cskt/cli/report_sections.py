"""Sections of the report of one or several models on a split."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cskt.cli.compare import configs_of, differing_settings, run_folders, zero_shot_r1
from cskt.cli.parsing import command_line
from cskt.cli.run_report import curves_chart
from cskt.cli.run_results import describe_model, is_run, selection_note, stored_result
from cskt.config import RunConfig
from cskt.data.records import Split
from cskt.embed import Encoder
from cskt.embed.model_paths import run_config
from cskt.errors import SMALLER_BATCHES, CsktError, out_of_memory_errors
from cskt.evaluation import analysis
from cskt.evaluation.comparison import MethodComparison, MethodResults, compare
from cskt.evaluation.evaluate import SplitFeatures, as_result, evaluate
from cskt.evaluation.results import Result
from cskt.evaluation.statistics import curve_interval, few_people_note
from cskt.report.comparison_tables import comparison_grid, page_explanation, split_columns
from cskt.report.evidence import Curve, attribute_bars, cmc_curves, confusion_matrix, similarity_histograms
from cskt.report.pages import Chart, Section
from cskt.report.pictured_results import PicturedHit, PicturedResult
from cskt.report.tables import ResultRow
from cskt.training.events import first_event, ignored_lines, read_events
from cskt.types import Hit, PerQuery
from cskt.utils.console import counting_bar

MAX_RANK = 20
"""Last rank of the CMC curves."""
NUM_HARDEST = 10
CLOTHING_COLOUR = re.compile(r"(upper|lower).*colou?r")
"""Names of the attributes that have a confusion matrix."""


@dataclass(frozen=True)
class ReportedModel:
    """A model as the report shows it, after its features are released."""

    label: str
    model: Path
    config: RunConfig | None
    """None for plain CLIP."""
    events: Sequence[dict[str, Any]]
    row: ResultRow
    per_query: PerQuery
    result: Result
    """As its folder stores it, if of these weights and this precision; else as computed for this page, untimed."""
    similarities: analysis.Similarities
    cmc: Curve
    ignored_lines: str
    """Numbers of the lines of its metrics.jsonl that are no events."""


@out_of_memory_errors(SMALLER_BATCHES)
def reported_model(label: str, model: Path, encoder: Encoder, split: Split, features: SplitFeatures) -> ReportedModel:
    """Rank a split and collect what the report shows of a model."""
    evaluation = evaluate(encoder, split, features)
    metrics, per_query = evaluation.t2i, evaluation.t2i.per_query
    matched = (per_query.first_right_rank > 0).numpy()
    if not matched.any():
        raise CsktError(f"no caption of {split.dataset} {split.name} has an image of its person; nothing to report")
    hits = analysis.rank_hits(per_query.first_right_rank, MAX_RANK)
    others = [values.numpy()[matched] for values in (per_query.average_precision, per_query.inverse_negative_penalty)]
    low, high = curve_interval(np.column_stack([hits, *others]), features.caption_pids.numpy()[matched])
    columns = {"r1": 0, "r5": 4, "r10": 9, "mean_ap": MAX_RANK, "mean_inp": MAX_RANK + 1}
    config, events = run_config(model), read_events(model)
    with counting_bar("comparing pairs") as on_progress:
        similarities = analysis.compare_pairs(
            features.text_features, features.image_features, features.caption_pids, features.image_pids,
            on_progress=on_progress,
        )  # fmt: skip
    result = stored_result(model, split, encoder.precision)
    result = result or as_result(evaluation, encoder, split, describe_model(model, label))
    row = ResultRow(
        label,
        metrics.summary(),
        trainable_parameters=first_event(events, "start").get("trainable_parameters") if config else 0,
        total_parameters=encoder.model.num_parameters(),
        note=selection_note(model),
        intervals={key: (float(low[place]), float(high[place])) for key, place in columns.items()},
    )
    shown = min(MAX_RANK, len(split.records))
    cmc = Curve(label, hits.mean(axis=0)[:shown], low[:shown], high[:shown])
    return ReportedModel(label, model, config, events, row, per_query, result, similarities, cmc, ignored_lines(model))


def compared(models: Sequence[ReportedModel]) -> MethodComparison | None:
    """Return the comparison of `cskt compare`, all against the first model; None for a single model."""
    if len(models) < 2:
        return None
    recorded = {model.label: zero_shot_r1(run_folders(str(model.model)), [model.result]) for model in models}
    return compare(
        [MethodResults(model.label, (model.result,)) for model in models],
        zero_shot={label: r1 for label, r1 in recorded.items() if r1 is not None},
    )


def result_rows(models: Sequence[ReportedModel], comparison: MethodComparison | None) -> list[ResultRow]:
    """Return the table of results, with R1 of zero-shot CLIP where it is known."""
    if comparison is None:
        (model,) = models
        return [replace(model.row, zero_shot_r1=zero_shot_r1(run_folders(str(model.model)), [model.result]))]
    return [
        replace(model.row, zero_shot_r1=method.zero_shot_r1)
        for model, method in zip(models, comparison.methods, strict=True)
    ]


def comparison_sections(models: Sequence[ReportedModel], comparison: MethodComparison | None) -> list[Section]:
    """Return the differences between the models, their sizes and times, and the settings that differ.

    A single model has no such sections.
    """
    if comparison is None:
        return []
    differences, costs = split_columns(comparison_grid(comparison.methods))
    untimed = [model.model for model in models if is_run(model.model) and not model.result.facts.images_per_second]
    split = ("--dataset", comparison.dataset, "--split", comparison.split)
    timing = "Not timed on this split yet; these commands measure images and captions per second." if untimed else ""
    sections = [
        Section(f"Comparison with {comparison.baseline}", page_explanation(comparison), table=differences),
        Section(
            "Size and time", timing, table=costs, commands=[command_line("evaluate", run, *split) for run in untimed]
        ),
    ]
    configs = {model.label: configs_of(run_folders(str(model.model))) for model in models}
    if settings := differing_settings(configs):
        labels = [model.label for model in models if any(one.text_of(model.label) for one in settings)]
        table = [["Setting", *labels], *([one.key, *map(one.text_of, labels)] for one in settings)]
        note = "Between the runs that train something; all others are the same."
        sections.append(Section("Settings that differ", note, table=table))
    return sections


def ranking_sections(models: Sequence[ReportedModel], split: Split) -> list[Section]:
    """Return CMC curves, similarities and the queries that are hardest for the first model."""
    percents = [f"{model.label} {100 * analysis.separation(model.similarities):.2f} %" for model in models]
    cmc_note = (
        "A line at n is the share of queries with a right image among the first n, from n = 1 (R1) to "
        f"{len(models[0].cmc.mean)}; the higher, the better. The band around a line is its 95 % interval: other people "
        "would give other lines, most likely inside the band."
    )
    if note := few_people_note(len(set(split.caption_pids))):
        cmc_note += f" {note} This is true of the table above as well."
    similarity_note = (
        "All pairs of a caption and an image, right and wrong ones scaled to the same area. Dashed: the most similar "
        "wrong image of each caption. Probability that a right pair is more similar than a wrong one: "
        f"{', '.join(percents)}."
    )
    curves = cmc_curves([model.cmc for model in models])
    cmc = Chart("cmc", curves, "Line chart: CMC curve of each model, with its band.")
    similarities = Chart(
        "similarities",
        similarity_histograms({model.label: model.similarities for model in models}),
        "Histograms: cosines of right pairs, of wrong pairs, and of the best wrong image of each caption.",
    )
    first = models[0]
    remarks = []
    for query in analysis.hardest_queries(first.per_query, split.caption_pids, NUM_HARDEST):
        rank, *others = [int(model.per_query.first_right_rank[query]) for model in models]
        of_others = [f" · {model.label}: {other}" for model, other in zip(models[1:], others, strict=True)]
        person = split.records[split.caption_image_ids[query]].pid
        remark = f"person {person}: first right image at rank {rank} of {len(split.records):,}" + "".join(of_others)
        remarks.append((split.captions[query], remark))
    return [
        Section("Cumulative matching", cmc_note, [cmc], half=True),
        Section("Similarities", similarity_note, [similarities], half=True),
        Section(
            "Hardest queries",
            f"The captions whose first right image comes last with {first.label}, at most one for each person.",
            sentences=remarks,
        ),
    ]


def list_sections(model: ReportedModel, split: Split, features: SplitFeatures, k: int, count: int) -> list[Section]:
    """Return the best and the worst ranked lists of a model as pictures, `count` each, `k` images long."""
    best = analysis.clearest_queries(model.similarities.margin, split.caption_pids, count)
    worst = analysis.hardest_queries(model.per_query, split.caption_pids, count)
    worst = [query for query in worst if model.per_query.first_right_rank[query] > 1]
    best_note = "Captions whose right image is furthest above every wrong one; at most one for each person."
    worst_note = (
        "Captions whose first right image comes last; at most one for each person. If none of the first "
        f"{k} images is right, the last that is shown is the first right one, with its rank."
    )
    return [
        Section(
            f"{title} of {model.label}",
            note,
            answers=[_pictured_result(split, features, query, k) for query in queries],
        )
        for title, note, queries in (("Best ranked lists", best_note, best), ("Worst ranked lists", worst_note, worst))
        if queries
    ]


def _pictured_result(split: Split, features: SplitFeatures, query: int, k: int) -> PicturedResult:
    similarity = features.image_features @ features.text_features[query]
    right = features.image_pids == features.caption_pids[query]
    hits = []
    for rank, position in analysis.ranked_positions(similarity, right, k):
        path, pid = split.records[position].image_path, split.records[position].pid
        hit = Hit(f"{path.name}, person {pid}", float(similarity[position]), rank)
        hits.append(PicturedHit(hit, path, bool(right[position])))
    return PicturedResult(split.captions[query], hits)


def attribute_sections(model: ReportedModel, split: Split) -> list[Section]:
    """Return the attributes and the colours that a model's wrong first answers confuse, if there are any."""
    known = [record.attributes or {} for record in split.records]
    values = {
        name: [str(attributes[name]) for attributes in known]
        for name in known[0]
        if all(name in attributes for attributes in known)
    }
    sought, found = split.caption_image_ids, model.similarities.first_answer.tolist()
    errors = analysis.attribute_errors(values, split.image_pids, sought, found)
    sections = []
    if errors.names and len(errors.queries):
        low, high = curve_interval(errors.differs.astype(np.float64), np.asarray(split.caption_pids)[errors.queries])
        figure = attribute_bars(errors.names, errors.differs.mean(axis=0), errors.chance, low, high)
        note = (
            f"The {len(errors.queries):,} of {len(sought):,} queries that {model.label} answers wrongly at rank 1: how "
            "often each attribute of the person found differs from the person sought. Chance: any other person's image "
            "instead. Far left of chance: the model uses the attribute. At chance: it does not see it, or the "
            "captions do not mention it."
        )
        alt = "Dot chart: how often each attribute of wrong first answers differs, with intervals, against chance."
        sections.append(Section("Confusion by attribute", note, [Chart("attributes", figure, alt)], half=True))
    charts = []
    for name in filter(CLOTHING_COLOUR.fullmatch, values):
        of_sought, of_found = ([values[name][image] for image in images] for images in (sought, found))
        labels, counts = analysis.confusion(of_sought, of_found)
        title = name.replace("_", " ").capitalize()
        alt = f"Matrix: {title} of the person sought against that of the first answer."
        charts.append(Chart(f"confusion-{name}".replace("_", "-"), confusion_matrix(labels, counts), alt, title))
    if charts:
        note = (
            f"First answers of {model.label}, right ones included: by row the colour of the person sought, by column "
            "that of the person found, in percent of the row. Green: the same colour."
        )
        sections.append(Section("Colours of clothing", note, charts, half=True))
    return sections


def curves_section(models: Sequence[ReportedModel]) -> list[Section]:
    """Return the learning curves of the models that recorded any."""
    trained = [model for model in models if model.events]
    charts = [
        curves_chart(model.events, f"learning-curves-{number}", model.label)
        for number, model in enumerate(trained, start=1)
    ]
    return [Section("Learning curves", charts=charts, half=len(charts) == 1)] if charts else []
