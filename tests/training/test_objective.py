"""The weighted losses of a batch and the classifier of the id loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cskt import losses
from cskt.config import LossConfig, MlmConfig
from cskt.data.masking import MaskedCaptions, mask_tokens
from cskt.data.tokenizer import Tokenizer
from cskt.errors import CsktError
from cskt.training.objective import ModelInputs, ModelOutputs, Objective, encode
from tiny_run import ARCHITECTURE, HEIGHT, WIDTH, plain_clip

PIDS = torch.tensor([0, 1, 1, 3])
IMAGE_IDS = torch.tensor([4, 7, 7, 2])
DIM = ARCHITECTURE.embed_dim


def features(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(4, DIM, generator=torch.Generator().manual_seed(seed)).to(dtype)


def ready(config: LossConfig, seed: int = 0, depth: int = 1) -> Objective:
    objective = Objective(config, MlmConfig(cmt_depth=depth), ARCHITECTURE, num_identities=5)
    objective.initialise(torch.Generator().manual_seed(seed))
    return objective


def losses_of(objective: Objective, image_features: Tensor, text_features: Tensor) -> dict[str, Tensor]:
    return objective(ModelOutputs(image_features, text_features), PIDS, IMAGE_IDS)


def test_losses_are_those_of_the_pure_functions_with_the_configs_constants() -> None:
    weights = {"sdm": 1.0, "itc": 0.5, "triplet": 2.0, "cmpm": 0.0, "tal": 1.0}
    config = LossConfig(
        weights=weights, temperature=0.1, margin=0.3, tal_temperature=0.2, tal_margin=0.4, sdm_other_image=0.3
    )
    found = losses_of(ready(config), features(0), features(1))
    expected = {
        "sdm": losses.sdm(features(0), features(1), PIDS, temperature=0.1, image_ids=IMAGE_IDS, other_image=0.3),
        "itc": losses.itc(features(0), features(1), temperature=0.1),
        "triplet": losses.triplet(features(0), features(1), margin=0.3),
        "cmpm": losses.cmpm(features(0), features(1), PIDS),
        "tal": losses.tal(features(0), features(1), PIDS, temperature=0.2, margin=0.4),
    }
    assert {name: value.item() for name, value in found.items()} == {k: v.item() for k, v in expected.items()}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(21), r"loss 'itc' returned shape \[21\] of torch.float32; expected a scalar tensor of floats"),
        (torch.ones(1), r"loss 'itc' returned shape \[1\] of"),
        (torch.tensor(1), r"loss 'itc' returned shape \[\] of torch.int64"),
        (0.5, "loss 'itc' returned float; expected a scalar"),
        (None, "loss 'itc' returned NoneType; expected a scalar"),
    ],
)
def test_a_loss_that_returns_no_scalar_is_refused(value: object, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses.ITCLoss, "forward", lambda self, inputs: value)
    with pytest.raises(CsktError, match=message):
        losses_of(ready(LossConfig(weights={"sdm": 1.0, "itc": 1.0})), features(0), features(1))


def test_losses_have_the_parameters_that_they_need() -> None:
    others = dict.fromkeys(losses.LOSSES.keys() - {"id", "mlm", "nitc", "ritc", "simclr"}, 1.0)
    assert list(ready(LossConfig(weights=others)).parameters()) == []
    for name in ("nitc", "ritc"):
        objective = ready(LossConfig(weights={name: 1.0}, logit_scale=20.0))
        assert [each for each, _ in objective.named_parameters()] == ["logit_scale"]
        assert objective.scale().item() == pytest.approx(20)
    named = dict(ready(LossConfig(weights={"simclr": 1.0})).named_parameters())
    assert {name: tuple(value.shape) for name, value in named.items()} == {
        "losses.simclr.mlp.0.weight": (128, DIM), "losses.simclr.mlp.0.bias": (128,),
        "losses.simclr.mlp.2.weight": (DIM, 128), "losses.simclr.mlp.2.bias": (DIM,),
    }  # fmt: skip
    words = [name for name, _ in ready(LossConfig(weights={"mlm": 1.0})).named_parameters()]
    assert words and all(name.startswith("interaction.") for name in words)
    named = dict(ready(LossConfig(weights={"sdm": 1.0, "id": 1.0})).named_parameters())
    assert {name: tuple(value.shape) for name, value in named.items()} == {
        "classifier.weight": (5, DIM),
        "classifier.bias": (5,),
    }


def test_one_classifier_reads_both_sides() -> None:
    objective = ready(LossConfig(weights={"id": 1.0}))
    assert objective.classifier is not None
    with torch.no_grad():
        objective.classifier.weight.normal_(generator=torch.Generator().manual_seed(5))
    logits = [side @ objective.classifier.weight.T + objective.classifier.bias for side in (features(0), features(1))]
    expected = sum(torch.nn.functional.cross_entropy(side, PIDS) for side in logits) / 2
    assert losses_of(objective, features(0), features(1))["id"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_classifier_starts_near_zero_by_its_generator() -> None:
    config = LossConfig(weights={"id": 1.0})
    first, second, other = ready(config, 3).classifier, ready(config, 3).classifier, ready(config, 4).classifier
    assert first is not None and second is not None and other is not None
    assert torch.equal(first.weight, second.weight) and not torch.equal(first.weight, other.weight)
    assert 0 < first.weight.std() < 0.002 and not first.bias.any()
    loss = losses_of(ready(config), features(0), features(1))["id"]
    assert loss.item() == pytest.approx(math.log(5), abs=0.01), "all people are equally likely"


def test_half_precision_features_give_float32_losses() -> None:
    config = LossConfig(weights={"sdm": 1.0, "itc": 1.0})
    rounded = losses_of(ready(config), features(0, torch.bfloat16), features(1, torch.bfloat16))
    expected = losses_of(ready(config), features(0, torch.bfloat16).float(), features(1, torch.bfloat16).float())
    for name, value in rounded.items():
        assert value.dtype == torch.float32 and torch.equal(value, expected[name])


# --- what the model makes of a batch


def batch_of(captions_per_image: int) -> tuple[Tensor, Tensor, MaskedCaptions]:
    """Two images, `captions_per_image` captions for each, and these with most words masked."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(2, 3, HEIGHT, WIDTH, generator=generator)
    captions = ["a man in a red coat", "a woman", "somebody who wears blue jeans and a cap", "a child"]
    caption_ids = Tokenizer()(captions[: 2 * captions_per_image])
    return images, caption_ids, mask_tokens(caption_ids, 0.7, generator)


