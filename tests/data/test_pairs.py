"""Pairs of a split for PyTorch's own DataLoader, and the training loop of the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Subset

import cskt
from cskt.config import AugmentConfig
from cskt.data.images import normalise
from cskt.data.records import Split
from cskt.embed import Built
from cskt.errors import CsktError
from tiny_run import quick_config

PAGE = Path(__file__).parents[2] / "docs" / "training.md"


@pytest.fixture(scope="module")
def built(dolls: Path, tiny_backbone: Path) -> Built:
    return cskt.build(quick_config(dolls, tiny_backbone))


@pytest.fixture(scope="module")
def split(dolls: Path) -> Split:
    return cskt.read_dataset("cuhk-pedes", dolls)["train"]


def test_every_pair_is_the_image_and_caption_of_the_split(built: Built, split: Split) -> None:
    pairs = cskt.PairDataset(split, built.tokenizer, built.model.architecture)
    architecture, encoder = built.model.architecture, cskt.Encoder(built.model, built.tokenizer, device="cpu")
    people = sorted({record.pid for record in split.records})
    expected = [(number, record, text) for number, record in enumerate(split.records) for text in record.captions]
    assert len(pairs) == len(expected) and pairs.num_identities == len(people)
    for index, (image_id, record, caption) in enumerate(expected):
        pair = pairs[index]
        pixels = encoder.read_image(record.image_path)[None]
        wanted = normalise(pixels, architecture.image_mean, architecture.image_std)[0]
        torch.testing.assert_close(pair["images"], wanted)
        (ids,) = built.tokenizer([caption])
        assert torch.equal(pair["caption_ids"][: len(ids)], ids) and not pair["caption_ids"][len(ids) :].any()
        assert (int(pair["pids"]), int(pair["image_ids"])) == (people.index(record.pid), image_id)
    assert torch.equal(pairs[-1]["caption_ids"], pairs[len(pairs) - 1]["caption_ids"])
    with pytest.raises(IndexError):
        pairs[len(pairs)]


def test_augmentation_follows_the_random_numbers_of_torch(built: Built, split: Split) -> None:
    pairs = cskt.PairDataset(split, built.tokenizer, built.model.architecture, AugmentConfig(pad_pixels=4))
    torch.manual_seed(1)
    first, second = pairs[0]["images"], pairs[0]["images"]
    torch.manual_seed(1)
    assert torch.equal(pairs[0]["images"], first) and not torch.equal(first, second)


def test_a_plain_loop_learns_and_the_result_is_saved(built: Built, split: Split, tmp_path: Path) -> None:
    model = built.model
    pairs = cskt.PairDataset(split, built.tokenizer, model.architecture)
    loss = cskt.losses.SDMLoss(temperature=0.1)
    assert isinstance(loss, torch.nn.Module)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    frozen = model.vision.conv1.weight.clone()
    torch.manual_seed(0)
    values = []
    for batch in DataLoader(Subset(pairs, range(0, len(pairs), 2)), batch_size=len(pairs)):
        for _ in range(10):
            features = model(batch["images"], batch["caption_ids"])
            value = loss(cskt.losses.LossInputs(*features, batch["pids"], batch["image_ids"]))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            values.append(value.item())
    assert values[-1] < 0.9 * values[0] and torch.equal(model.vision.conv1.weight, frozen)
    encoder = cskt.Encoder(model, built.tokenizer, device="cpu")
    assert cskt.load(encoder.save(tmp_path / "own.safetensors"), device="cpu").fingerprint == encoder.fingerprint


@pytest.mark.slow
def test_the_loop_of_the_documentation_runs(dolls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(dolls)
    section = PAGE.read_text(encoding="utf-8").split("## A training loop of your own")[1]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found
    exec(found.group(1), {})
    assert cskt.load("own.safetensors", device="cpu").model.method.keys() == {"prompts", "adapters"}


@pytest.mark.parametrize(
    "changes", [{"caption_mask_probability": 0.1}, {"word_drop_probability": 0.1}, {"text_attention_dropout": 0.1}]
)
def test_augmentation_that_it_would_not_apply_is_refused(built: Built, split: Split, changes: dict[str, float]) -> None:
    with pytest.raises(CsktError, match=f"augment.{next(iter(changes))} changes captions or adds views"):
        cskt.PairDataset(split, built.tokenizer, built.model.architecture, AugmentConfig(**changes))  # type: ignore[arg-type]


def test_wrong_arguments_are_named(built: Built, split: Split) -> None:
    with pytest.raises(TypeError, match=r"split must be Split.*cskt\.read_dataset"):
        cskt.PairDataset("train", built.tokenizer, built.model.architecture)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"config must be RunConfig"):
        cskt.build("demo")  # type: ignore[arg-type]
