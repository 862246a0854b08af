"""Folders that `cskt export --format` writes: two graphs for ONNX Runtime or OpenVINO, and the files beside them.

    image.onnx | image.xml + image.bin   uint8 RGB [B, 3, H, W], resized, not normalised -> unit rows [B, D]
    text.onnx  | text.xml + text.bin     int64 caption ids [B, L], L from 3 -> unit rows [B, D]
    tokenizer.json                       CLIP's tokenizer for the library `tokenizers`
    exported.json                        `ExportedFacts`

The image graph contains the model's normalisation; it takes whole numbers, so that pixels cannot be normalised twice.
`ExportedEncoder` replaces an `Encoder` everywhere except in heat maps.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import shutil
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias, cast

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from cskt.config import ClipArchitecture
from cskt.config.types import Interpolation, Positive
from cskt.data.tokenizer import Tokenizer
from cskt.embed.encoder import CPU, Encoder
from cskt.embed.options import EncodeOptions, ModelSource
from cskt.errors import SHORT, CsktError, MissingFileError, file_system_errors
from cskt.model.clip import place_prompts
from cskt.model.dual_encoder import DualEncoder
from cskt.model.io.cache import sha256_of
from cskt.utils.json_files import JSON, read_json
from cskt.utils.messages import one_line, require

EXPORTED = "exported.json"
"""Its presence marks an exported folder."""
TOKENIZER = "tokenizer.json"
FORMAT_VERSION = 1
SHORTEST_CAPTION = 3
"""Fewest token positions that the text graph takes; shorter captions are padded, which changes nothing."""

Form: TypeAlias = Literal["onnx", "openvino"]
Graph: TypeAlias = Callable[[Tensor], Tensor]
"""A batch -> its unit rows, float32."""
SUFFIXES: dict[Form, str] = {"onnx": ".onnx", "openvino": ".xml"}
"""Suffix of a graph's file; OpenVINO's weights are in a `.bin` beside it."""
EXPORT_FILES = (
    EXPORTED, TOKENIZER,
    *(f"{tower}{suffix}" for tower in ("image", "text") for suffix in (".onnx", ".onnx.data", ".xml", ".bin")),
)  # fmt: skip
"""Names of the files that a folder may consist of."""


@dataclass(config=JSON, frozen=True)
class ExportedFacts:
    """Content of `exported.json`."""

    form: Form
    precision: Literal["fp32", "int8"]
    """Arithmetic of the image graph."""
    fingerprint: str
    """In float32 that of the source, whose vectors are equal up to rounding. Int8 has its own: its scores differ by
    more, and in a gallery of both, ranks would depend on which model encoded a crop."""
    architecture: ClipArchitecture
    longest_caption: Positive
    """Most token positions that the text graph takes: the context length minus the prompts."""
    known_token_ids: tuple[int, ...] | None
    """The only tokens whose embedding the model holds; None if it holds all."""
    templates: tuple[str, ...]
    """Sentences around every caption, see `Encoder`."""
    num_parameters: Positive
    """Number of parameters of the source."""
    config: dict[str, Any] | None
    """The run's config; None if the source was no run."""
    sha256: dict[str, str]
    """Digests of the other files."""
    usage: dict[str, str]
    """Instructions for other programs on preparing images and captions."""
    versions: dict[str, str]
    """Versions of the packages that wrote the folder."""
    parity: dict[str, Any] | None = None
    """Result of the check of the export; see `cskt.export.check.Parity`."""
    interpolation: Interpolation = "bilinear"
    """Filter that resizes images to the size of the architecture."""
    embed_dim: Positive | None = None
    """Length of the vectors; None if it is that of the architecture."""
    apply_orientation: bool = False
    """True if image files are turned as their EXIF orientation says, see `Encoder`."""
    clean_captions: bool = False
    """True if punctuation is taken out of captions first; see `cskt.data.tokenizer.without_punctuation`."""
    note: str = ""
    """A condition that a reader of the model's scores must know, see `Encoder`."""
    text_precision: Literal["fp32", "int8"] = "fp32"
    """Arithmetic of the text graph."""


def is_exported(folder: Path) -> bool:
    """Return whether a folder was written by `cskt export --format`."""
    return (folder / EXPORTED).is_file()


def read_facts(folder: Path) -> ExportedFacts:
    """Read `exported.json` of a folder."""
    version = ("format_version", FORMAT_VERSION)
    try:
        return read_json(folder / EXPORTED, ExportedFacts, remedy="export again", version=version)
    except MissingFileError:
        raise CsktError(f"{folder}: not an exported model (it has no {EXPORTED})") from None


