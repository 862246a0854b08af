"""CLIP's features from a dict of tensors, one caption, one head and one query at a time.

A second account of the function, with prompts, low-rank updates and what else a part may add, that shares no code with
the package's towers: it knows only the names of the tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from cskt.config import ClipArchitecture

State = Mapping[str, Tensor]
Added = Mapping[tuple[str, int, str], Callable[[Tensor], Tensor]]
"""Side, block and kind (before_attention, before_mlp, beside_mlp: [L, width] -> [L, width]; prefix_kv: anything ->
[S, 2 * width]; prefix_factor: anything -> the factor of the prefix's weights after the softmax) -> what a part adds
there."""
NOTHING: Added = {}
LINEAR = {
    "query": ("attn.in_proj", 0), "key": ("attn.in_proj", 1), "value": ("attn.in_proj", 2),
    "out": ("attn.out_proj", None), "fc": ("mlp.c_fc", None), "proj": ("mlp.c_proj", None),
}  # fmt: skip
"""Layer in LoRA's words -> its name, and its third of a joint weight."""


def normalised(x: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + 1e-5) ** 0.5


def norm(state: State, name: str, x: Tensor) -> Tensor:
    return normalised(x) * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(state: State, side: str, index: int, target: str, x: Tensor, scale: float) -> Tensor:
    """[L, in] -> [L, out], with `scale * up @ down` where the state has an update of this layer."""
    name, third = LINEAR[target]
    weight, bias = (state[f"{side}.blocks.{index}.{name}.{leaf}"] for leaf in ("weight", "bias"))
    if third is not None:
        weight, bias = weight.chunk(3)[third], bias.chunk(3)[third]
    y = torch.einsum("vw,lw->lv", weight, x) + bias
    update = f"lora.{side}.{index}.{target}"
    if f"{update}.up" in state:
        y = y + scale * torch.einsum("vr,rw,lw->lv", state[f"{update}.up"], state[f"{update}.down"], x)
    return y


def block(
    state: State, side: str, index: int, x: Tensor, *, heads: int, causal: bool, scale: float, added: Added = NOTHING
) -> Tensor:
    """[L, width] -> [L, width]."""

    def more(kind: str, tokens: Tensor) -> Tensor:
        return added[side, index, kind](tokens) if (side, index, kind) in added else torch.zeros_like(tokens)

    y = norm(state, f"{side}.blocks.{index}.ln_1", x) + more("before_attention", x)
    query, key, value = (linear(state, side, index, part, y, scale) for part in ("query", "key", "value"))
    first = 0
    if (side, index, "prefix_kv") in added:
        prefix = added[side, index, "prefix_kv"](x)
        first, width = len(prefix), x.shape[1]
        key, value = torch.cat([prefix[:, :width], key]), torch.cat([prefix[:, width:], value])
    attended, width = torch.zeros_like(x), x.shape[1] // heads
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        for place in range(len(x)):
            seen = first + (place + 1 if causal else len(x))
            weights = torch.softmax(key[:seen, part] @ query[place, part] / width**0.5, dim=0)
            if (side, index, "prefix_factor") in added:
                weights = torch.cat([weights[:first] * added[side, index, "prefix_factor"](x), weights[first:]])
            attended[place, part] = weights @ value[:seen, part]
    x = x + linear(state, side, index, "out", attended, scale)
    y = norm(state, f"{side}.blocks.{index}.ln_2", x) + more("before_mlp", x)
    hidden = linear(state, side, index, "fc", y, scale)
    y = linear(state, side, index, "proj", hidden / (1 + torch.exp(-1.702 * hidden)), scale)
    return x + y + more("beside_mlp", normalised(x))


def image_feature(
    state: State,
    sizes: ClipArchitecture,
    image: Tensor,
    prompts: Sequence[Tensor] = (),
    scale: float = 1.0,
    added: Added = NOTHING,
) -> Tensor:
    """[3, H, W] -> [D]; prompts [P, width] stand after the patches and are exchanged before their block."""
    rows, columns = sizes.grid
    tokens = [state["vision.class_embedding"]]
    for row in range(rows):
        for column in range(columns):
            top, left = row * sizes.stride, column * sizes.stride
            patch = image[:, top : top + sizes.patch_size, left : left + sizes.patch_size]
            tokens.append(torch.einsum("chw,dchw->d", patch, state["vision.conv1.weight"]))
    x = torch.stack(tokens) + state["vision.positional_embedding"]
    num_tokens = len(x)
    x = norm(state, "vision.ln_pre", torch.cat([x, *prompts[:1]]))
    for index in range(sizes.vision_layers):
        if 0 < index < len(prompts):
            x = torch.cat([x[:num_tokens], prompts[index]])
        x = block(state, "vision", index, x, heads=sizes.vision_heads, causal=False, scale=scale, added=added)
    return norm(state, "vision.ln_post", x[0]) @ state["vision.proj"]


def text_feature(
    state: State,
    sizes: ClipArchitecture,
    words: Sequence[int],
    prompts: Sequence[Tensor] = (),
    scale: float = 1.0,
    added: Added = NOTHING,
) -> Tensor:
    """Ids of the words, start and end left out -> [D]; prompts [P, width] stand after the start."""
    slots = len(prompts[0]) if prompts else 0
    kept = list(words)[: sizes.context_length - 2 - slots]
    table = state["text.token_embedding.weight"]
    x = torch.cat([table[[sizes.vocab_size - 2]], *prompts[:1], table[[*kept, sizes.vocab_size - 1]]])
    x = x + state["text.positional_embedding"][: len(x)]
    for index in range(sizes.text_layers):
        if 0 < index < len(prompts):
            x = torch.cat([x[:1], prompts[index], x[1 + slots :]])
        x = block(state, "text", index, x, heads=sizes.text_heads, causal=True, scale=scale, added=added)
    return norm(state, "text.ln_final", x[-1]) @ state["text.proj"]


def features(
    state: State,
    sizes: ClipArchitecture,
    images: Tensor,
    caption_ids: Tensor,
    vision_prompts: Sequence[Tensor] = (),
    text_prompts: Sequence[Tensor] = (),
    scale: float = 1.0,
    added: Added = NOTHING,
) -> tuple[Tensor, Tensor]:
    """Features of images [B, 3, H, W] and of captions [B, L], each [B, D]."""
    captions = [row[1 : row.index(sizes.vocab_size - 1)] for row in caption_ids.tolist()]
    return (
        torch.stack([image_feature(state, sizes, image, vision_prompts, scale, added) for image in images]),
        torch.stack([text_feature(state, sizes, words, text_prompts, scale, added) for words in captions]),
    )
