"""Folders that `cskt export --format` wrote: two graphs for ONNX Runtime or OpenVINO, and what belongs to them.

    image.onnx | image.xml + image.bin   uint8 RGB [B, 3, H, W], resized, nothing else done to it -> unit rows [B, D]
    text.onnx  | text.xml + text.bin     int64 caption ids [B, L], L from 3 -> unit rows [B, D]
    tokenizer.json                       CLIP's tokenizer for the library `tokenizers`
    exported.json                        `ExportedFacts`: sizes, tokens, templates, digests, what the check found

The model's normalisation is inside the image graph, whose input is whole numbers: pixels cannot be normalised twice,
since normalised ones do not fit. `ExportedEncoder` takes the place of an `Encoder` everywhere but under heat maps.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias, cast

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from cskt.config import ClipArchitecture
from cskt.config.types import Interpolation, Positive
from cskt.data.tokenizer import END_ID, Tokenizer
from cskt.embed.encoder import Encoder
from cskt.errors import CsktError, MissingFileError
from cskt.model.clip import place_prompts
from cskt.model.dual_encoder import DualEncoder
from cskt.model.io.cache import sha256_of
from cskt.utils.extras import require
from cskt.utils.json_files import JSON, read_json
from cskt.utils.paths import inside

EXPORTED = "exported.json"
"""What tells such a folder."""
TOKENIZER = "tokenizer.json"
FORMAT_VERSION = 1
SHORTEST_CAPTION = 3
"""Fewest token positions that the text graph takes; shorter captions are padded, which changes nothing."""
CPU = torch.device("cpu")

Form: TypeAlias = Literal["onnx", "openvino"]
Graph: TypeAlias = Callable[[Tensor], Tensor]
"""A batch -> its unit rows, float32."""


@dataclass(config=JSON, frozen=True)
class ExportedFacts:
    """What `exported.json` says."""

    form: Form
    precision: Literal["fp32", "int8"]
    """Of the image graph; the text graph is float32."""
    fingerprint: str
    """Of the source in float32: the vectors are the same up to rounding. Int8 has one of its own: its cosines live in
    the same space, but beside float32 ones in one gallery a crop's rank and the cut-off would depend on who encoded."""
    architecture: ClipArchitecture
    longest_caption: Positive
    """Most token positions that the text graph takes: the context without the prompts' share."""
    known_token_ids: tuple[int, ...] | None
    """Tokens whose embedding the model really holds; none if it holds all."""
    templates: tuple[str, ...]
    """Sentences around every caption, see `Encoder`."""
    num_parameters: Positive
    """Of the source."""
    config: dict[str, Any] | None
    """The run's configuration; none if the source was no run."""
    sha256: dict[str, str]
    """Digests of the other files."""
    usage: dict[str, str]
    """How other programs prepare images and captions."""
    versions: dict[str, str]
    """Of what wrote the folder."""
    parity: dict[str, Any] | None = None
    """What the check of the export found; see `cskt.export.check.Parity`."""
    interpolation: Interpolation = "bilinear"
    """Filter that resizes images to the size of the architecture."""
    apply_orientation: bool = False
    """True if image files are turned as their EXIF orientation says, see `Encoder`."""


def is_exported(folder: Path) -> bool:
    """Whether a folder was written by `cskt export --format`."""
    return (folder / EXPORTED).is_file()


def read_facts(folder: Path) -> ExportedFacts:
    """What an exported folder says of itself.

    Raises:
        CsktError: there is none, or it is of another version, damaged or incomplete.
    """
    try:
        return read_json(
            folder / EXPORTED, ExportedFacts, remedy="export again", version=("format_version", FORMAT_VERSION)
        )
    except MissingFileError:
        raise CsktError(f"{folder}: no exported model there (it has no {EXPORTED})") from None


def load_exported(
    folder: Path,
    device: str | torch.device | None = None,
    *,
    precision: str | None = None,
    templates: Sequence[str] | None = None,
    **settings: Any,
) -> ExportedEncoder:
    """The encoder of an exported folder.

    Args:
        folder: what `cskt export --format` wrote.
        device: cpu or auto.
        precision: the folder's own, or auto, or none.
        templates: see `Encoder`; the folder's own if empty.
        settings: batch_size, num_workers, cache_dir, show_progress, see `Encoder`.

    Raises:
        CsktError: the folder is damaged, its runtime is not installed, or it cannot compute as asked.
    """
    facts = read_facts(folder)
    for name, digest in facts.sha256.items():
        path = inside(folder, name)
        if not path.is_file() or sha256_of(path) != digest:
            raise CsktError(f"{path}: missing, or not as it was exported; export again")
    if device is not None and str(device) not in ("auto", "cpu"):
        raise CsktError(f"{folder}: an exported model computes on the CPU, not on {device}; use --device cpu")
    if precision not in (None, "auto", facts.precision):
        raise CsktError(f"{folder}: exported as {facts.precision}, not {precision}; leave --precision out")
    return ExportedEncoder(ExportedModel(folder, facts), templates or facts.templates, **settings)