def load_exported(folder: Path, options: EncodeOptions | None = None) -> ExportedEncoder:
    """Load an exported folder as an encoder on the CPU.

    Its precision is fixed, and its templates are used unless `options` names others.

    Raises:
        CsktError: not an exported folder, a file that is missing or changed, or another device or precision.
    """
    facts, options = read_facts(folder), options or EncodeOptions()
    for name, digest in facts.sha256.items():
        path = folder / name  # may be a link: in the cache of huggingface_hub every file is one
        if name not in EXPORT_FILES:
            named = f"sha256 names {SHORT.repr(name)}, which no export writes"
            raise CsktError(f"{folder / EXPORTED}: {named}; export again")
        if not path.is_file() or sha256_of(path) != digest:
            raise CsktError(f"{path}: missing, or changed since the export; export again")
    if str(options.device or "auto") not in ("auto", "cpu"):
        raise CsktError(f"{folder}: an exported model computes on the CPU, not on {options.device}; use --device cpu")
    if options.precision not in (None, "auto", facts.precision):
        raise CsktError(f"{folder}: exported as {facts.precision}, not {options.precision}; leave --precision out")
    return ExportedEncoder(ExportedModel(folder, facts), options)


class ExportedModel(nn.Module):
    """The two graphs of a folder, each opened when it is first used, on as many threads as torch uses then."""

    def __init__(self, folder: Path, facts: ExportedFacts) -> None:
        super().__init__()
        self.folder, self.facts, self.architecture = folder, facts, facts.architecture
        self.embed_dim = facts.embed_dim or facts.architecture.embed_dim

    @cached_property
    def image_graph(self) -> Graph:
        """[B, 3, H, W] uint8 -> [B, D]."""
        return self._open("image")

    @cached_property
    def text_graph(self) -> Graph:
        """[B, L] int64 -> [B, D]."""
        return self._open("text")

    def _open(self, tower: str) -> Graph:
        path = self.folder / f"{tower}{SUFFIXES[self.facts.form]}"
        return _open_onnx(path) if self.facts.form == "onnx" else _open_openvino(path)

    def num_parameters(self, *, trainable_only: bool = False) -> int:
        """Return the number of scalars of the source; none of them trains any more."""
        return 0 if trainable_only else self.facts.num_parameters

    def encode_image(self, images: Tensor) -> NoReturn:
        """Raise an error: heat maps call this for a gradient, which no graph has."""
        raise CsktError(f"{self.folder}: heat maps need gradients, an exported model has none; use the run itself")


class ExportedEncoder(Encoder):
    """An `Encoder` whose towers are exported graphs."""

    def __init__(self, model: ExportedModel, options: EncodeOptions) -> None:
        self._graphs, self.folder, self.facts = model, model.folder, model.facts
        facts, source = model.facts, ModelSource(str(model.folder))
        tokenizer = Tokenizer(
            facts.longest_caption,
            facts.known_token_ids,
            clean_captions=facts.clean_captions,
            vocab_size=facts.architecture.vocab_size,
        )
        templates = options.templates or facts.templates
        options = dataclasses.replace(options, device=CPU, precision=None, templates=templates)
        super().__init__(
            cast(DualEncoder, model), tokenizer, options, interpolation=facts.interpolation,
            apply_orientation=facts.apply_orientation, source=source, note=facts.note,
        )  # fmt: skip
        self.precision = facts.precision

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the folder; with other templates, a digest of it and of them."""
        if self.templates == self.facts.templates:
            return self.facts.fingerprint
        return hashlib.sha256(json.dumps([self.facts.fingerprint, self.templates]).encode()).hexdigest()

    def save(self, path: str | Path) -> Path:
        """Copy the exported folder to a new folder; see `Encoder.save`."""
        if Path(path).exists():
            raise CsktError(f"{path}: exists already; name another folder")
        with file_system_errors(path):
            Path(path).mkdir(parents=True)
            for name in (*self.facts.sha256, EXPORTED):
                shutil.copyfile(self.folder / name, Path(path) / name)
        return Path(path)

    def _method(self) -> str:
        return self.facts.form

    def _normalised_features(self, images: Tensor) -> Tensor:
        raise CsktError(f"expected uint8 pixels, found {images.dtype}; an exported model normalises them itself")

    def _pixel_features(self, pixels: Tensor) -> Tensor:
        return self._graphs.image_graph(pixels)

    def _text_features(self, caption_ids: Tensor) -> Tensor:
        # Longer captions lose words before their end token, as they do where prompts take positions.
        end_id, longest = self.tokenizer.end_id, self.facts.longest_caption
        cut = place_prompts(caption_ids, 0, end_id=end_id, context_length=longest).ids
        return self._graphs.text_graph(F.pad(cut, (0, max(0, SHORTEST_CAPTION - cut.shape[1]))))


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
        raise CsktError(f"{path}: this openvino cannot read it ({one_line(error)}); update it") from None

    def run(batch: Tensor) -> Tensor:
        request = compiled.create_infer_request()  # one belongs to one thread
        return torch.from_numpy(request.infer([batch.contiguous().numpy()], share_outputs=False)[0])

    return run


def import_silent(name: Literal["openvino", "nncf"]) -> Any:
    """Import OpenVINO or NNCF without their telemetry: the module that would send it is hidden in this process."""
    sys.modules.setdefault("openvino_telemetry", cast(Any, None))
    return importlib.import_module(name)
