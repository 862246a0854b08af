"""Methods whose released folders can be read and written: one `ReleasedMethod` each; plug-ins can add further ones.

A description says how a checkpoint is recognised from the names of its tensors, what recipe it is, which settings its
shapes and the options of its configs.yaml give, which tensors inference does not need, and what the code can compute.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from cskt.config import ClipArchitecture
from cskt.config.file_names import RELEASED_WEIGHTS
from cskt.config.released_flags import IRRA as IRRA_RECIPE
from cskt.config.released_flags import REFERENCE, Flag
from cskt.errors import CsktError
from cskt.model.io.layouts import TOWERS, TRAINING_ONLY, Layout, Rules, replaced
from cskt.model.io.released.names import DM_ADAPTER, PREFIX_AGAIN, PREFIX_TWICE, TOKEN_SELECTION, UP_PERSON, base_name
from cskt.plugins import Registry

RDE_WIDTH = 1024
"""Width of the embeddings of the released RDE."""
WIDTHS = {"vision_width": 768, "text_width": 512}
"""Widths that are fixed in the codes of CSKT's authors."""
WITHOUT_EFFECT = Flag(None, "without effect on the method")
Shapes = dict[str, tuple[int, ...]]
"""Name of a tensor -> its shape."""


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of a checkpoint by their released names, of which a description reads settings."""

    title: str
    """Name of the method in messages."""
    tensors: Mapping[str, Tensor]
    sizes: Mapping[str, int]
    """Sizes of the towers, see `layouts.read_sizes`."""
    origin: str
    """Path of the checkpoint in messages."""

    def matrix(self, name: str) -> tuple[int, int]:
        """Return rows and columns of a matrix that a checkpoint of the method has.

        Raises:
            CsktError: there is none of that name, or it is empty.
        """
        found = self.tensors.get(name)
        if found is None or found.ndim != 2 or 0 in found.shape:
            raise CsktError(f"{self.origin}: not a checkpoint of {self.title}: no matrix '{name}'")
        rows, columns = found.shape
        return rows, columns

    def first(self, pattern: str) -> str | None:
        """Return the first name that a regular expression matches from its start; None if there is none."""
        return next((name for name in self.tensors if re.match(pattern, name)), None)

    def blocks(self, pattern: str) -> list[int]:
        """Return the numbers that the first group of a regular expression finds in names, in order, each once."""
        return sorted({int(match[1]) for name in self.tensors if (match := re.match(pattern, name))})

    def reduction(self, name: str) -> int:
        """Return the width of the tower divided by that of the bottleneck, of a matrix [bottleneck, width]."""
        bottleneck, width = self.matrix(name)
        return max(1, width // bottleneck)


@dataclass(frozen=True)
class ReleasedMethod:
    """Description of how the released code of a method stores a model.

    Example:
        >>> METHODS["rde"].name("parts.tse.vision.first.weight")
        'visul_emb_layer.mlp.layers.0.weight'
    """

    title: str
    """Name of the method in messages."""
    recipe: str
    """Name of the recipe, or path of a plug-in's, with what neither tensors nor options state."""
    sign: str
    """Regular expression, searched in names; a tensor that has it is of this method's code."""
    variant: Callable[[Iterable[str]], str] = lambda _: ""
    """Names of all tensors, or more, as stored -> the recipe where they show another than `recipe`, else nothing."""
    parts: Mapping[str, Rules] = field(default_factory=dict)
    """Part in the config's section `parts` -> rules that turn our names after `parts.<part>.` into released ones."""
    towers: Rules = ()
    """Rules that turn names of towers and heads in IRRA's code, such as `base_model.visual.proj`, into those of this
    code."""
    settings: Callable[[Checkpoint], dict[str, Any]] = lambda _: {}
    """Dotted config keys that the tensors determine, with their values."""
    flags: Mapping[str, Flag] = field(default_factory=dict)
    """Options of configs.yaml that other methods do not have, or that mean something else there. The first of them
    marks the configs.yaml of this method."""
    losses: Callable[[str], dict[str, float]] = lambda name: {name: 1.0}
    """Name of a loss in `loss_names` -> our losses and their weights."""
    loss_names: tuple[str, ...] = ()
    """Names in `loss_names` that are not ours; where the code has none of a run's losses, the first is written."""
    unused: Callable[[ClipArchitecture], Shapes] = lambda _: {}
    """Tensors that the code stores and never uses. They are left out, and may be absent."""
    training_only: tuple[str, ...] = TRAINING_ONLY
    """Beginnings of the names of tensors that only losses use; they are left out."""
    twice: Rules = ()
    """Rules that turn the second name of a tensor that is stored under two into the first."""
    again: Rules = ()
    """Rules that turn the first name of such a tensor into the second."""
    file: str = RELEASED_WEIGHTS[0]
    """Name of the file of weights that is written."""
    heads: Mapping[str, str] = field(default_factory=lambda: {"id": "classifier.", "mlm": "interaction."})
    """Loss -> beginning of our names of its training heads, which the code stores too."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Config key, or field of `ClipArchitecture` -> the only value that the code computes the same function with, where
    no option says it."""
    has_squares: bool = False
    """True if the code takes square images alone, with patches that do not overlap."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of its configs.yaml without a config key here, with their values."""

    def name(self, name: str) -> str:
        """Return the released name of one of our parameters or buffers."""
        for part, rules in self.parts.items():
            if name.startswith(start := f"parts.{part}."):
                return replaced(name.removeprefix(start), rules)
        return replaced(base_name(name), self.towers)

    def loss_words(self, weights: Mapping[str, float]) -> list[str]:
        """Return the words of `loss_names` for our losses."""
        words = [word for word in self.loss_names if self.losses(word).keys() <= weights.keys()]
        said = {name for word in words for name in self.losses(word)}
        words += [name for name in weights if name not in said and self.losses(name)]
        return words or list(self.loss_names[:1])

    @property
    def layout(self) -> Layout:
        """Names of our tensors in a checkpoint of this code."""
        return Layout(lambda name: (self.name(name),))