class ExportedModel(nn.Module):
    """The two graphs of a folder, each opened when it is first used, and what may be asked of a model beside them."""

    def __init__(self, folder: Path, facts: ExportedFacts) -> None:
        super().__init__()
        self.folder, self.facts, self.architecture = folder, facts, facts.architecture

    @cached_property
    def image_graph(self) -> Graph:
        """[B, 3, H, W] uint8 -> [B, D]."""
        return open_graph(self.folder, "image", self.facts.form)

    @cached_property
    def text_graph(self) -> Graph:
        """[B, L] int64 -> [B, D]."""
        return open_graph(self.folder, "text", self.facts.form)

    def num_parameters(self, *, trainable_only: bool = False) -> int:
        """Number of scalars of the source; none of them trains any more."""
        return 0 if trainable_only else self.facts.num_parameters

    def encode_image(self, images: Tensor) -> NoReturn:
        """Float images are what heat maps give, for a gradient that no graph has."""
        raise CsktError(f"{self.folder}: heat maps need gradients, an exported model has none; use the run itself")


class ExportedEncoder(Encoder):
    """An `Encoder` whose towers are exported graphs."""

    def __init__(self, model: ExportedModel, templates: Sequence[str], **settings: Any) -> None:
        tokenizer = Tokenizer(model.facts.longest_caption, known_ids=model.facts.known_token_ids)
        super().__init__(
            cast(DualEncoder, model), tokenizer, device=CPU, templates=templates,
            interpolation=model.facts.interpolation, apply_orientation=model.facts.apply_orientation, **settings,
        )  # fmt: skip
        self.folder, self.facts, self.precision = model.folder, model.facts, model.facts.precision
        self._graphs = model

    @cached_property
    def fingerprint(self) -> str:
        """The folder's; other templates give other features, and so another one."""
        if self.templates == self.facts.templates:
            return self.facts.fingerprint
        return hashlib.sha256(json.dumps([self.facts.fingerprint, self.templates]).encode()).hexdigest()

    def _encode_normalised(self, images: Tensor) -> Tensor:
        raise CsktError(f"expected uint8 pixels, found {images.dtype}; an exported model normalises them itself")

    def _encode_pixels(self, pixels: Tensor) -> Tensor:
        return self._graphs.image_graph(pixels)

    def _encode_caption_ids(self, caption_ids: Tensor) -> Tensor:
        # Longer captions lose words before their end token, as they do where the source gives them room for prompts.
        cut, _ = place_prompts(caption_ids, 0, end_id=END_ID, context_length=self.facts.longest_caption)
        return self._graphs.text_graph(F.pad(cut, (0, max(0, SHORTEST_CAPTION - cut.shape[1]))))


SUFFIXES: dict[Form, str] = {"onnx": ".onnx", "openvino": ".xml"}
"""Of a graph's file; OpenVINO's weights lie beside it in a `.bin`."""


def open_graph(folder: Path, tower: Literal["image", "text"], form: Form) -> Graph:
    """A graph, ready to compute on as many threads as torch uses.

    Raises:
        CsktError: its runtime is not installed, or does not read it.
    """
    path = folder / f"{tower}{SUFFIXES[form]}"
    return _open_onnx(path) if form == "onnx" else _open_openvino(path)


def _open_onnx(path: Path) -> Graph:
    require("onnx", "onnxruntime")
    runtime = importlib.import_module("onnxruntime")
    runtime.disable_telemetry_events()  # Microsoft's builds for Windows would report their use
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return lambda batch: torch.from_numpy(session.run(None, {given.name: batch.contiguous().numpy()})[0])


def _open_openvino(path: Path) -> Graph:
    require("openvino", "openvino")
    openvino = import_silent("openvino")
    # Left alone, the CPU plugin computes in bfloat16 wherever it can.
    exact = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    try:
        compiled = openvino.Core().compile_model(path, "CPU", exact)
    except RuntimeError as error:
        raise CsktError(f"{path}: this openvino cannot read it ({' '.join(str(error).split())}); update it") from None

    def run(batch: Tensor) -> Tensor:
        request = compiled.create_infer_request()  # one belongs to one thread
        return torch.from_numpy(request.infer([batch.contiguous().numpy()], share_outputs=False)[0])

    return run


def import_silent(name: Literal["openvino", "nncf"]) -> Any:
    """OpenVINO or NNCF without their telemetry.

    Both report their import and every quantisation to a server unless asked not to; where the module that would send
    is absent, they go without. So it is absent from here on, in this process, unless somebody has imported it before.
    """
    sys.modules.setdefault("openvino_telemetry", cast(Any, None))
    return importlib.import_module(name)
