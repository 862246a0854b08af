"""RDE against golden values of the released code (`weights.py` holds the rule behind its weights)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from golden import Golden
from torch import Tensor

from cskt import losses
from cskt.config import LossConfig, MlmConfig, OptimConfig, TokenSelectionConfig, load_config
from cskt.model.dual_encoder import DualEncoder
from cskt.model.folded import fold_text, fold_vision
from cskt.model.heads import embed
from cskt.model.io.released.methods import released_name, unused_shapes
from cskt.model.parts import TokenSelection, token_selection
from cskt.training.objective import ModelInputs, Objective, encode
from cskt.training.optim import build_optimizer

FEATURES = {
    "bge": ("bge_image_features", "bge_text_features"),
    "tse": ("tse_image_embeddings_train", "tse_text_embeddings_train"),
}
"""Branch -> its images and captions, in training mode."""
LOSS_NAMES = {"bge_loss": "tal", "tse_loss": "tse_tal"}
EMBEDDINGS = {"vision": "tse_image_embeddings", "text": "tse_text_embeddings"}
ROWS = {"vision": "image_token_rows", "text": "text_token_rows"}


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden.read("rde_a")


class Case:
    """The model of the case, with its losses and its optimizer."""

    def __init__(self, golden: Golden, *, train_mode_after_division: bool = True) -> None:
        figures = golden.figures
        self.golden = golden
        config = TokenSelectionConfig(figures["select_ratio"], train_mode_after_division=train_mode_after_division)
        self.model = DualEncoder(golden.architecture, {"tse": config}, trainable="all")
        golden.fill(self.model)
        weights = dict.fromkeys(LOSS_NAMES.values(), 1.0)
        constants = {"tal_temperature": figures["tau"], "tal_margin": figures["margin"]}
        self.objective = Objective(LossConfig(weights, **constants), MlmConfig(), golden.architecture, 1)
        self.inputs = ModelInputs(golden.images(), golden.ids("caption_ids"))

    @property
    def head(self) -> TokenSelection:
        head = self.model.heads["tse"]
        assert isinstance(head, TokenSelection)
        return head

    def losses(self) -> dict[str, Tensor]:
        outputs = encode(self.model.train(), self.inputs, masked_for_all=False)
        pids = torch.tensor(self.golden.figures["pids"])
        found = self.objective(outputs, pids, torch.arange(len(pids)), heads=self.model.heads)
        return {theirs: found[ours] for theirs, ours in LOSS_NAMES.items()}

    def optimizer(self) -> torch.optim.Optimizer:
        return build_optimizer(self.model.named_parameters(), optim_of_recipe(), ["parts.tse."])


def optim_of_recipe() -> OptimConfig:
    return load_config("rde-released", fit=False).optim


@contextmanager
def selecting(monkeypatch: pytest.MonkeyPatch, golden: Golden, prefix: str = "") -> Iterator[None]:
    """The tokens that the case selects, with its own order of equal attention; those past the words do not count."""

    def recorded(side: str, attention: Tensor, mask: Tensor) -> Tensor:
        rows = golden.tensors[prefix + ROWS[side]].long()
        order = -torch.arange(1.0, 1 + rows.shape[1]) / (2 + rows.shape[1])
        scores = torch.full_like(attention, -5).scatter(1, rows, order.expand(len(rows), -1))
        return torch.where(mask & (scores > -5), scores + 2, scores)

    with monkeypatch.context() as context:
        context.setattr(token_selection, "selection_scores", recorded)
        yield


def test_features_embeddings_and_similarity(golden: Golden) -> None:
    model = Case(golden).model.eval()
    images, caption_ids = golden.images(), golden.ids("caption_ids")
    with torch.no_grad():
        outputs = {"vision": model.image_outputs(images), "text": model.text_outputs(caption_ids)}
        for side, name in {"vision": "bge_image_features", "text": "bge_text_features"}.items():
            torch.testing.assert_close(outputs[side].features, golden.tensors[name], rtol=1e-4, atol=1e-5)
            found = outputs[side]
            embeddings = embed(
                "tse", model.heads["tse"], side, tokens=found.tokens, mask=found.mask, attention=found.attention
            )
            torch.testing.assert_close(embeddings, golden.tensors[EMBEDDINGS[side]], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            outputs["text"].attention, golden.tensors["text_eot_attention"], rtol=1e-4, atol=1e-6
        )
        similarity = model.encode_text(caption_ids) @ model.encode_image(images).T
        folded = fold_text(model)(caption_ids) @ fold_vision(model)(images).T
    for found in (similarity, folded):
        torch.testing.assert_close(found, golden.tensors["similarity"], rtol=1e-4, atol=1e-6)


def test_the_released_tokens_are_selected(golden: Golden) -> None:
    case = Case(golden)
    with torch.no_grad():
        outputs = {
            "vision": case.model.image_outputs(golden.images()),
            "text": case.model.text_outputs(golden.ids("caption_ids")),
        }
    for side, found in outputs.items():
        number = case.head.num_selected[side]
        scores, rows = token_selection.selection_scores(side, found.attention, found.mask).topk(number, dim=1)
        expected = golden.tensors[ROWS[side]].long()
        words = scores >= 0  # beyond the words, the order of equal attention is a rule of each program
        assert rows.shape == expected.shape and words.sum() > 100 - 80 * (side == "text")
        assert torch.equal(rows[words], expected[words])
    assert all(len(set(row)) == len(row) for row in rows.tolist())


def test_training_mode(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    case, figures = Case(golden), golden.figures
    with selecting(monkeypatch, golden):
        found = case.losses()
        sum(found.values()).backward()
    assert {name: loss.item() for name, loss in found.items()} == pytest.approx(figures["losses"], rel=1e-4)
    case.golden.check_gradients(case.model.named_parameters(), without=figures["zero_gradient_but_for_rounding"])
    buffers = {released_name(name): value for name, value in case.model.named_buffers()}
    for name, value in buffers.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, golden.tensors[f"after_one_forward.{name}"], rtol=1e-4, atol=1e-6)
        else:
            assert value == 1
    optimizer = case.optimizer()
    optimizer.step()
    with selecting(monkeypatch, golden, "after_step_"):
        after = {name: loss.item() for name, loss in case.losses().items()}
    assert after == pytest.approx(figures["losses_after_one_adam_step"], rel=1e-4)


def test_ties_go_to_the_lowest_index(golden: Golden) -> None:
    case, expected = Case(golden), golden.figures["ties_lowest_index_first"]
    found = case.losses()
    sum(found.values()).backward()
    assert {name: loss.item() for name, loss in found.items()} == pytest.approx(expected["losses"], rel=1e-4)
    case.optimizer().step()
    after = {name: loss.item() for name, loss in case.losses().items()}
    assert after == pytest.approx(expected["losses_after_one_adam_step"], rel=1e-4)


def test_evaluation_mode_left_on(golden: Golden) -> None:
    case, expected = Case(golden, train_mode_after_division=False), golden.figures["eval_mode_left_on"]
    found = case.losses()
    sum(found.values()).backward()
    assert {name: loss.item() for name, loss in found.items()} == pytest.approx(expected["losses"], rel=1e-4)
    case.golden.check_gradients(case.model.named_parameters(), expected["grad_norms"])
    case.optimizer().step()
    after = {name: loss.item() for name, loss in case.losses().items()}
    assert after == pytest.approx(expected["losses_after_one_adam_step"], rel=1e-4)
    assert all(value == 0 for name, value in case.model.named_buffers() if name.endswith("tracked"))


def test_names_and_counts(golden: Golden) -> None:
    model, figures = Case(golden).model, golden.figures
    parameters = {released_name(name): parameter.numel() for name, parameter in model.named_parameters()}
    state = {released_name(name): list(value.shape) for name, value in model.state_dict().items()}
    added = {name: shape for name, shape in state.items() if not name.startswith("base_model.")}
    unused = {name: list(shape) for name, shape in unused_shapes("tse", golden.architecture).items()}
    assert added | unused == figures["shapes"] and not added.keys() & unused.keys()
    stored = [name for name in unused if not name.endswith(("running_mean", "running_var", "tracked"))]
    assert sorted(stored) == sorted(figures["no_gradient"])
    num_unused = sum(torch.Size(figures["shapes"][name]).numel() for name in stored)
    assert sum(parameters.values()) + num_unused == figures["total"] == figures["trainable"]
    assert model.num_parameters(trainable_only=True) == model.num_parameters()


def test_rates_and_decays_by_name(golden: Golden) -> None:
    case, figures = Case(golden), golden.figures["optimizer"]
    optimizer = case.optimizer()
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in case.model.named_parameters():
        theirs = released_name(name)
        rate = figures["lr"] * (figures["bias_lr_factor"] if "bias" in theirs else 1)
        rate = figures["lr_tse"] if "emb_layer" in theirs else rate
        decay = figures["weight_decay_bias"] if "bias" in theirs else figures["weight_decay"]
        assert rates[id(parameter)] == pytest.approx((rate, decay), rel=1e-12), name
    defaults: dict[str, Any] = optimizer.defaults
    assert isinstance(optimizer, torch.optim.Adam) and not isinstance(optimizer, torch.optim.AdamW)
    assert (list(defaults["betas"]), defaults["eps"]) == (figures["betas"], figures["eps"])


def of_branch(golden: Golden, branch: str) -> tuple[Tensor, Tensor]:
    image_key, text_key = FEATURES[branch]
    return golden.tensors[image_key], golden.tensors[text_key]


@pytest.mark.parametrize("branch", FEATURES)
@pytest.mark.parametrize(
    ("name", "function"), [("TAL", losses.tal), ("TRL", losses.trl), ("InfoNCE", losses.itc), ("SDM", losses.sdm)]
)
def test_losses_of_pairs(golden: Golden, branch: str, name: str, function: Callable[..., Tensor]) -> None:
    identities = () if function is losses.itc else (torch.tensor(golden.figures["pids"]),)
    found = function(*of_branch(golden, branch), *identities, reduction="none")
    expected = golden.figures["per_pair_losses_train"][f"{name}_{branch}"]
    assert found.tolist() == pytest.approx(expected, rel=2e-6)


def test_losses_of_pairs_in_evaluation_mode(golden: Golden) -> None:
    pids = torch.tensor(golden.figures["pids"])
    for branch, names in {"bge": FEATURES["bge"], "tse": tuple(EMBEDDINGS.values())}.items():
        found = losses.tal(*(golden.tensors[name] for name in names), pids, reduction="none")
        assert found.tolist() == pytest.approx(golden.figures["per_pair_losses_eval"][f"TAL_{branch}"], rel=2e-6)


@pytest.mark.parametrize("branch", FEATURES)
@pytest.mark.parametrize(
    ("key", "weights"), [("losses", [1.0, 1.0, 1.0, 1.0]), ("losses_without_pair_1", [1.0, 0.0, 1.0, 1.0])]
)
def test_weighted_loss_of_a_batch(golden: Golden, branch: str, key: str, weights: list[float]) -> None:
    pids = torch.tensor(golden.figures["pids"])
    found = losses.tal(*of_branch(golden, branch), pids, pair_weights=torch.tensor(weights))
    assert found.item() == pytest.approx(golden.figures[key][f"{branch}_loss"], rel=2e-6)