METHODS: Registry[ReleasedMethod] = Registry("released method", "cskt.released")
"""Description of a released code by the name of its method; the last is tried first, so those of plug-ins are."""


def method_of(names: Mapping[str, Any]) -> ReleasedMethod | None:
    """Return the method whose code wrote tensors of these names; None if no description has a sign for them."""
    tried = (method for method in reversed(list(METHODS.values())))
    return next((method for method in tried if any(re.search(method.sign, name) for name in names)), None)


def method_of_options(options: Mapping[str, Any]) -> ReleasedMethod | None:
    """Return the method whose code wrote a configs.yaml with these options; None if only CSKT or IRRA can have."""
    tried = (method for method in reversed(list(METHODS.values())) if method.flags)
    return next((method for method in tried if next(iter(method.flags)) in options), None)


def released_name(name: str) -> str:
    """Map our name of a parameter or buffer of model or objective to its name in a checkpoint of its released code.

    Towers have the names that IRRA's code and its children give them; see `base_name`.

    Raises:
        CsktError: a parameter of a method part that no description has.
    """
    section, _, rest = name.partition(".")
    if section != "parts":
        return base_name(name)
    part = rest.partition(".")[0]
    for method in METHODS.values():
        if part in method.parts:
            return method.name(name)
    raise CsktError(f"parts.{part}: no released code has this part")


def unused_shapes(part: str, architecture: ClipArchitecture) -> Shapes:
    """Return the tensors that the released code of a method part stores and never uses, by name.

    They are counted and, if they are no statistics or counts of a batch normalisation, trained there.
    """
    methods = (method for method in METHODS.values() if part in method.parts)
    return next((method.unused(architecture) for method in methods), {})


def _cskt_settings(found: Checkpoint) -> dict[str, Any]:
    length, _ = found.matrix("prompt_learner.ctx")
    return {
        "prompts.depth": 1 + len(found.blocks(r"prompt_learner\.compound_prompts_text\.(\d+)")),
        "prompts.length": length,
        "adapters.reduction": found.reduction(base_name("adapters.vision.0.down.weight")),
    }


def _rde_settings(found: Checkpoint) -> dict[str, Any]:
    width, _ = found.matrix("visul_emb_layer.fc.weight")
    # A head that has never been in training mode has counted no batch: the code of the published checkpoints.
    counts = [value for name, value in found.tensors.items() if name.endswith(".bns.0.num_batches_tracked")]
    return {"parts.tse.width": width} | (
        {"parts.tse.train_mode_after_division": any(bool(count.any()) for count in counts)} if counts else {}
    )