@pytest.mark.parametrize("captions_per_image", [1, 2])
@torch.no_grad()
def test_without_masked_words_there_are_features_alone(captions_per_image: int) -> None:
    model, (images, caption_ids, _) = plain_clip(), batch_of(captions_per_image)
    outputs = encode(model, ModelInputs(images, caption_ids), masked_for_all=False)
    assert outputs.image_tokens is None and outputs.text_tokens is None and outputs.mlm_labels is None
    assert torch.equal(outputs.text_features, model.encode_text(caption_ids))
    for row, feature in enumerate(outputs.image_features):
        torch.testing.assert_close(feature, model.encode_image(images)[row // captions_per_image])


@pytest.mark.parametrize("captions_per_image", [1, 2])
@pytest.mark.parametrize("masked_for_all", [False, True])
@torch.no_grad()
def test_masked_words_give_tokens_and_the_features_of_the_chosen_captions(
    masked_for_all: bool, captions_per_image: int
) -> None:
    model, (images, caption_ids, masked) = plain_clip(), batch_of(captions_per_image)
    assert not torch.equal(masked.ids, caption_ids)
    outputs = encode(model, ModelInputs(images, caption_ids, masked), masked_for_all=masked_for_all)
    expected = model.encode_text(masked.ids if masked_for_all else caption_ids)
    torch.testing.assert_close(outputs.text_features, expected)
    assert outputs.image_tokens is not None and outputs.text_tokens is not None
    rows = torch.arange(len(caption_ids)) // captions_per_image
    torch.testing.assert_close(outputs.image_features, model.encode_image(images)[rows])
    hidden = model.vision(images)
    torch.testing.assert_close(outputs.image_tokens, (model.vision.ln_post(hidden) @ model.vision.proj)[rows])
    words = model.text(model.text.place(masked.ids, 0))
    torch.testing.assert_close(outputs.text_tokens, model.text.ln_final(words) @ model.text.proj)
    assert outputs.mlm_labels is not None and outputs.mlm_positions is not None
    asked = torch.zeros(masked.labels.numel(), dtype=torch.int64)
    asked[outputs.mlm_positions] = outputs.mlm_labels
    assert torch.equal(asked.view_as(masked.labels), masked.labels)


def test_mlm_guesses_the_masked_words_from_the_tokens() -> None:
    objective = ready(LossConfig(weights={"mlm": 1.0}))
    with torch.no_grad():
        outputs = encode(plain_clip(), ModelInputs(*batch_of(2)), masked_for_all=False)
    assert objective.interaction is not None
    logits = objective.interaction(outputs.text_tokens, outputs.image_tokens, outputs.mlm_positions)
    expected = torch.nn.functional.cross_entropy(logits, outputs.mlm_labels)
    found = objective(outputs, PIDS, IMAGE_IDS)["mlm"]
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
