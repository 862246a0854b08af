"""Interface of method parts: what a method adds to CLIP's towers, as one module with a config of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from cskt.config import METHOD_SECTIONS, ClipArchitecture, to_dict, validate
from cskt.config.types import STRICT
from cskt.errors import CsktError
from cskt.model.blocks import LAYERS, BlockExtras, TowerExtras
from cskt.plugins import Registry
from cskt.utils.checked import checked_dataclass
from cskt.utils.messages import described
from cskt.utils.modules import reset_parameters

Side: TypeAlias = Literal["vision", "text"]
SIDES: tuple[Side, ...] = ("vision", "text")
EmbedWords: TypeAlias = Callable[[str], Tensor]
"""A sentence -> the embeddings of its tokens, [n, text_width]."""

Modules: TypeAlias = Sequence[nn.Module | None] | nn.ModuleList | None
"""One module per block, None for none; or None for no module at all."""

part_config = checked_dataclass(STRICT)
"""Decorator of `Part.Config`: a frozen dataclass whose values are checked; the docstring of a field is the help of its
flag."""


@dataclass(frozen=True)
class PartExtras:
    """Tensors and modules that a part adds to one tower; none by default. Tensors may be computed, with gradients.

    The modules of a kind are one per block of the tower, None where a block has none.
    """

    prompts: Sequence[Tensor] = ()
    """One [P, width] per block, from the first: tokens that are put beside those of every sequence (after the start
    token of captions, after the patches of images) and replaced before every block. Blocks without prompts of their
    own take over the tokens of the block below."""
    prefix_kv: Sequence[Tensor] = ()
    """One [S, 2 * width] per block, from the first: S keys and values (in this order) that every token attends to. A
    factor of the values scales their share of the output: the attention weights are not normalised again."""
    before_attention: Modules = None
    """Tokens [B, L, width] before the block -> [B, L, width], added to the input of the attention after its norm."""
    before_mlp: Modules = None
    """Tokens after the attention -> [B, L, width], added to the input of the MLP after its norm."""
    beside_mlp: Modules = None
    """Tokens of mean 0 and variance 1, [B, L, width] -> [B, L, width], added to the residual stream with the MLP.

    The input is normalised already, so that a norm of the branch applies its weight and bias alone.

    A branch that is relu between two linear layers may have `folded() -> ((weight, bias), (weight, bias))`: then the
    MLP computes it in inference. Any other branch may have `for_inference() -> nn.Module`, which takes its place in
    inference: the same function, of its parameters as they are then. In training, `record(tokens) -> [B, L, K]` of a
    branch that has it is called with the same tokens: see `Part.outputs`.
    """
    low_rank: Modules = None
    """One `nn.ModuleDict` per block: target -> update of a linear layer (query, key, value, out, fc, proj), which takes
    the layer's input and has `delta() -> [out_width, in_width]`, which is added to the weight in inference."""

    @property
    def modules(self) -> dict[str, Sequence[nn.Module | None]]:
        """Modules per block by kind, without the kinds that are empty."""
        found = {kind: getattr(self, kind) for kind in BlockExtras._fields}
        return {kind: list(modules) for kind, modules in found.items() if modules}

    @property
    def kinds(self) -> set[str]:
        """Names of the fields that hold anything."""
        return {kind for kind, added in vars(self).items() if added}


