"""Source of a model (`ModelSource`) and options of its computation (`EncodeOptions`), shared by the shell, Python,
galleries and the HTTP service."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

import torch
from annotated_types import Ge, Le, Len
from pydantic import AfterValidator, with_config

from cskt.config import DataConfig
from cskt.config.types import WeightsChoice
from cskt.errors import CsktError
from cskt.utils.arguments import expect, listed, whole_number
from cskt.utils.json_files import JSON


@dataclass(frozen=True)
class EncodeOptions:
    """Options of an `Encoder`'s computation."""

    device: str | torch.device | None = None
    """cpu, cuda, cuda:1 or mps; auto and None take the best one of this machine."""
    precision: str | None = None
    """Arithmetic of the towers: fp32, bf16, fp16, or auto, which is bf16 on a CPU that multiplies bfloat16 by itself.
    None: as the run was trained, fp32 for plain CLIP. Features come out in float32."""
    templates: Sequence[str] | None = None
    """Sentences around every caption, `{}` being the caption; the unit features of several are averaged and normalised
    again. None: those of the run."""
    batch_size: int = DataConfig.eval_batch_size
    """Images or captions computed at once."""
    num_workers: int = DataConfig.num_workers
    """Threads that decode images."""
    cache_dir: str | Path | None = None
    """Folder of a memory-mapped cache of the resized images (`cskt.data.pixel_cache`), for image files."""
    compile: bool = False
    """Compile the towers with torch.compile; on a CPU that takes a C++ compiler."""
    show_progress: bool = False
    """Draw bars on stderr while encoding."""

    def __post_init__(self) -> None:
        expect(self.device, (str, torch.device, type(None)), "device")
        expect(self.precision, (str, type(None)), "precision")
        whole_number(self.batch_size, "batch_size", 1)
        whole_number(self.num_workers, "num_workers", 0)
        expect(self.cache_dir, (str, Path, type(None)), "cache_dir")
        expect(self.compile, bool, "compile")
        expect(self.show_progress, bool, "show_progress")
        templates = listed(() if self.templates is None else self.templates, str, "templates")
        if isinstance(self.templates, str) or not all(template.count("{}") == 1 for template in templates):
            raise CsktError("templates must be a list of sentences, each with one {} where the caption goes")


class ComputeKeywords(TypedDict, total=False):
    """`EncodeOptions` as keyword arguments, without device and precision."""

    templates: Sequence[str] | None
    batch_size: int
    num_workers: int
    cache_dir: str | Path | None
    compile: bool
    show_progress: bool


class EncodeKeywords(ComputeKeywords, total=False):
    """`EncodeOptions` as keyword arguments."""

    device: str | torch.device | None
    precision: str | None


def check_path_text(text: str) -> str:
    """Return the text of a path or name, unless it contains a null character."""
    if "\0" in text:
        raise CsktError("must be a path or a name, without a null character")
    return text


PathText = Annotated[str, Len(1, 4096), AfterValidator(check_path_text)]
ShortText = Annotated[str, Len(0, 1000)]
SidePixels = Annotated[int, Ge(1), Le(100_000)]
"""Side of an image in pixels."""


@with_config(JSON)
@dataclass(frozen=True)
class ModelSource:
    """Arguments of `cskt.load`, which a gallery stores to load its model again."""

    path: PathText
    """A run, a released folder, an exported folder, a CLIP weight file or its published name, or `clip-tiny`."""
    backbone: PathText | None = None
    """CLIP weights of an adapter-only run; None: those that its config names."""
    image_height: SidePixels | None = None
    """Size and stride for plain CLIP weights, in pixels; None: the defaults of `load`."""
    image_width: SidePixels | None = None
    stride: SidePixels | None = None
    precision: ShortText | None = None
    """See `EncodeOptions`; None is auto where a gallery loads its model."""
    weights: WeightsChoice | None = None
    """Choice of weights in a checkpoint that also holds their moving average; None: those of the model."""
    settings: dict[str, Any] | None = None
    """Settings that the file of plain CLIP weights does not state; see `cskt.load`."""
    ignore_extra: bool = False
    """Leave out tensors of a released folder that its method does not have; see `cskt.load`."""


def merged(options: EncodeOptions | None, changes: EncodeKeywords | ComputeKeywords) -> EncodeOptions:
    """Return options with keyword arguments laid over them."""
    return dataclasses.replace(options or EncodeOptions(), **changes)