def _rde_unused(architecture: ClipArchitecture) -> Shapes:
    shapes: Shapes = {
        "visul_emb_layer.linear.weight": (RDE_WIDTH, architecture.embed_dim),
        "visul_emb_layer.linear.bias": (RDE_WIDTH,),
    }
    for head in ("visul_emb_layer", "texual_emb_layer"):
        for name in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{head}.mlp.bns.1.{name}"] = (RDE_WIDTH,)
        shapes[f"{head}.mlp.bns.1.num_batches_tracked"] = ()
    return shapes


RDE_LOSSES = {
    "TAL": {"tal": 1.0, "tse_tal": 1.0}, "TRL": {"trl": 1.0, "tse_trl": 1.0}, "InfoNCE": {"itc": 1.0, "tse_itc": 1.0},
    "SDM": {"sdm": 1.0, "tse_sdm": 1.0},
}  # fmt: skip
"""Loss of RDE's `loss_names` -> ours, of both embeddings; further words there only describe the run."""


def _up_person_settings(found: Checkpoint) -> dict[str, Any]:
    prefix = found.first(r"(?:vit|text)_prefix_learner\.\w+\.\d+\.key\.tokens")
    update = found.first(r"LORA_learner\.lora_(?:image|text)\.\d+\.lora_A\.0")
    down = found.first(r"base_model\..*\.adapter_ln_msa\.down\.weight")
    adapters = found.blocks(r"base_model\..*resblocks\.(\d+)\.adapter_ln_msa\.")
    num_blocks = max(found.sizes["vision_layers"], found.sizes["text_layers"])
    settings: dict[str, Any] = {
        "depth_prefix": len(found.blocks(r"(?:vit|text)_prefix_learner\.\w+\.(\d+)\.")),
        "depth_lora": len(found.blocks(r"LORA_learner\.lora_(?:image|text)\.(\d+)\.")),
        "depth_adapter": adapters[0] if adapters else num_blocks,
    }
    if prefix:
        settings["prefix_length"] = found.matrix(prefix)[0]
    if update:
        settings["rank"] = found.matrix(update)[0]
    if down:
        settings["reduction"] = found.reduction(down)
    return {f"parts.up_person.{key}": value for key, value in settings.items()}


def _dm_adapter_settings(found: Checkpoint) -> dict[str, Any]:
    block = "base_model.visual.transformer.resblocks.0.feed_forward"
    num_experts, _ = found.matrix(f"{block}.input_gate.weight")
    return {
        "parts.dm_adapter.num_experts": num_experts,
        "parts.dm_adapter.reduction": found.reduction(f"{block}.experts.0.down.weight"),
    }


def _dm_adapter_unused(architecture: ClipArchitecture) -> Shapes:
    vision, text = architecture.vision_width, architecture.text_width
    shapes: Shapes = {
        "vision_param": (vision,), "text_param": (text,), "co_vision_param": (vision,),
        "v2i_proj.weight": (text, vision), "v2i_proj.bias": (text,),
    }  # fmt: skip
    return {f"{TOWERS}{name}": shape for name, shape in shapes.items()}


def _tbps_clip_settings(found: Checkpoint) -> dict[str, Any]:
    side = math.isqrt(found.sizes["num_patches"])  # the size of images is in its pickled config alone, which is skipped
    if side * side != found.sizes["num_patches"]:
        raise CsktError(f"{found.origin}: {found.sizes['num_patches']} patch positions make no square grid")
    return dict.fromkeys(("backbone.image_height", "backbone.image_width"), side * found.sizes["patch_size"])


def _tbps_clip_variant(names: Iterable[str]) -> str:
    """Return the simplified recipe if there is no MLP of SimCLR, which the code makes for the full one alone."""
    return "" if any("simclr_mlp." in name for name in names) else "tbps-clip-simple"


def _flags(section: str, *names: str) -> dict[str, Flag]:
    """Return options that are called as the keys of a section."""
    return {name: Flag(f"{section}.{name}", "") for name in names}


