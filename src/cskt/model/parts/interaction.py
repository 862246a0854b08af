"""IRRA's cross-modal interaction encoder and its masked-language head (Jiang and Ye, CVPR 2023, section 3.2).

They make the towers align words with patches in training, and are not part of the model at inference.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cskt.config.architecture import HEAD_WIDTH
from cskt.model.blocks import Block, block_deviations, quick_gelu

UNIFORM_BIASES = ("mlp.c_fc.bias", "mlp.c_proj.bias", "mlm_head.dense.bias", "mlm_head.fc.bias")
"""Ends of the names of biases that the released code leaves as `nn.Linear` draws them."""


class CrossAttention(nn.Module):
    """Multi-head attention of one sequence to another, with one matrix for query, key and value."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        """queries [B, L, D], context [B, N, D] -> [B, L, D]."""
        width = queries.shape[-1]
        weight, bias = self.in_proj.weight, self.in_proj.bias
        query = F.linear(queries, weight[:width], bias[:width]).view(*queries.shape[:2], self.heads, -1)
        key_value = F.linear(context, weight[width:], bias[width:]).view(*context.shape[:2], 2, self.heads, -1)
        query, (key, value) = query.transpose(1, 2), key_value.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class MlmHead(nn.Module):
    """Maps a token of the interaction encoder to logits over the vocabulary."""

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.ln = nn.LayerNorm(width)
        self.fc = nn.Linear(width, vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """[M, D] -> [M, V]."""
        return self.fc(self.ln(quick_gelu(self.dense(tokens))))


class InteractionEncoder(nn.Module):
    """Lets words attend to the patches of their image, then to each other, and predicts the masked ones.

    The cross-attention has no residual, as in the released code. Parameter names contain `cross` or `mlm_head` where
    the released optimizer looks for them.
    """

    def __init__(self, width: int, depth: int, vocab_size: int) -> None:
        super().__init__()
        heads = max(1, width // HEAD_WIDTH)
        self.ln_pre_t = nn.LayerNorm(width)
        self.ln_pre_i = nn.LayerNorm(width)
        self.cross_attn = CrossAttention(width, heads)
        self.cross_blocks = nn.ModuleList(Block(width, heads, "quick_gelu") for _ in range(depth))
        self.ln_post = nn.LayerNorm(width)
        self.mlm_head = MlmHead(width, vocab_size)

    def forward(self, text_tokens: Tensor, image_tokens: Tensor, positions: Tensor) -> Tensor:
        """Compute the logits [M, V] of the masked words; only these pass the head, whose output is large.

        There is no mask, as in the released code, where a caption always has 77 tokens: the result depends on the
        length that captions are padded to.

        Args:
            text_tokens: [B, L, D] of captions with masked words, in the shared space.
            image_tokens: [B, N, D] of their images.
            positions: [M] int64, of the masked words among the B * L tokens.
        """
        x = self.cross_attn(self.ln_pre_t(text_tokens), self.ln_pre_i(image_tokens))
        for block in self.cross_blocks:
            x = block(x)
        return self.mlm_head(self.ln_post(x.flatten(0, 1)[positions]))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw the initial values, tensor by tensor from the distributions of IRRA's released code.

        Weights of linear layers: normal with mean 0 and the standard deviations of CLIP's text tower. Biases of the
        attentions: zero. Biases of the other linear layers (both layers of each block's MLP, both of the MLM head):
        uniform in +-1 / sqrt(inputs of the layer), PyTorch's default, which the released code does not change. Layer
        norms: weight 1, bias 0.
        """
        deviations = block_deviations(self.ln_post.normalized_shape[0], len(self.cross_blocks))
        head = {"dense.weight": deviations["c_fc.weight"], "mlm_head.fc.weight": deviations["c_proj.weight"]}
        deviations |= head
        parameters = dict(self.named_parameters())
        for name, parameter in parameters.items():
            deviation = next((std for ending, std in deviations.items() if name.endswith(ending)), None)
            if deviation is not None:
                parameter.normal_(std=deviation, generator=generator)
            elif name.endswith(UNIFORM_BIASES):
                bound = parameters[name.removesuffix("bias") + "weight"].shape[1] ** -0.5
                parameter.uniform_(-bound, bound, generator=generator)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)  # layer norms, biases of the attentions
