"""Operations on images in training (`augment.ops`), their registry, and the views that they make.

An operation draws its numbers for the whole batch, one row per image, on the CPU, and applies them to some of its rows
on any device. So an image gets the same numbers on every device and whichever process computes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, get_type_hints

import torch
from torch import Tensor

from cskt.config import AugmentConfig, validate_value
from cskt.config.types import Fraction
from cskt.device import to_device
from cskt.errors import CsktError
from cskt.plugins import Registry
from cskt.utils.messages import described, nearest


@dataclass(frozen=True)
class Operation:
    """An operation on images; a subclass is a frozen dataclass, and `register` makes it known to configurations.

    Example:
        >>> from dataclasses import dataclass
        >>> from cskt.data.operations import Operation, register
        >>> @register("darken")
        ... @dataclass(frozen=True)
        ... class Darken(Operation):
        ...     least: float = 0.5
        ...     def draw(self, num_images, height, width, generator):
        ...         return self.least + (1 - self.least) * torch.rand(num_images, 1, generator=generator)
        ...     def apply(self, images, choices):
        ...         return images * choices[:, :, None, None].to(images.device)
    """

    probability: Fraction = 1.0
    """Chance that it is applied to an image."""

    def draw(self, num_images: int, height: int, width: int, generator: torch.Generator) -> Tensor:
        """Draw the numbers of the operation for images of a size in pixels: [num_images, K] for any K, on the CPU."""
        return torch.empty(num_images, 0)

    def apply(self, images: Tensor, choices: Tensor) -> Tensor:
        """Return changed images.

        Args:
            images: [b, 3, H, W] float32 in [0, 1], on any device.
            choices: [b, K], the rows of `draw` for these images, on the CPU.

        Returns:
            [b, 3, H, W] float32.
        """
        raise NotImplementedError


OPERATIONS: Registry[type[Operation]] = Registry("operation on images", "cskt.operations")
"""Operation by its name in a config."""
Kind = TypeVar("Kind", bound=type[Operation])


def register(name: str) -> Callable[[Kind], Kind]:
    """Return a decorator that makes an operation known to configurations: `augment.ops: {<name>: {<field>: ...}}`.

    Raises:
        CsktError: the name is taken or malformed, or what is decorated is no dataclass that extends `Operation`.
    """

    def add(kind: Kind) -> Kind:
        is_operation = isinstance(kind, type) and issubclass(kind, Operation) and "__dataclass_fields__" in vars(kind)
        if not (name.isidentifier() and is_operation):
            raise CsktError(
                f"operation '{name}': give a name of letters, digits and _, and a frozen dataclass that extends"
                " Operation"
            )
        return OPERATIONS.register(name, kind)

    return add


def check_operations(config: AugmentConfig) -> AugmentConfig:
    """Return a config with the fields of its operations as their types; raise CsktError for an unknown one."""
    views = {
        name: dataclasses.replace(view, ops=_checked(view.ops, f"augment.views.{name}.ops"))
        for name, view in config.views.items()
    }
    return dataclasses.replace(config, ops=_checked(config.ops, "augment.ops"), views=views)


def _checked(ops: Mapping[str, Mapping[str, Any]], key: str) -> dict[str, dict[str, Any]]:
    checked: dict[str, dict[str, Any]] = {}
    for name, given in ops.items():
        kind: Any = OPERATIONS[name]
        kinds, known = get_type_hints(kind, include_extras=True), [field.name for field in dataclasses.fields(kind)]
        if unknown := next((field for field in given if field not in known), None):
            raise CsktError(f"unknown key '{key}.{name}.{unknown}': {nearest(unknown, known)}")
        checked[name] = {
            field: validate_value(kinds[field], value, f"{key}.{name}.{field}") for field, value in given.items()
        }
        try:
            kind(**checked[name])
        except CsktError as error:
            raise CsktError(f"{key}.{name}: {error}") from None
    return checked


def operation_names(config: AugmentConfig) -> list[str]:
    """Return the names of all operations of a config."""
    return list(dict.fromkeys([*config.ops, *(name for view in config.views.values() for name in view.ops)]))


def apply_operations(
    images: Tensor, config: AugmentConfig, generator: torch.Generator, *, batch_size: int, first_row: int
) -> Tensor:
    """Apply `config.ops` to images [b, 3, H, W] uint8, rows `first_row` on of a batch of `batch_size` images.

    With `config.draws` each image gets so many of the operations, drawn with replacement; otherwise all, in order.

    Returns:
        [b, 3, H, W] float32 in [0, 1].
    """
    settings: Mapping[str, Mapping[str, Any]] = config.ops
    operations = {name: OPERATIONS[name](**fields) for name, fields in settings.items()}
    (height, width), device = images.shape[2:], images.device
    own, images = slice(first_row, first_row + len(images)), images.float().div_(255)
    drawn = torch.randint(len(operations), (batch_size, config.draws), generator=generator)
    for turn in range(config.draws or 1):
        for number, (name, operation) in enumerate(operations.items()):
            is_applied = torch.rand(batch_size, generator=generator) < operation.probability
            if config.draws:
                is_applied &= drawn[:, turn] == number
            choices = operation.draw(batch_size, height, width, generator)
            rows = is_applied[own].nonzero().squeeze(1)
            if len(rows):
                on_device = to_device(rows, device)
                changed = operation.apply(images[on_device], choices[own][rows])
                if not isinstance(changed, Tensor) or changed.shape != (len(rows), *images.shape[1:]):
                    expected = [len(rows), *images.shape[1:]]
                    raise CsktError(f"operation '{name}': apply returned {described(changed)}; expected {expected}")
                images[on_device] = changed
    return images
