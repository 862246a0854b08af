"""DM-Adapter against a second implementation: one token and one expert at a time."""

from __future__ import annotations

from typing import Any

import naive_clip
import pytest
import tiny_clip
import torch
from torch import Tensor

from cskt import losses
from cskt.config import ClipArchitecture, LossConfig, load_config
from cskt.errors import CsktError
from cskt.losses import LossInputs, build_losses
from cskt.model.dual_encoder import DualEncoder
from cskt.model.folded import fold_text, fold_vision
from cskt.model.parts.base import SIDES
from cskt.model.parts.dm_adapter import ExpertAdapters
from cskt.training.objective import ModelInputs, encode

SIZES = ClipArchitecture(
    embed_dim=6, image_height=16, image_width=12, patch_size=4, stride=4, vision_width=24, vision_layers=2,
    vision_heads=2, text_width=16, text_layers=2, text_heads=2, context_length=15, vocab_size=30,
)  # fmt: skip
NUM_EXPERTS = 5


def model_of(**settings: Any) -> DualEncoder:
    model = DualEncoder(SIZES, {"dm_adapter": {"num_experts": NUM_EXPERTS, "reduction": 4} | settings})
    model.initialise_backbone(torch.Generator().manual_seed(0))
    model.initialise_method(torch.Generator().manual_seed(1))
    return model


def trained(**settings: Any) -> DualEncoder:
    """Every number random, in float64."""
    model, generator = model_of(**settings), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return model.double()


def batch() -> tuple[Tensor, Tensor]:
    return tiny_clip.random_images(3, SIZES.image_height, SIZES.image_width).double(), tiny_clip.random_captions(30, 15)


def token_naively(module: ExpertAdapters, x: Tensor) -> tuple[Tensor, list[float], list[int]]:
    """[width] -> [width], probabilities of all experts, the chosen ones."""
    z = x * module.norm.weight + module.norm.bias
    own, of_task = module.input_gate.weight @ z, module.task_gate.weight @ module.task
    logits = [(1 - module.alpha) * own[e] + module.alpha * of_task[e] for e in range(len(own))]
    total = sum(logit.exp() for logit in logits)
    chosen = sorted(range(len(own)), key=lambda e: -logits[e].item())[: module.topk]
    of_chosen = sum(logits[e].exp() for e in chosen)
    out = torch.zeros_like(x)
    for e in chosen:
        expert = module.experts[e]
        hidden = torch.clamp(expert.down.weight @ z + expert.down.bias, min=0)
        out = out + logits[e].exp() / of_chosen * (expert.up.weight @ hidden + expert.up.bias)
    return module.scale * out, [(logit.exp() / total).item() for logit in logits], chosen


def naively(model: DualEncoder) -> tuple[Tensor, Tensor]:
    def beside(module: ExpertAdapters) -> Any:
        return lambda tokens: torch.stack([token_naively(module, x)[0] for x in tokens])

    added = {
        (side, index, "beside_mlp"): beside(module)
        for side in SIDES
        for index, module in enumerate(getattr(model.parts["dm_adapter"], side))
    }
    return naive_clip.features(dict(model.state_dict()), SIZES, *batch(), added=added)


@pytest.mark.parametrize("topk", [1, 2, NUM_EXPERTS])
def test_features_and_gradients_are_those_of_the_plain_wiring(topk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images, caption_ids = trained(topk=topk), *batch()
    expected = naively(model)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    wanted = torch.autograd.grad(sum(f.square().sum() for f in expected), named.values(), materialize_grads=True)
    for in_graph in (False, True):  # exports compute every expert
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda in_graph=in_graph: in_graph)
        found = model(images, caption_ids)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        gradients = torch.autograd.grad(sum(f.square().sum() for f in found), named.values())
        for name, gradient, value in zip(named, gradients, wanted, strict=True):
            torch.testing.assert_close(gradient, value, rtol=1e-8, atol=1e-9, msg=name)
    for inferred, value, plain in zip(
        (fold_vision(model, torch.float64)(images), fold_text(model, torch.float64)(caption_ids)),
        expected,
        model.bare()(images, caption_ids),
        strict=True,
    ):
        torch.testing.assert_close(inferred.double(), value.detach(), rtol=1e-5, atol=1e-5)
        assert (value - plain).abs().max() > 1e-3


def test_an_expert_computes_its_own_tokens_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    module, seen = trained().parts["dm_adapter"].vision[0], []
    linear = torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", lambda x, *more: seen.append(len(x)) or linear(x, *more))
    tokens = torch.randn(4, 13, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    module(tokens)
    chosen = [e for x in tokens.flatten(0, 1) for e in token_naively(module, x)[2]]
    assert seen[-NUM_EXPERTS:] == [chosen.count(e) for e in range(NUM_EXPERTS)]


def test_recomputed_activations_change_no_gradient_and_unchosen_experts_have_zeros() -> None:
    model, gradients = trained(topk=1), []
    with torch.no_grad():
        model.parts["dm_adapter"].text[0].task_gate.weight[2] = -1e3 * model.parts["dm_adapter"].text[0].task
        model.parts["dm_adapter"].text[0].alpha.fill_(0.5)
    for recompute in (False, True):
        model.checkpoint_activations(recompute)
        model.zero_grad()
        sum(features.square().sum() for features in model(*batch())).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)
    unchosen = gradients[0]["parts.dm_adapter.text.0.experts.2.down.weight"]
    assert unchosen is not None and not unchosen.any(), "a gradient of zeros, so that the weights decay as released"


