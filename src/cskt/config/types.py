"""Types of config values."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from annotated_types import Ge, Gt, Le
from pydantic import AfterValidator, BeforeValidator, ConfigDict

from cskt.errors import CsktError
from cskt.utils.paths import expanded


def _no_truth_value(value: Any) -> Any:
    if isinstance(value, bool):
        raise CsktError("input should be a number")
    return value


def empty_if_none(fields: Any) -> Any:
    """Return `{}` for what YAML reads where nothing follows a key."""
    return {} if fields is None else fields


def normalised(name: str) -> str:
    """Return the name of a data set in lower case, with hyphens in place of underscores."""
    return name.strip().lower().replace("_", "-")


def _home_expanded(location: str) -> str:
    return str(expanded(location)) if location.startswith("~") else location


Location: TypeAlias = Annotated[str, AfterValidator(_home_expanded)]
"""A path, with the home folder in place of a leading `~`, or a name that stands for one."""
DatasetName: TypeAlias = Annotated[str, AfterValidator(normalised)]
"""Name under which a data set is registered; `RSTPReid` is read as `rstpreid`."""
Whole: TypeAlias = Annotated[int, BeforeValidator(_no_truth_value)]  # YAML's `yes` would otherwise be a 1
Real: TypeAlias = Annotated[float, BeforeValidator(_no_truth_value)]
Positive: TypeAlias = Annotated[Whole, Gt(0)]
NonNegative: TypeAlias = Annotated[Whole, Ge(0)]
PositiveReal: TypeAlias = Annotated[Real, Gt(0)]
NonNegativeReal: TypeAlias = Annotated[Real, Ge(0)]
Size: TypeAlias = Annotated[Positive, Le(100_000)]
"""A width, a side, a number of tokens. The limits are far beyond any CLIP; without them a weight file of a few bytes,
or a slip of the finger, asks for more memory than there is."""
Depth: TypeAlias = Annotated[Positive, Le(200)]
"""A number of blocks."""
Fraction: TypeAlias = Annotated[Real, Ge(0), Le(1)]
Range: TypeAlias = tuple[Real, Real]
_Mean: TypeAlias = Annotated[Real, Ge(-1e6), Le(1e6)]
_Std: TypeAlias = Annotated[Real, Ge(1e-6), Le(1e6)]
ChannelMeans: TypeAlias = tuple[_Mean, _Mean, _Mean]
"""Mean of the red, green and blue channel, of pixels in [0, 1]."""
ChannelStds: TypeAlias = tuple[_Std, _Std, _Std]
"""Standard deviation of the channels, likewise."""

Plain: TypeAlias = bool | int | float | str | list[Any] | None
"""A constant of a plug-in, which checks it itself."""

Activation: TypeAlias = Literal["quick_gelu", "gelu"]
Interpolation: TypeAlias = Literal["bilinear", "bicubic"]
"""Filter that resizes images, antialiased."""
Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]
"""Arithmetic of the towers."""
WeightsChoice: TypeAlias = Literal["model", "ema"]
"""Choice of weights in a checkpoint: those of the model, or their moving average."""

STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
