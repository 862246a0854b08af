"""The token selection embedding of RDE against naive loops, for captions of every kind, in files and exports."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cskt.config import ClipArchitecture, TokenSelectionConfig
from cskt.errors import CsktError
from cskt.model.dual_encoder import DualEncoder
from cskt.model.folded import fold_text
from cskt.model.parts import TokenSelection
from cskt.model.parts.base import Side
from cskt.model.parts.token_selection import SelectionHead, selection_scores

SMALL = ClipArchitecture(
    embed_dim=12, image_height=64, image_width=32, patch_size=16, stride=16, vision_width=64, vision_layers=2,
    vision_heads=1, text_width=64, text_layers=2, text_heads=1, context_length=16, vocab_size=60,
)  # fmt: skip
START, END = 58, 59
CAPTIONS = [[START, END], [START, 7, END], [START, 7, 0, 9, END], [START, *range(1, 15), END], [START, 0, END]]
"""No word, one, an id 0 between words, as many as the context holds, and an id 0 alone."""


def padded(length: int = 16) -> Tensor:
    return torch.tensor([caption + [0] * (length - len(caption)) for caption in CAPTIONS])


def model_of(**config: Any) -> DualEncoder:
    generator = torch.Generator().manual_seed(0)
    model = DualEncoder(SMALL, {"tse": TokenSelectionConfig(**({"ratio": 0.3, "width": 10} | config))}, "all")
    model.initialise_backbone(generator)
    model.initialise_method(generator)
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            buffer.copy_(1 + torch.rand(buffer.shape, generator=generator) * (1 if name.endswith("var") else 0.2))
    return model


def head_of(model: DualEncoder) -> TokenSelection:
    head = model.heads["tse"]
    assert isinstance(head, TokenSelection)
    return head


def naive(head: SelectionHead, tokens: Tensor, chosen: list[list[int]], counted: list[int], train: bool) -> Tensor:
    """Embeddings of rows, one token at a time; batch statistics over the chosen tokens in training."""
    picked = [[tokens[row, place] for place in places] for row, places in enumerate(chosen)]
    units = [[token / (token.norm() + 1e-8) for token in row] for row in picked]
    hidden = [[head.first.weight @ unit + head.first.bias for unit in row] for row in units]
    every = torch.stack([one for row in hidden for one in row])
    mean = every.mean(dim=0) if train else head.norm.running_mean
    variance = ((every - mean) ** 2).mean(dim=0) if train else head.norm.running_var
    embeddings = []
    for row, number in zip(range(len(units)), counted, strict=True):
        values = []
        for unit, one in list(zip(units[row], hidden[row], strict=True))[:number]:
            normed = (one - mean) / (variance + 1e-5).sqrt() * head.norm.weight + head.norm.bias
            deep = head.second.weight @ normed.clamp(min=0) + head.second.bias
            values.append(deep + head.skip.weight @ unit + head.skip.bias)
        embeddings.append(torch.stack(values).max(dim=0).values)
    return torch.stack(embeddings)


def naive_choice(attention: list[float], ids: list[int] | None, number: int) -> tuple[list[int], int]:
    """Positions of one row in the order of their attention, and how many of them count; `ids` of a caption."""
    if ids is None:
        return sorted(range(1, len(attention)), key=lambda place: -attention[place])[:number], number
    end = ids.index(END)
    words = [place for place in range(1, end) if ids[place]] or [end]
    rest = [place for place in range(1, len(ids)) if not ids[place]]
    ordered = sorted(words, key=lambda place: -attention[place])
    return (ordered + rest)[:number], min(len(words), number)


@pytest.mark.parametrize("train", [False, True], ids=["evaluation", "training"])
def test_embeddings_equal_a_naive_loop(train: bool) -> None:
    model = model_of().train(train)
    head, ids = head_of(model), padded()
    images = torch.randn(3, 3, 64, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        outputs: dict[Side, Any] = {"vision": model.image_outputs(images), "text": model.text_outputs(ids)}
        for side, found in outputs.items():
            rows = ids.tolist() if side == "text" else [None] * 3
            number = head.num_selected[side]
            choices = [naive_choice(a, row, number) for a, row in zip(found.attention.tolist(), rows, strict=True)]
            chosen, counted = [choice[0] for choice in choices], [choice[1] for choice in choices]
            part = head.vision if side == "vision" else head.text
            expected = naive(part, found.tokens, chosen, counted, train)
            embeddings = head.embed(side, found.tokens, found.attention, found.mask)
            torch.testing.assert_close(embeddings, expected, rtol=1e-4, atol=1e-5)
            assert embeddings.isfinite().all()
    assert head.num_selected == {"vision": int(0.3 * 8), "text": int(0.3 * 14)}


def test_a_caption_does_not_depend_on_its_batch_and_needs_no_word() -> None:
    model = model_of().eval()
    with torch.no_grad():
        together = model.encode_text(padded())
        for row, caption in enumerate(CAPTIONS):
            alone = model.encode_text(torch.tensor([caption]))
            torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(
                fold_text(model)(torch.tensor([caption]))[0], together[row], rtol=1e-4, atol=1e-5
            )
    assert together.isfinite().all()
    torch.testing.assert_close(together.norm(dim=1), torch.ones(len(CAPTIONS)))


def test_gradients_are_finite_where_captions_have_no_word() -> None:
    model = model_of().train()
    found = model.text_outputs(torch.tensor([[START, END] + [0] * 14] * 2))
    head_of(model).embed("text", found.tokens, found.attention, found.mask).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert gradients["parts.tse.text.skip.weight"].any()


def test_scores_put_words_before_padding_and_exclude_start_and_end() -> None:
    attention = torch.tensor([[0.9, 0.1, 0.2, 0.8, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, True, True, False, False], [True, True, False, False, False, False]])
    order = selection_scores("text", attention, mask).argsort(dim=1, descending=True, stable=True)
    assert order.tolist()[0][:4] == [2, 1, 4, 5] and order.tolist()[1][:5] == [1, 2, 3, 4, 5]
    assert selection_scores("vision", attention, torch.ones_like(mask)).argmax(dim=1).tolist() == [3, 1]


def test_statistics_stay_without_training_mode() -> None:
    for train_mode in (True, False):
        model = model_of(train_mode_after_division=train_mode).train()
        head, found = head_of(model), model.text_outputs(padded())
        before = {name: buffer.clone() for name, buffer in head.named_buffers()}
        head.embed("text", found.tokens, found.attention, found.mask)
        changed = [name for name, buffer in head.named_buffers() if not torch.equal(buffer, before[name])]
        assert bool(changed) == train_mode and head.by_row != train_mode
        assert head.vision.second.training and head.vision.norm.training == train_mode
        assert not model.eval().heads["tse"].vision.norm.training


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"ratio": 0.01}, r"parts\.tse\.ratio 0\.01 selects none of the 8 tokens of the vision tower"),
        ({"ratio": 0.0}, "greater than 0"), ({"ratio": 1.5}, "less than or equal to 1"), ({"width": 0}, "width"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CsktError, match=message):
        model_of(**config)
