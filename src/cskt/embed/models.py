"""Models of a configuration, ready to train."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from cskt.config import DataConfig, RunConfig
from cskt.data.tokenizer import Tokenizer
from cskt.errors import CsktError
from cskt.model.dual_encoder import DualEncoder
from cskt.model.io.weights import load_backbone, load_state
from cskt.utils.arguments import expect


@dataclass(frozen=True)
class Built:
    """A model ready to train, with the facts about its backbone that a checkpoint records."""

    model: DualEncoder
    tokenizer: Tokenizer
    backbone_name: str
    backbone_sha256: str
    """SHA-256 of the weight file; empty for random weights."""


def build(config: RunConfig) -> Built:
    """Build the model of a config, ready to train.

    Args:
        config: of which backbone, prompts, adapters, lora, parts, trainable, frozen and seed are used.

    Returns:
        `Built` with `model`, a `DualEncoder` on the CPU whose backbone is loaded (or random, as the config says) and
        whose method is initialised with `config.seed`, and `tokenizer`.

    Raises:
        CsktError: the backbone cannot be found or read, or the method does not fit it.

    Example:
        >>> built = cskt.build(cskt.load_config("demo"))
        >>> optimizer = torch.optim.AdamW(p for p in built.model.parameters() if p.requires_grad)
        >>> images, caption_ids = torch.zeros(2, 3, 128, 64), built.tokenizer(["a red coat", "a blue bag"])
        >>> image_features, text_features = built.model(images, caption_ids)
        >>> cskt.losses.sdm(image_features, text_features, torch.tensor([0, 1])).backward()
        >>> optimizer.step()
    """
    expect(config, RunConfig, "config", "cskt.load_config(NAME) reads one")
    generator = torch.Generator().manual_seed(config.seed)
    if sizes := config.backbone.architecture:
        mean, std = config.backbone.image_mean or sizes.image_mean, config.backbone.image_std or sizes.image_std
        backbone, architecture = None, dataclasses.replace(sizes, image_mean=mean, image_std=std)
    else:
        backbone = load_backbone(config.backbone)
        architecture = backbone.architecture
    model = DualEncoder(architecture, config.method, config.trainable, config.frozen)
    tokenizer = tokenizer_for(model, config.data, backbone.known_token_ids if backbone else None)
    if backbone:
        load_state(model, backbone.state, origin=backbone.name)
    else:
        model.initialise_backbone(generator)
    embeddings = model.text.token_embedding.weight
    model.initialise_method(
        generator, lambda sentence: embeddings[torch.tensor(tokenizer.encode(sentence), dtype=torch.int64)]
    )
    return Built(model, tokenizer, backbone.name if backbone else "random", backbone.sha256 if backbone else "")


def tokenizer_for(model: DualEncoder, data: DataConfig, known: frozenset[int] | None) -> Tokenizer:
    """Return CLIP's tokenizer, which cuts captions to the positions that prompts leave."""
    caption_length = data.caption_length
    vocab_size, length = model.architecture.vocab_size, model.architecture.context_length
    if caption_length > length:
        raise CsktError(f"data.caption_length {caption_length} is more than the backbone's {length} positions")
    num_left = length - model.num_text_slots
    return Tokenizer(min(caption_length, num_left), known, clean_captions=data.clean_captions, vocab_size=vocab_size)