class Part(nn.Module):
    """A part of a method: prompts, adapters, updates of weights, an embedding head.

    A subclass declares its settings as `Config` (see `part_config`) and makes its parameters in `__init__`, without
    values: `initialise` draws them. All of its parameters train. `register` makes it known to configurations, as the
    section `parts.<name>`.

    An embedding head makes a further vector of every image and caption, from all of their tokens: it sets
    `embedding_width` and has `embed`. Images are then ranked by the mean of the cosines of all vectors.

    Buffers are saved and averaged as parameters are. `forward` of a module of a tower must not change one, nor be
    random: it may be computed several times in a step. `embed` may change buffers if `by_row` is False.

    Example:
        >>> from cskt.config import ClipArchitecture
        >>> from cskt.model.parts import PartExtras, Part, part_config
        >>> class Prompt(Part):
        ...     @part_config
        ...     class Config:
        ...         length: int = 2
        ...     def __init__(self, config, architecture):
        ...         super().__init__(config, architecture)
        ...         self.tokens = nn.Parameter(torch.empty(config.length, architecture.text_width))
        ...     def initialise(self, generator, embed_words=None):
        ...         self.tokens.normal_(std=0.02, generator=generator)
        ...     def extras(self, side):
        ...         return PartExtras(prompts=[self.tokens] if side == "text" else [])
        >>> Prompt(Prompt.Config(), ClipArchitecture()).extras("text").prompts[0].shape
        torch.Size([2, 512])
    """

    Config: ClassVar[type]
    """Frozen dataclass with the settings of the part."""
    embedding_width: int | None = None
    """Width E of the embeddings of a head; None if the part has no head."""
    needs_attention: ClassVar[bool] = False
    """True if `embed` takes the attention of the class or end token, which is computed only then."""
    by_row: bool = True
    """True for a head that computes an embedding from the tokens of its row alone. False if it looks at other rows, as
    batch normalisation does: it then gets the tokens of the whole batch, also with micro-batches and in each of several
    processes, so that its statistics are those of one process. Such a part adds nothing to the towers."""

    def __init__(self, config: Any, architecture: ClipArchitecture) -> None:
        super().__init__()
        self.config, self.architecture = config, architecture

    @classmethod
    def is_active(cls, config: Any) -> bool:
        """Return whether a part of this config adds anything; one that does not is left out."""
        return True

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, embed_words: EmbedWords | None = None) -> None:
        """Draw the initial values of all parameters, by default with `reset_parameters` of each module.

        Args:
            generator: CPU generator; the same state gives the same values on every device.
            embed_words: embeds a sentence as the text tower does; None where there is no tokenizer.
        """
        reset_parameters(self, generator)

    def extras(self, side: Side) -> PartExtras:
        """Return what the part adds to a tower, computed from its parameters as they are now; a head needs no more."""
        if self.embedding_width is None:
            raise NotImplementedError
        return PartExtras()

    def embed(self, side: Side, tokens: Tensor, attention: Tensor | None, mask: Tensor) -> Tensor:
        """Return the embeddings [B, E] of images or captions, not normalised; called for parts with a head.

        In training captions have the whole context, with the padding after their end; in inference they are shorter,
        and in exports L is unknown, so that no branch may depend on it.

        Args:
            side: tower that the tokens are from.
            tokens: [B, L, D] float32 in the shared space, not normalised, without prompts; the first is the class or
                start token.
            attention: [B, L] weights with which the class or end token attends to the tokens in the last block, the
                mean over its heads; None unless `needs_attention`.
            mask: [B, L] bool, true for all tokens of images, and from the start to the end token of captions; false for
                id 0, which is padding, or a "!" within a word.
        """
        raise NotImplementedError

    def outputs(self, side: Side, records: Sequence[Tensor], mask: Tensor) -> Mapping[str, Tensor]:
        """Return what losses need to know about the part by name, [B, ...] each; called in training, for parts whose
        branches make records.

        Losses find it as `LossInputs.extra["<part>.<side>.<name>"]`, for the whole batch.

        Args:
            side: tower of the records.
            records: [B, L, K] of every branch that makes them, from the first block; L as in `embed`.
            mask: [B, L] bool as in `embed`.
        """
        raise NotImplementedError


PARTS: Registry[type[Part]] = Registry("method part", "cskt.parts")
"""Method part by its name in a config."""
Kind = TypeVar("Kind", bound=type[Part])


def register(name: str) -> Callable[[Kind], Kind]:
    """Return a decorator that makes a method part known to configurations.

    Args:
        name: letters, digits and `_`; its section of a config is `parts.<name>`.

    Raises:
        CsktError: the name is taken or malformed, or what is decorated is no `Part` with a dataclass `Config`.
    """

    def add(kind: Kind) -> Kind:
        is_part = isinstance(kind, type) and issubclass(kind, Part)
        if not (is_part and hasattr(getattr(kind, "Config", None), "__pydantic_fields__")):
            raise CsktError(f"method part '{name}': decorate a class that extends Part, with a Config of part_config")
        if not name.isidentifier() or hasattr(nn.ModuleDict, name):
            raise CsktError(f"method part '{name}': choose a name of letters, digits and _ that dictionaries have not")
        return PARTS.register(name, kind)

    return add


def section_of(name: str) -> str:
    """Return the section of a config with the settings of a part: `prompts`, `parts.gate`."""
    return name if name in METHOD_SECTIONS else f"parts.{name}"