METHODS.register("irra", ReleasedMethod("IRRA", IRRA_RECIPE, rf"^{re.escape(TOWERS)}"))
METHODS.register(
    "cskt",
    ReleasedMethod(
        "CSKT", REFERENCE, r"^prompt_learner\.|\.adapter_mlp\.",
        settings=_cskt_settings,
        fixed={
            "prompts.directions": "both", "adapters.sides": "both", "adapters.reduction": 8,
            "adapters.vision_scale": 0.1, "adapters.text_scale": 4.0, **WIDTHS,
        },
    ),
)  # fmt: skip
METHODS.register(
    "rde",
    ReleasedMethod(
        "RDE", "rde", r"^(visul|texual)_emb_layer\.",
        parts={"tse": TOKEN_SELECTION},
        settings=_rde_settings,
        flags={
            "select_ratio": Flag("parts.tse.ratio", ""), "tau": Flag("loss.tal_temperature", ""),
            "margin": Flag("loss.tal_margin", ""), "noisy_rate": Flag("data.noise_rate", ""),
            "txt_aug": Flag(
                "augment.caption_change_probability", "", lambda value: 0.2 if value else 0.0, lambda value: value > 0
            ),
            "lr_factor": WITHOUT_EFFECT,  # the rate of the heads is written into the code
        },
        losses=lambda name: RDE_LOSSES.get(name, {}),
        loss_names=tuple(RDE_LOSSES),
        unused=_rde_unused,
        heads={},
        fixed={"parts.tse.width": RDE_WIDTH, "embed_dim": 512},
        options={"noisy_file": "", "lr_factor": 5.0},
    ),
)  # fmt: skip
METHODS.register(
    "up_person",
    ReleasedMethod(
        "UP-Person", "up-person", r"^(vit_prefix|text_prefix|LORA)_learner\.|\.adapter_ln_(msa|mlp)\.|\.attn\.prefix\.",
        parts={"up_person": UP_PERSON},
        settings=_up_person_settings,
        flags=_flags(
            "parts.up_person", "prefix_length", "rank", "depth_lora", "depth_prefix", "depth_adapter"
        ) | dict.fromkeys(("depth", "n_ctx", "bias_lr_factor", "lr_factor"), WITHOUT_EFFECT),
        twice=PREFIX_TWICE,
        again=PREFIX_AGAIN,
        fixed={"parts.up_person.reduction": 8, **WIDTHS},
        options={"depth": 12, "n_ctx": 4, "bias_lr_factor": 2.0, "lr_factor": 5.0},
    ),
)  # fmt: skip
METHODS.register(
    "dm_adapter",
    ReleasedMethod(
        "DM-Adapter", "dm-adapter", r"^base_model\..*resblocks\.\d+\.feed_forward\.",
        parts={"dm_adapter": DM_ADAPTER},
        settings=_dm_adapter_settings,
        flags=_flags("parts.dm_adapter", "num_experts", "topk", "reduction"),
        losses=lambda name: {"balance": 0.5} if name == "aux" else {name: 1.0},
        loss_names=("aux",),
        unused=_dm_adapter_unused,
        fixed={"parts.dm_adapter.vision_scale": 0.1, "parts.dm_adapter.text_scale": 4.0, **WIDTHS},
    ),
)  # fmt: skip
METHODS.register(
    "tbps_clip",
    ReleasedMethod(
        "TBPS-CLIP", "tbps-clip", r"^encode_text\.",
        variant=_tbps_clip_variant,
        towers=(
            (r"^base_model\.losses\.simclr\.mlp\.", "simclr_mlp."), (r"^base_model\.logit_scale$", "logit_scale"),
            (r"^base_model\.(?!visual\.)", "encode_text."), (r"^base_model\.", ""),
        ),
        settings=_tbps_clip_settings,
        training_only=(*TRAINING_ONLY, "simclr_mlp."),
        file=RELEASED_WEIGHTS[2],
        heads={
            "id": "classifier.", "mlm": "interaction.", "nitc": "logit_scale", "ritc": "logit_scale",
            "simclr": "losses.simclr.mlp.",
        },
        fixed={
            "data.clean_captions": True, "data.eval_interpolation": "bicubic",
            "image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225),
        },
        has_squares=True,
    ),
)  # fmt: skip
