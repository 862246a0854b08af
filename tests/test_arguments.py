"""Wrong arguments of the public functions: a wrong value is a CsktError, a wrong type a TypeError that names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cskt
from cskt import losses
from cskt.data.datasets import DATASETS
from cskt.errors import CsktError

EYE, PIDS = torch.eye(4), torch.arange(4)


@pytest.fixture(scope="module")
def encoder(tiny_backbone: Path) -> cskt.Encoder:
    return cskt.load(tiny_backbone, device="cpu", num_workers=0)


VALUES: dict[str, Callable[[], object]] = {
    "sdm without image_ids": lambda: losses.sdm(EYE, EYE, PIDS, other_image=0.3),
    "sdm at temperature 0": lambda: losses.sdm(EYE, EYE, PIDS, temperature=0),
    "sdm of other identities": lambda: losses.sdm(EYE, EYE, PIDS[:3]),
    "sdm_at_collapse of no pair": lambda: losses.sdm_at_collapse(PIDS[:0]),
    "itc of another batch": lambda: losses.itc(EYE, EYE[:3]),
    "itc of no pair": lambda: losses.itc(EYE[:0], EYE[:0]),
    "itc at temperature nan": lambda: losses.itc(EYE, EYE, temperature=float("nan")),
    "cmpm with epsilon 0": lambda: losses.cmpm(EYE, EYE, PIDS, epsilon=0),
    "tal of vectors": lambda: losses.tal(EYE[0], EYE[0], PIDS),
    "triplet of other widths": lambda: losses.triplet(EYE, EYE[:, :3]),
    "identity beyond the classes": lambda: losses.identity(EYE, EYE, PIDS + 1),
    "mlm of float labels": lambda: losses.mlm(EYE, EYE[0]),
    "inputs of other identities": lambda: losses.LossInputs(EYE, EYE, PIDS[:3]),
    "total without a weight": lambda: losses.weighted_total({"itc": EYE[0, 0]}, {}),
    "an unknown loss": lambda: losses.build_losses("sdn", cskt.RunConfig().loss),
    "batch_size 1.5": lambda: cskt.load("clip-tiny", batch_size=1.5),  # type: ignore[arg-type]
    "batch_size as text": lambda: cskt.load("clip-tiny", batch_size="a"),  # type: ignore[arg-type]
    "an unknown recipe": lambda: cskt.train("nothing"),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_wrong_value_is_an_error_of_the_caller(name: str) -> None:
    with pytest.raises(CsktError):
        VALUES[name]()


TYPES: dict[str, Callable[[], object]] = {
    "path must be str": lambda: cskt.load(None),  # type: ignore[arg-type]
    "device must be str": lambda: cskt.load("clip-tiny", device=5),  # type: ignore[arg-type]
    "templates must be str": lambda: cskt.load("clip-tiny", templates=5),  # type: ignore[arg-type]
    "a recipe must be str": lambda: cskt.load_config(None),  # type: ignore[arg-type]
    "overrides must be Mapping": lambda: cskt.load_config("cskt", 5),  # type: ignore[arg-type]
    "name must be str": lambda: cskt.read_dataset(5, "."),  # type: ignore[arg-type]
    "model must be Encoder": lambda: cskt.evaluate(None),  # type: ignore[arg-type]
    "folder must be str": lambda: cskt.train("demo", 5),  # type: ignore[arg-type]
    "encoder must be Encoder": lambda: cskt.Gallery.create("g", "clip-tiny"),  # type: ignore[arg-type]
    "group_by must be str": lambda: cskt.SearchOptions(group_by=5),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("message", TYPES)
def test_a_wrong_type_names_the_argument(message: str) -> None:
    with pytest.raises(TypeError, match=message):
        TYPES[message]()


@pytest.mark.parametrize("captions", [5, None, b"a", Path("a"), [5]])
def test_captions_of_another_type_are_named(encoder: cskt.Encoder, captions: Any) -> None:
    with pytest.raises(TypeError, match="captions must be str"):
        encoder.encode_text(captions)


@pytest.mark.parametrize("images", [5, None, [5], np.zeros((2, 3, 128, 64)), [EYE], bytearray(b"a")])
def test_images_of_another_type_are_named(encoder: cskt.Encoder, images: Any) -> None:
    with pytest.raises(TypeError, match="images must be str or bytes or Path or Image, got .*Image.fromarray"):
        encoder.encode_image(images)


@pytest.mark.parametrize("length", [0, 1, 78])
def test_ids_of_another_length_are_refused(encoder: cskt.Encoder, length: int) -> None:
    with pytest.raises(CsktError, match="the model reads 2 to "):
        encoder.encode_text(torch.full((1, length), encoder.model.architecture.vocab_size - 1))


@pytest.mark.parametrize("words", [[], [5, 3]])
def test_ids_that_begin_with_the_end_token_are_refused(encoder: cskt.Encoder, words: list[int]) -> None:
    end_id = encoder.model.architecture.vocab_size - 1
    right, wrong = [end_id - 1, end_id, 0], [end_id, *(words or [0, 0])]
    with pytest.raises(CsktError, match=f"caption ids must begin with the start token {end_id - 1}, not with the end"):
        encoder.encode_text(torch.tensor([right, wrong]))


@pytest.mark.parametrize("resume", ["auto", 1.5, 2])
def test_another_choice_of_resuming_is_refused(resume: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="resume is .*; give True, False, None or a Resume"):
        cskt.train(cskt.load_config("demo"), tmp_path / "run", resume=resume)


def test_every_file_of_a_data_set_is_imported() -> None:
    files = (Path(cskt.__file__).parent / "data" / "datasets").glob("*.py")
    assert {path.stem.replace("_", "-") for path in files} - {"--init--", "base"} <= set(DATASETS)
