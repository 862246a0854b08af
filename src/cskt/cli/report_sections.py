"""What the report of one or several models shows of a split, as sections of the page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cskt.cli.next_steps import command_line
from cskt.cli.output import comparison_explanation, comparison_rows
from cskt.cli.run_facts import is_run, selection_note
from cskt.cli.run_report import curves_chart
from cskt.cli.run_settings import differing_settings, run_folders, zero_shot_r1
from cskt.cli.stored_results import result_at_hand, stored_result
from cskt.config import RunConfig
from cskt.data.records import Split
from cskt.embed import Encoder
from cskt.embed.model_paths import run_config
from cskt.errors import CsktError
from cskt.evaluation.analysis import (
    Similarities,
    attribute_errors,
    clearest_queries,
    compare_pairs,
    confusion,
    hardest_queries,
    rank_hits,
    ranked_list,
    separation,
)
from cskt.evaluation.compare import Entry, compare
from cskt.evaluation.evaluate import SplitFeatures, evaluate
from cskt.evaluation.results import Result
from cskt.evaluation.statistics import curve_interval
from cskt.report.comparison import comparison_grid
from cskt.report.evidence import (
    Curve,
    Histogram,
    attribute_bars,
    cmc_curves,
    confusion_matrix,
    similarity_histograms,
)
from cskt.report.pictures import Answer
from cskt.report.sections import Chart, Section
from cskt.report.tables import ResultRow
from cskt.training.run_folder import first_event, ignored_lines, read_events
from cskt.types import Hit, PerQuery
from cskt.utils.progress import counting_bar

MAX_RANK = 20
"""Of the CMC curves."""
NUM_HARDEST = 10
CLOTHING_COLOUR = re.compile(r"(upper|lower).*colou?r")
"""Attributes of which a confusion matrix is drawn."""


@dataclass(frozen=True)
class Examined:
    """What is kept of a model once its features are gone."""

    label: str
    model: Path
    config: RunConfig | None
    """None for plain CLIP."""
    events: Sequence[dict[str, Any]]
    row: ResultRow
    per_query: PerQuery
    result: Result
    """As its folder holds it, of these weights and in this arithmetic; else as found for this page, without rates."""
    similarities: Similarities
    cmc: Curve
    ignored_lines: str = ""
    """Lines of its metrics.jsonl that are no events."""


def examine(label: str, model: Path, encoder: Encoder, split: Split, features: SplitFeatures) -> Examined:
    """Rank a split and keep what the report tells of a model.

    Raises:
        CsktError: no query has a right image, or features that are not finite.
    """
    evaluation = evaluate(encoder, split, features)
    metrics = evaluation.t2i
    ranks = metrics.per_query.first_right_rank
    matched = (ranks > 0).numpy()
    if not matched.any():
        raise CsktError(f"no caption of {split.dataset} {split.name} has an image of its person; nothing to report")
    hits = rank_hits(ranks, MAX_RANK)
    others = [metrics.per_query.average_precision, metrics.per_query.inverse_negative_penalty]
    band = curve_interval(
        np.column_stack([hits, *(values.numpy()[matched] for values in others)]), features.caption_pids.numpy()[matched]
    )
    places = {"r1": 0, "r5": 4, "r10": 9, "mean_ap": MAX_RANK, "mean_inp": MAX_RANK + 1}
    config, events = run_config(model), read_events(model)
    start = first_event(events, "start")
    with counting_bar("comparing pairs") as on_progress:
        similarities = compare_pairs(
            features.text_features, features.image_features, features.caption_pids, features.image_pids,
            on_progress=on_progress,
        )  # fmt: skip
    shown = min(MAX_RANK, len(split.records))
    return Examined(
        label=label,
        model=model,
        config=config,
        events=events,
        row=ResultRow(
            label,
            metrics.summary(),
            trainable_parameters=start.get("trainable_parameters") if config else 0,
            total_parameters=encoder.model.num_parameters(),
            note=selection_note(model),
            intervals={key: (float(band.low[place]), float(band.high[place])) for key, place in places.items()},
        ),
        per_query=metrics.per_query,
        result=stored_result(model, split, encoder.precision)
        or result_at_hand(evaluation, encoder, split, model, label),
        similarities=similarities,
        cmc=Curve(label, hits.mean(axis=0)[:shown], band.low[:shown], band.high[:shown]),
        ignored_lines=ignored_lines(model),
    )


def comparison_sections(models: Sequence[Examined]) -> list[Section]:
    """The table of `cskt compare`, all against the model named first, and the settings that differ; nothing for one
    model alone."""
    if len(models) < 2:
        return []
    folders = {shown.label: run_folders(str(shown.model)) for shown in models}
    zero_shot = {
        shown.label: r1 for shown in models if (r1 := zero_shot_r1(folders[shown.label], [shown.result])) is not None
    }
    comparison = compare([Entry(shown.label, (shown.result,)) for shown in models], zero_shot=zero_shot)
    notes = [comparison_explanation(comparison)]
    if untimed := [shown.model for shown in models if is_run(shown.model) and not shown.result.facts.images_per_second]:
        split = ("--dataset", comparison.dataset, "--split", comparison.split)
        commands = "; ".join(command_line("evaluate", model, *split) for model in untimed)
        notes.append(f"Not timed on this split yet; what measures images and captions per second: {commands}")
    sections = [Section("Comparison", " ".join(notes), table=comparison_grid(comparison_rows(comparison)))]
    if settings := differing_settings(folders):
        labels = [shown.label for shown in models]
        table = [["Setting", *labels], *([one.key, *(one.text_of(label) for label in labels)] for one in settings)]
        note = "Between the runs that train something; all others are the same."
        sections.append(Section("Settings that differ", note, table=table))
    return sections


def ranking_sections(models: Sequence[Examined], split: Split) -> list[Section]:
    """CMC curves, similarities and the hardest queries of all models; queries are those that are hard for the first."""
    percents = [f"{shown.label} {100 * separation(shown.similarities):.2f} %" for shown in models]
    cmc_note = (
        f"Queries with a right image among the first 1 to {len(models[0].cmc.mean)}. Bands: 95 % intervals of each "
        "point, people resampled with all their queries. Behind each name: R1."
    )
    similarity_note = (
        "All pairs of a caption and an image, right and wrong ones scaled to the same area. Dashed: the most similar "
        "wrong image of each caption, which a right one has to beat. How often a right pair is more similar than a "
        f"wrong one: {', '.join(percents)}."
    )
    histograms = [
        Histogram(shown.label, shown.similarities.right, shown.similarities.wrong, shown.similarities.best_wrong)
        for shown in models
    ]
    curves = [shown.cmc for shown in models]
    cmc_alt = "Line chart: CMC curve of each model, with its band."
    similarity_alt = "Histograms: cosines of right pairs, of wrong pairs, and of the best wrong image of each caption."
    return [
        Section("Cumulative matching", cmc_note, [Chart("cmc", cmc_curves(curves), cmc_alt)], half=True),
        Section(
            "Similarities",
            similarity_note,
            [Chart("similarities", similarity_histograms(histograms), similarity_alt)],
            half=True,
        ),
        Section(
            "Hardest queries",
            f"The captions whose first right image comes last with {models[0].label}, at most one for each person.",
            sentences=[
                (split.captions[query], _rank_remark(models, query, len(split.records)))
                for query in hardest_queries(models[0].per_query, split.caption_pids, NUM_HARDEST)
            ],
        ),
    ]


def _rank_remark(models: Sequence[Examined], query: int, num_gallery: int) -> str:
    ranks = [int(shown.per_query.first_right_rank[query]) for shown in models]
    others = [f"{shown.label}: {rank}" for shown, rank in zip(models[1:], ranks[1:], strict=True)]
    return f"first right image at rank {ranks[0]} of {num_gallery:,}" + "".join(f" · {other}" for other in others)


def list_sections(shown: Examined, split: Split, features: SplitFeatures, k: int, count: int) -> list[Section]:
    """The best and the worst ranked lists of a model as pictures, `count` each, `k` images long."""
    best = clearest_queries(shown.similarities.margin, split.caption_pids, count)
    worst = hardest_queries(shown.per_query, split.caption_pids, count)
    worst = [query for query in worst if shown.per_query.first_right_rank[query] > 1]
    best_note = "Where a right image lies furthest above every wrong one; at most one caption for each person."
    worst_note = (
        "Where the first right image comes last; at most one caption for each person. If none of the first "
        f"{k} images is right, the last that is shown is the first right one, with its rank."
    )
    return [
        Section(f"{title} of {shown.label}", note, answers=[_answer(split, features, query, k) for query in queries])
        for title, note, queries in (("Best ranked lists", best_note, best), ("Worst ranked lists", worst_note, worst))
        if queries
    ]


def _answer(split: Split, features: SplitFeatures, query: int, k: int) -> Answer:
    similarity = features.image_features @ features.text_features[query]
    ranking = ranked_list(similarity, features.image_pids == features.caption_pids[query], k)
    paths = [split.image_paths[position] for position in ranking.positions]
    hits = [
        Hit(path.name, float(score), int(rank))
        for path, score, rank in zip(paths, ranking.scores, ranking.ranks, strict=True)
    ]
    return Answer(split.captions[query], hits, paths, ranking.right.tolist())


def attribute_values(split: Split) -> dict[str, list[str]]:
    """Attribute -> its value for each image, as text, for the attributes that every record carries."""
    known = [record.attributes or {} for record in split.records]
    return {
        name: [str(attributes[name]) for attributes in known]
        for name in known[0]
        if all(name in attributes for attributes in known)
    }


def attribute_sections(shown: Examined, split: Split, values: Mapping[str, Sequence[str]]) -> list[Section]:
    """What a model's wrong first answers confuse, and its colours; nothing without attributes or wrong answers."""
    sought, found = split.caption_image_ids, shown.similarities.first_answer.tolist()
    errors = attribute_errors(values, split.image_pids, sought, found)
    sections = []
    if errors.names and len(errors.queries):
        band = curve_interval(errors.differs.astype(np.float64), np.asarray(split.caption_pids)[errors.queries])
        figure = attribute_bars(errors.names, errors.differs.mean(axis=0), errors.chance, band.low, band.high)
        note = (
            f"The {len(errors.queries):,} of {len(sought):,} queries that {shown.label} answers wrongly at rank 1: how "
            "often each attribute of the person found differs from the person sought. Chance: any other person's image "
            "instead. Far left of chance: the model attends to it. At chance: it does not see it, or the "
            "captions do not tell."
        )
        alt = "Dot chart: how often each attribute of wrong first answers differs, with intervals, against chance."
        sections.append(Section("Confusion by attribute", note, [Chart("attributes", figure, alt)], half=True))
    charts = []
    for name in filter(CLOTHING_COLOUR.fullmatch, values):
        matrix = confusion([values[name][image] for image in sought], [values[name][image] for image in found])
        title = name.replace("_", " ").capitalize()
        alt = f"Matrix: {title} of the person sought against that of the first answer."
        charts.append(
            Chart(f"confusion-{name}".replace("_", "-"), confusion_matrix(matrix.labels, matrix.counts), alt, title)
        )
    if charts:
        note = (
            f"First answers of {shown.label}, right ones included: by row the colour of the person sought, by column "
            "that of the person found, in percent of the row. Green: the same colour."
        )
        sections.append(Section("Colours of clothing", note, charts, half=True))
    return sections


def curves_section(models: Sequence[Examined]) -> list[Section]:
    """Learning curves of the models that recorded any."""
    trained = [shown for shown in models if shown.events]
    charts = [
        curves_chart(shown.events, f"learning-curves-{number}", shown.label)
        for number, shown in enumerate(trained, start=1)
    ]
    return [Section("Learning curves", charts=charts, half=len(charts) == 1)] if charts else []
