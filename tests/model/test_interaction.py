"""The interaction encoder and its head against PyTorch's own modules; what passes the head, and who learns how fast."""

from __future__ import annotations

import pytest
import tiny_clip
import torch
from torch import Tensor, nn

from cskt.config import ClipArchitecture, LossConfig, MlmConfig, OptimConfig
from cskt.model.parts.interaction import CrossAttention, InteractionEncoder
from cskt.training.objective import Objective
from cskt.training.optim import parameter_groups

WIDTH, DEPTH, VOCAB_SIZE = 128, 2, 31  # two heads of 64


def random_numbers(module: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.1, generator=generator)


def encoder() -> InteractionEncoder:
    made = InteractionEncoder(WIDTH, DEPTH, VOCAB_SIZE)
    random_numbers(made)
    return made


def tokens(length: int, seed: int, width: int = WIDTH) -> Tensor:
    return torch.randn(3, length, width, generator=torch.Generator().manual_seed(seed))


ASKED = torch.tensor([[0, 1, 0, 0, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)


# --- against PyTorch


def positions(asked: Tensor) -> Tensor:
    """Return the positions of the masked words among all tokens."""
    return asked.flatten().nonzero().squeeze(1)


def multihead(attention: nn.Module, heads: int) -> nn.MultiheadAttention:
    """PyTorch's attention with the weights of ours."""
    state = attention.state_dict()
    width = len(state["out_proj.bias"])
    theirs = nn.MultiheadAttention(width, heads, batch_first=True)
    for name, value in state.items():
        theirs.state_dict()[name.replace("in_proj.", "in_proj_")].copy_(value)
    return theirs


@pytest.mark.parametrize("heads", [1, 2, 4])
@torch.no_grad()
def test_cross_attention_equals_pytorchs(heads: int) -> None:
    attention = CrossAttention(32, heads)
    random_numbers(attention)
    queries, context = tokens(5, 1, 32), tokens(9, 2, 32)
    expected = multihead(attention, heads)(queries, context, context, need_weights=False)[0]
    torch.testing.assert_close(attention(queries, context), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_logits_equal_a_second_implementation() -> None:
    ours, text, image = encoder(), tokens(5, 1), tokens(9, 2)
    state = ours.state_dict()

    def norm(name: str, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    context = norm("ln_pre_i", image)
    x = multihead(ours.cross_attn, 2)(norm("ln_pre_t", text), context, context, need_weights=False)[0]
    for index in range(DEPTH):
        block = tiny_clip.ResidualBlock(WIDTH, mask=None)
        own = {name.removeprefix(f"cross_blocks.{index}."): value for name, value in state.items()}
        block.load_state_dict(
            {name: own[name.replace("in_proj_", "in_proj.")] for name in block.state_dict()}, strict=True
        )
        x = block(x.transpose(0, 1)).transpose(0, 1)
    hidden = nn.functional.linear(norm("ln_post", x), state["mlm_head.dense.weight"], state["mlm_head.dense.bias"])
    hidden = norm("mlm_head.ln", hidden * torch.sigmoid(1.702 * hidden))
    logits = hidden @ state["mlm_head.fc.weight"].T + state["mlm_head.fc.bias"]
    torch.testing.assert_close(ours(text, image, positions(ASKED)), logits[ASKED], rtol=1e-4, atol=1e-5)


# --- what passes


def test_only_words_asked_for_pass_the_head() -> None:
    ours, seen = encoder(), []
    ours.mlm_head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    some = ours(tokens(5, 1), tokens(9, 2), positions(ASKED))
    every = ours(tokens(5, 1), tokens(9, 2), positions(torch.ones_like(ASKED)))
    none = ours(tokens(5, 1), tokens(9, 2), positions(torch.zeros_like(ASKED)))
    assert seen == [(3, WIDTH), (15, WIDTH), (0, WIDTH)]
    assert some.shape == (3, VOCAB_SIZE) and none.shape == (0, VOCAB_SIZE)
    torch.testing.assert_close(some, every.view(3, 5, -1)[ASKED], rtol=1e-5, atol=1e-6)


def test_captions_of_a_batch_do_not_meet_and_the_image_matters() -> None:
    ours, text, image = encoder(), tokens(5, 1), tokens(9, 2)
    both = ours(text, image, positions(ASKED))
    torch.testing.assert_close(ours(text[2:], image[2:], positions(ASKED[2:])), both[2:], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(ours(text, image.roll(1, dims=0), positions(ASKED)), both, atol=1e-3)


def test_gradients_reach_words_and_patches() -> None:
    text, image = tokens(5, 1).requires_grad_(), tokens(9, 2).requires_grad_()
    encoder()(text, image, positions(ASKED)).square().sum().backward()
    assert all(part.any() for part in text.grad[[0, 2]].flatten(0, 1)), "words are mixed in the blocks"
    assert all(part.any() for part in image.grad[[0, 2]].flatten(0, 1))
    assert not text.grad[1].any() and not image.grad[1].any(), "a caption that asks for nothing"


# --- start and rates


def released_starts(depth: int) -> dict[str, str | tuple[str, float]]:
    """Tensor -> how IRRA's released code starts it: zero, one, or a distribution and its parameter.

    `nn.MultiheadAttention` zeroes its biases; `nn.Linear` draws its bias uniformly in +-1 / sqrt(inputs). The released
    code then draws the weights of all of them anew and touches no bias.
    """
    attention, fc, output = WIDTH**-0.5, (2 * WIDTH) ** -0.5, (2 * depth * WIDTH) ** -0.5
    starts: dict[str, str | tuple[str, float]] = {
        "cross_attn.in_proj.weight": ("normal", attention), "cross_attn.in_proj.bias": "zero",
        "cross_attn.out_proj.weight": ("normal", output), "cross_attn.out_proj.bias": "zero",
        "mlm_head.dense.weight": ("normal", fc), "mlm_head.dense.bias": ("uniform", WIDTH**-0.5),
        "mlm_head.ln.weight": "one", "mlm_head.ln.bias": "zero",
        "mlm_head.fc.weight": ("normal", output), "mlm_head.fc.bias": ("uniform", WIDTH**-0.5),
    }  # fmt: skip
    for norm in ("ln_pre_t", "ln_pre_i", "ln_post"):
        starts |= {f"{norm}.weight": "one", f"{norm}.bias": "zero"}
    for index in range(depth):
        block = f"cross_blocks.{index}"
        starts |= {
            f"{block}.attn.in_proj.weight": ("normal", attention), f"{block}.attn.in_proj.bias": "zero",
            f"{block}.attn.out_proj.weight": ("normal", output), f"{block}.attn.out_proj.bias": "zero",
            f"{block}.mlp.c_fc.weight": ("normal", fc), f"{block}.mlp.c_fc.bias": ("uniform", WIDTH**-0.5),
            f"{block}.mlp.c_proj.weight": ("normal", output),
            f"{block}.mlp.c_proj.bias": ("uniform", (4 * WIDTH) ** -0.5),
            f"{block}.ln_1.weight": "one", f"{block}.ln_1.bias": "zero",
            f"{block}.ln_2.weight": "one", f"{block}.ln_2.bias": "zero",
        }  # fmt: skip
    return starts


@pytest.mark.parametrize("depth", [1, 4])
def test_every_tensor_starts_as_released(depth: int) -> None:
    first, second = (InteractionEncoder(WIDTH, depth, vocab_size=500) for _ in range(2))
    for made in (first, second):
        made.initialise(torch.Generator().manual_seed(3))
    state, starts = dict(first.named_parameters()), released_starts(depth)
    assert state.keys() == starts.keys()
    for name, start in starts.items():
        value = state[name].detach()
        if isinstance(start, str):
            assert (value == {"zero": 0, "one": 1}[start]).all(), name
            continue
        kind, size = start
        deviation = size if kind == "normal" else size / 3**0.5
        # Four standard errors of the deviation and of the mean of so many numbers.
        slack = 4 * value.numel() ** -0.5
        assert value.std().item() == pytest.approx(deviation, rel=slack), name
        assert value.mean().abs().item() < slack * deviation, name
        assert (value.abs().max().item() <= size) == (kind == "uniform"), name
    for (name, value), twin in zip(state.items(), second.parameters(), strict=True):
        assert torch.equal(value, twin), name


def test_ten_biases_of_the_published_depth_are_not_zero() -> None:
    made = InteractionEncoder(WIDTH, 4, VOCAB_SIZE)
    made.initialise(torch.Generator().manual_seed(3))
    assert sum(bool(value.any()) for name, value in made.named_parameters() if name.endswith("bias")) == 10


RATES = {
    "classifier.weight": (5.0, 0.5), "classifier.bias": (5.0, 0.25),
    "interaction.mlm_head.dense.weight": (5.0, 0.5), "interaction.mlm_head.dense.bias": (5.0, 0.25),
    "interaction.mlm_head.ln.weight": (5.0, 0.5), "interaction.mlm_head.ln.bias": (5.0, 0.25),
    "interaction.mlm_head.fc.weight": (5.0, 0.5), "interaction.mlm_head.fc.bias": (5.0, 0.25),
    "interaction.cross_attn.in_proj.weight": (5.0, 0.5), "interaction.cross_attn.in_proj.bias": (2.0, 0.25),
    "interaction.cross_attn.out_proj.weight": (5.0, 0.5), "interaction.cross_attn.out_proj.bias": (2.0, 0.25),
    "interaction.cross_blocks.0.ln_1.weight": (5.0, 0.5), "interaction.cross_blocks.0.ln_1.bias": (2.0, 0.25),
    "interaction.cross_blocks.0.ln_2.weight": (5.0, 0.5), "interaction.cross_blocks.0.ln_2.bias": (2.0, 0.25),
    "interaction.cross_blocks.0.attn.in_proj.weight": (5.0, 0.5),
    "interaction.cross_blocks.0.attn.in_proj.bias": (2.0, 0.25),
    "interaction.cross_blocks.0.attn.out_proj.weight": (5.0, 0.5),
    "interaction.cross_blocks.0.attn.out_proj.bias": (2.0, 0.25),
    "interaction.cross_blocks.0.mlp.c_fc.weight": (5.0, 0.5), "interaction.cross_blocks.0.mlp.c_fc.bias": (2.0, 0.25),
    "interaction.cross_blocks.0.mlp.c_proj.weight": (5.0, 0.5),
    "interaction.cross_blocks.0.mlp.c_proj.bias": (2.0, 0.25),
    "interaction.ln_pre_t.weight": (1.0, 0.5), "interaction.ln_pre_t.bias": (2.0, 0.25),
    "interaction.ln_pre_i.weight": (1.0, 0.5), "interaction.ln_pre_i.bias": (2.0, 0.25),
    "interaction.ln_post.weight": (1.0, 0.5), "interaction.ln_post.bias": (2.0, 0.25),
}  # fmt: skip
"""Parameter of IRRA's heads -> (rate relative to lr, weight decay), with the settings below."""


def test_heads_learn_at_the_rates_that_their_names_ask_for() -> None:
    small = ClipArchitecture(embed_dim=16, vocab_size=20)
    objective = Objective(LossConfig(weights={"id": 1.0, "mlm": 1.0}), MlmConfig(cmt_depth=1), small, num_identities=3)
    optim = OptimConfig(bias_lr_factor=2.0, head_lr_factor=5.0, weight_decay=0.5, weight_decay_bias=0.25)
    names = {parameter: name for name, parameter in objective.named_parameters()}
    found = {
        names[parameter]: (group["lr_scale"], group["weight_decay"])
        for group in parameter_groups(objective.named_parameters(), optim)
        for parameter in group["params"]
    }
    assert found == RATES
