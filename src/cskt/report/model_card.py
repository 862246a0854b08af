"""The model card of a shared model (`cskt push`): a README.md with the metadata that the Hugging Face Hub reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from cskt.evaluation.comparison import Estimate, MethodResults
from cskt.evaluation.results import METRICS, Result
from cskt.report.numbers import METRIC_NAMES, duration, parameter_text, percent, size
from cskt.report.tables import markdown_cell
from cskt.utils.messages import one_line
from cskt.utils.terminal import printable

BASE_MODELS = {
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-L/14": "openai/clip-vit-large-patch14",
    "ViT-L/14@336px": "openai/clip-vit-large-patch14-336",
}
"""OpenAI's name of a backbone -> its repository on the Hub."""
TAGS = ("text-based-person-retrieval", "person-search", "image-text-retrieval", "clip", "cskt")
TASK = "image-text-retrieval"


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """Facts that a model card states; None or empty if unknown."""

    repository: str
    """`owner/name`, from which the model is loaded."""
    version: str
    """Version of cskt."""
    name: str
    """Name of the run."""
    form: str
    """`method`, `whole`, `onnx` or `openvino`; see `cskt.export.shared_folder`."""
    backbone: str
    backbone_sha256: str
    """Digest of the backbone file that a `method` needs."""
    backbone_is_public: bool
    """True if `cskt.load` finds the backbone by its name."""
    knows_few_words: bool
    """True if the model knows only generated pedestrians."""
    image_size: str
    """`384 x 128`, height by width in pixels; empty if unknown."""
    method: Sequence[str]
    """Names of the parts: `prompts`, `adapters`."""
    losses: Mapping[str, float]
    datasets: Sequence[str]
    """Training data sets by name."""
    selected_on: str
    seed: int | None
    epoch: int | None
    """The best epoch, whose weights these are."""
    num_people: int | None
    """Identities trained on."""
    num_pairs: int | None
    trainable_parameters: int | None
    total_parameters: int | None
    training_seconds: float | None
    needed_plugins: Sequence[str]
    """Plug-ins with method parts, without which the model cannot be loaded."""
    training_plugins: Sequence[str]
    """Plug-ins that only the training used."""
    files: Sequence[tuple[str, int, str]]
    """Name, size in bytes and SHA-256 of each file."""
    license: str | None
    """Identifier of the licence of these weights, as the Hub writes it: `mit`."""
    note: str = ""
    """A condition that a reader of the model's scores must know."""

    @property
    def base_model(self) -> str | None:
        """Repository of the backbone; None if it has none."""
        return BASE_MODELS.get(self.backbone) or (self.backbone if "/" in self.backbone else None)


def model_card(facts: CardFacts, results: Sequence[Result]) -> str:
    """Return a model card in Markdown, with metadata in YAML.

    Args:
        facts: about model and training.
        results: of this model, one for each split and way of ranking; their figures get 95 % intervals.
    """
    rows = [(result, MethodResults(result.label, (result,)).estimates()) for result in results]
    template = _environment().get_template("model_card.md.j2")
    return template.render(facts=facts, rows=rows, metrics=METRIC_NAMES, metadata=_metadata(facts, rows))


def _metadata(facts: CardFacts, rows: Sequence[tuple[Result, Mapping[str, Estimate]]]) -> str:
    evaluations = [
        EvalResult(
            task_type=TASK,
            task_name="Text-based person retrieval",
            dataset_type=_plain(result.dataset),
            dataset_name=_plain(f"{result.dataset} {result.split}" + (f", {result.note}" if result.note else "")),
            dataset_split=result.split,
            metric_type=METRIC_NAMES[metric].lower(),
            metric_name=METRIC_NAMES[metric],
            metric_value=round(100 * estimates[metric].mean, 2),
        )
        for result, estimates in rows
        for metric in METRICS
    ]
    relation = {"method": "adapter", "whole": "finetune"}.get(facts.form)
    data = ModelCardData(
        library_name="cskt",
        license=_plain(facts.license or "unknown"),
        language="en",
        tags=list(TAGS),
        base_model=facts.base_model,
        base_model_relation=relation if facts.base_model else None,
        model_name=_plain(facts.name) if evaluations else None,
        eval_results=evaluations or None,
    )
    return data.to_yaml()


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("cskt.report"),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "percent": percent, "duration": duration, "size": size, "cell": markdown_cell, "code": _code,
        "parameters": parameter_text,
    }  # fmt: skip
    return environment


def _code(text: str) -> str:
    """Return text on one line for a place between back-ticks, where a backslash does not escape."""
    return _plain(text).replace("`", "'")


def _plain(text: str) -> str:
    """Return text on one line; YAML quotes what it must, and a line of `---` would end the metadata."""
    return printable(one_line(text))
