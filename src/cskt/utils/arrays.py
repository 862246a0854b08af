"""Lists, NumPy arrays and tensors as PyTorch tensors, for functions that take either."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from cskt.errors import CsktError

Numbers = Tensor | ArrayLike
"""A PyTorch tensor, a NumPy array, or a list (of lists) of numbers."""


def tensor_of(values: Numbers, name: str) -> Tensor:
    """Return a tensor without gradient that shares memory with `values` if possible.

    Raises:
        CsktError: `values` is no rectangular array of real numbers; calls it `name`.
    """
    if isinstance(values, list | tuple) and any(isinstance(item, Tensor) for item in values):
        rows = [tensor_of(item, name).cpu() for item in values]
        values = [(row.float() if row.dtype == torch.bfloat16 else row).numpy() for row in rows]
    if isinstance(values, Tensor):
        tensor = values.detach().to_dense()
        if tensor.dtype in (torch.uint16, torch.uint32, torch.uint64):
            tensor = _from_numpy(tensor.cpu().numpy(), name)
    else:
        if np.ma.is_masked(values):
            raise CsktError(f"{name} is a masked array, and masked entries have no value; fill or leave them out")
        try:
            array = np.asarray(values)
        except (ValueError, TypeError, RuntimeError) as error:
            raise CsktError(f"{name} is no rectangular array of numbers ({' '.join(str(error).split())})") from None
        tensor = _from_numpy(array, name)
    if tensor.is_complex():
        raise CsktError(f"{name} holds complex numbers; give real ones")
    if tensor.dtype == torch.bool:
        return tensor.to(torch.uint8)
    # The 8-bit floats can be stored and converted, but not compared.
    return tensor.float() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor


def _from_numpy(array: np.ndarray[Any, Any], name: str) -> Tensor:
    """Return an array of any number type, byte order and layout as a tensor."""
    if array.dtype.kind == "c":
        raise CsktError(f"{name} holds complex numbers; give real ones")
    if array.dtype.kind not in "biuf":
        raise CsktError(
            f"{name} holds {array.dtype.name} values; give numbers (names are numbered by numpy.unique with"
            " return_inverse=True)"
        )
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:  # torch can hardly compute with these
        largest = np.iinfo(np.int64).max
        if array.size and array.max() > largest:
            raise CsktError(f"{name} holds {array.max()}; give at most {largest}")
        array = array.astype(np.int64)
    elif array.dtype.kind == "f" and array.dtype.itemsize > 8:  # long double
        array = array.astype(np.float64)
    # torch takes neither another byte order, nor negative strides, nor memory that must not be written.
    return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))


def is_plain_list(values: Numbers) -> bool:
    """Return whether the numbers are Python's own, in a list or tuple, nested or not."""
    if not isinstance(values, list | tuple):
        return False
    leaf: object = values
    while isinstance(leaf, list | tuple) and leaf:
        leaf = leaf[0]
    return isinstance(leaf, float) and not isinstance(leaf, np.generic)
