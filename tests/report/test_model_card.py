"""The model card: names of others are text in it, neither Markdown nor YAML."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import yaml

from cskt import __version__
from cskt.evaluation.results import METRICS, Result
from cskt.report.model_card import CardFacts, model_card

NAME = "a [link](evil) | b <img src=x>\n---\n# c `d` *e*: {f}"
MARKDOWN = r"a \[link\](evil) \| b \<img src=x> --- # c \`d\` \*e\*: {f}"
PLAIN = " ".join(NAME.split())
CODE = PLAIN.replace("`", "'")

FACTS = CardFacts(
    repository="lab/cskt", version=__version__, name="first", form="method", backbone="clip.pt", backbone_sha256="ab",
    backbone_is_public=False, knows_few_words=False, image_size="384 x 128", method=["prompts"], losses={"sdm": 1},
    datasets=["cuhk-pedes"], selected_on="val", seed=1, epoch=2, num_people=3, num_pairs=4, trainable_parameters=5,
    total_parameters=6, training_seconds=7, needed_plugins=[], training_plugins=[], files=[], license=None,
)  # fmt: skip


def result(**changes: Any) -> Result:
    """One query, whose right image is first."""
    summary = dict.fromkeys(METRICS, 1.0) | {"num_queries": 1, "num_gallery": 1, "num_unmatched_queries": 0}
    return Result(
        **({"dataset": "dolls", "split": "test", "label": "cskt"} | changes), split_sha256="ab" * 32,
        metrics={"t2i": summary, "i2t": summary}, query_pids=np.array([1]), first_right_rank=np.array([1]),
        average_precision=np.ones(1), inverse_negative_penalty=np.ones(1),
    )  # fmt: skip


def parts_of(card: str) -> tuple[dict[str, Any], str]:
    """Split a card as its readers do: at the lines of three hyphens."""
    before, metadata, text = card.split("---\n", 2)
    assert before == ""
    return yaml.safe_load(metadata), text


@pytest.mark.parametrize("backbone_is_public", [True, False])
def test_names_are_literal_text(backbone_is_public: bool) -> None:
    names = [NAME]
    facts = dataclasses.replace(
        FACTS, name=NAME, backbone=NAME, backbone_is_public=backbone_is_public, method=names, losses={NAME: 1},
        datasets=names, needed_plugins=names, training_plugins=names, files=[(NAME, 1, "ab")], license=NAME,
    )  # fmt: skip
    metadata, text = parts_of(model_card(facts, [result(dataset=NAME, note=NAME)]))
    assert f"\n# {MARKDOWN}\n" in text
    for row in (
        f"| {MARKDOWN} test: 1 captions, 1 images; {MARKDOWN} |", f"| method | {MARKDOWN} |",
        f"| backbone | {MARKDOWN} |", f"| losses | {MARKDOWN} 1 |", f"| data set | {MARKDOWN}, 3 people",
        f"| plug-ins, for training only | {MARKDOWN} |", f"the plug-in {MARKDOWN}, which", f"`{CODE}`",
        f"These weights: `{CODE}`",
    ):  # fmt: skip
        assert row in text
    assert "[link](evil)" not in text.replace(f"`{CODE}`", "").replace(MARKDOWN, "")
    assert metadata["license"] == PLAIN
    [model] = metadata["model-index"]
    assert (model["name"], model["results"][0]["dataset"]["type"]) == (PLAIN, PLAIN)


def test_unknown_image_size_is_stated_without_pixels() -> None:
    _, text = parts_of(model_card(dataclasses.replace(FACTS, image_size=""), []))
    assert "| images | unknown |" in text
    assert "takes crops of one person; it does not detect people." in text
    _, text = parts_of(model_card(FACTS, []))
    assert "| images | 384 x 128 pixels |" in text
    assert "crops of one person, resized to 384 x 128 pixels (height x width); it does not detect people." in text


def test_card_of_a_method_says_that_it_needs_the_backbone() -> None:
    _, text = parts_of(model_card(FACTS, []))
    assert "The repository holds what was trained; the model needs its backbone as well." in text