@torch.no_grad()
def test_balance_counts_every_token_of_every_block() -> None:
    model, (images, caption_ids) = trained(), batch()
    outputs = encode(model, ModelInputs(images, caption_ids), masked_for_all=False)
    inputs = LossInputs(
        outputs.image_features, outputs.text_features, torch.arange(3), extra={"other.text.x": images, **outputs.extra}
    )
    expected = 0.0
    for side in SIDES:
        seen: list[Tensor] = []
        modules = getattr(model.parts["dm_adapter"], side)
        hooks = [
            module.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0])) for module in modules
        ]
        if side == "vision":
            model.image_outputs(images)
        else:  # the start token passes the blocks by itself
            model.text_outputs(caption_ids)
            num_blocks = len(modules)
            seen = [torch.cat([start.expand(3, -1, -1), rest], 1)
                    for start, rest in zip(seen[:num_blocks], seen[num_blocks:], strict=True)]  # fmt: skip
        for module, tokens in zip(modules, seen, strict=True):
            probability, count, num_tokens = [0.0] * NUM_EXPERTS, [0] * NUM_EXPERTS, tokens.shape[:2].numel()
            assert num_tokens == 3 * (15 if side == "text" else 13)
            for x in tokens.flatten(0, 1):
                _, probabilities, chosen = token_naively(module, x)
                for e in range(NUM_EXPERTS):
                    probability[e] += probabilities[e] / num_tokens
                    count[e] += e in chosen
            products = [probability[e] * count[e] / num_tokens for e in range(NUM_EXPERTS)]
            expected += NUM_EXPERTS * sum(products) / NUM_EXPERTS
        for hook in hooks:
            hook.remove()
    found = build_losses("balance", LossConfig())["balance"](inputs)
    assert found.item() == pytest.approx(expected, rel=1e-6)


@torch.no_grad()
def test_training_starts_at_clip_with_the_released_values() -> None:
    model, (images, caption_ids) = model_of(), batch()
    for found, plain in zip(model(images.float(), caption_ids), model.bare()(images.float(), caption_ids), strict=True):
        assert torch.equal(found, plain)
    block = model.parts["dm_adapter"].vision[0]
    assert block.alpha == 0.5 and (block.norm.weight == 1).all() and not block.norm.bias.any()
    gates = torch.cat([block.input_gate.weight, block.task_gate.weight])
    assert gates.std() == pytest.approx(0.02, rel=0.15) and block.task.std() == pytest.approx(1, rel=0.4)
    assert 0.5 * 24**-0.5 < block.experts[0].down.weight.abs().max() <= 24**-0.5
    assert not any(p.any() for e in block.experts for p in (e.down.bias, e.up.weight, e.up.bias))


@torch.no_grad()
def test_in_bf16_the_router_still_computes_in_float32() -> None:
    block = model_of().parts["dm_adapter"].vision[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert block.record(torch.ones(1, 2, 24)).dtype == torch.float32
    images = batch()[0].float()
    exact, rounded = fold_vision(trained().float())(images), fold_vision(trained().float(), torch.bfloat16)(images)
    assert torch.cosine_similarity(exact, rounded).min() > 0.99


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_trains_in_fewer_bits(dtype: torch.dtype) -> None:
    model, (images, caption_ids) = trained().float(), batch()
    expected = model(images.float(), caption_ids)
    with torch.autocast("cpu", dtype):
        found = model(images.float(), caption_ids)
    for value, exact in zip(found, expected, strict=True):
        assert torch.cosine_similarity(value.float(), exact).min() > 0.99
    sum(value.float().square().sum() for value in found).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


# --- what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"topk": 6}, r"parts\.dm_adapter: topk 6 is above num_experts 5$"),
        ({"topk": 0}, r"parts\.dm_adapter: topk: .*greater than 0"),
        ({"num_experts": 0}, r"parts\.dm_adapter: num_experts: .*greater than 0"),
        ({"num_experts": 1}, r"parts\.dm_adapter: topk 2 is above num_experts 1$"),
        ({"reduction": 17}, r"^parts\.dm_adapter\.reduction 17 is above the text tower's width 16$"),
        ({"experts": 3}, r"parts\.dm_adapter: unknown key 'experts'"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CsktError, match=message) as caught:
        model_of(**settings)
    assert "\n" not in str(caught.value)


def test_balance_needs_experts_and_their_records() -> None:
    inputs = LossInputs(torch.eye(2), torch.eye(2), torch.arange(2))
    with pytest.raises(CsktError, match=r"the loss 'balance' needs a method part with experts, such as"):
        build_losses("balance", load_config("dm-adapter").loss)["balance"](inputs)
    with pytest.raises(CsktError, match=r"routing has shape \[2, 3\]; give \[B, blocks, 2, E\]"):
        losses.balance(torch.ones(2, 3))
