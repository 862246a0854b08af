"""Operations on images in training: the registry (`base`), and those of the package (`standard`)."""

from cskt.data.operations.base import (
    OPERATIONS,
    Operation,
    apply_operations,
    check_operations,
    operation_names,
    register,
)
from cskt.data.operations.standard import draw_rectangles, inside

__all__ = [
    "OPERATIONS", "Operation", "apply_operations", "check_operations", "draw_rectangles", "inside", "operation_names",
    "register",
]  # fmt: skip