def part_configs(method: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of every part that a method names.

    Args:
        method: name of a part -> its `Config`, or the values of one by field, as `RunConfig.method` has them.

    Raises:
        CsktError: an unknown part, an unknown field, or a value out of range.
    """
    return {
        name: validate(PARTS[name].Config, given, section_of(name)) if isinstance(given, Mapping) else given
        for name, given in method.items()
    }


def complete_parts(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the section `parts` of a config with the defaults of every field; for the errors see `part_configs`."""
    return {name: to_dict(config) for name, config in part_configs(parts).items()}


def joined(extras: Mapping[str, PartExtras]) -> TowerExtras:
    """Join what parts, by name, add to one tower."""
    present = list(extras.values())
    by_kind: dict[str, list[Any]] = {
        kind: [found for part in present if (found := part.modules.get(kind))] for kind in BlockExtras._fields
    }
    num_blocks = max((len(found[0]) for found in by_kind.values() if found), default=0)
    return TowerExtras(
        prompts=_concatenated([part.prompts for part in present]),
        prefix_kv=_concatenated([part.prefix_kv for part in present]),
        blocks=[
            BlockExtras(
                *(tuple(m for modules in found if (m := modules[index]) is not None) for found in by_kind.values())
            )
            for index in range(num_blocks)
        ],
    )


def _concatenated(kinds: Sequence[Sequence[Tensor]]) -> Sequence[Tensor]:
    """Concatenate the rows of all parts, block by block; a part may have fewer blocks than another."""
    filled = [kind for kind in kinds if kind]
    if len(filled) < 2:
        return filled[0] if filled else ()
    longest = max(map(len, filled))
    return [torch.cat([kind[index] for kind in filled if index < len(kind)]) for index in range(longest)]


def check_extras(extras: Mapping[str, PartExtras], side: Side, architecture: ClipArchitecture) -> None:
    """Check the shapes of what parts, by name, add to a tower.

    Raises:
        CsktError: a type is wrong, a shape does not fit the tower, or parts add prompts to different numbers of blocks.
    """
    width = getattr(architecture, f"{side}_width")
    num_blocks = getattr(architecture, f"{side}_layers")
    for name, added in extras.items():
        where = f"method part '{name}', {side} tower"
        _check_types(added, where)
        for kind, tensors, columns in (("prompts", added.prompts, width), ("prefix_kv", added.prefix_kv, 2 * width)):
            if len(tensors) > num_blocks:
                raise CsktError(f"{where}: {kind} for {len(tensors)} blocks, the tower has {num_blocks}")
            for tensor in tensors:
                if tensor.ndim != 2 or tensor.shape[1] != columns:
                    raise CsktError(f"{where}: {kind} of shape {list(tensor.shape)}, expected [rows, {columns}]")
        if len({len(tensor) for tensor in added.prompts}) > 1:
            raise CsktError(f"{where}: the number of prompts differs between blocks; give each block the same")
        for kind, modules in added.modules.items():
            if len(modules) != num_blocks:
                raise CsktError(f"{where}: {kind} has {len(modules)} modules, the tower has {num_blocks} blocks")
        for updates in added.low_rank or ():
            targets = () if updates is None else dict(updates.named_children())
            if unknown := [target for target in targets if target not in LAYERS]:
                raise CsktError(f"{where}: low_rank target '{unknown[0]}' is none of {', '.join(LAYERS)}")
    depths = {name: len(added.prompts) for name, added in extras.items() if added.prompts}
    if len(set(depths.values())) > 1:
        raise CsktError(
            f"the method parts {', '.join(depths)} add prompts to {', '.join(map(str, depths.values()))} blocks of the"
            f" {side} tower; give them the same depth"
        )


def _check_types(added: PartExtras, where: str) -> None:
    """Check that every field is a list of tensors, or of modules."""
    for kind, value in vars(added).items():
        is_modules = kind in BlockExtras._fields
        kinds = (nn.Module, type(None)) if is_modules else Tensor
        if not (_is_list_of(value, kinds) or (is_modules and value is None)):
            expected = "a module or None for each block" if is_modules else "a tensor for each block"
            raise CsktError(f"{where}: {kind} is {described(value)}; expected a list with {expected}")


def _is_list_of(values: object, kinds: type | tuple[type, ...]) -> bool:
    if not isinstance(values, Sequence | nn.ParameterList | nn.ModuleList):
        return False
    return all(isinstance(value, kinds) for value in values)


def check_part(name: str, part: Part) -> None:
    """Check the buffers and the embedding head of a part.

    Raises:
        CsktError: a buffer that no file would hold; a head that looks at other rows beside additions to a tower.
    """
    where, saved = f"method part '{name}'", part.state_dict()
    if missing := next((buffer for buffer, _ in part.named_buffers() if buffer not in saved), None):
        raise CsktError(f"{where}: the buffer '{missing}' is not persistent, so no file holds it; leave out persistent")
    if not part.by_row and (part.embedding_width is None or any(part.extras(side).kinds for side in SIDES)):
        raise CsktError(
            f"{where}: by_row = False is for an embedding head that adds nothing to the towers; make two parts of it"
        )
