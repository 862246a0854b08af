"""The folded towers of a model (`cskt.model.folded`) as graphs of other runtimes: ONNX, OpenVINO, OpenVINO in int8.

All start from `torch.export`: the size of a batch and the length of the captions stay open, prompts and couplings are
constants, the model's normalisation comes before the image tower and the division by the length after both.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from cskt.config import ClipArchitecture
from cskt.data.images import normalise
from cskt.data.tokenizer import END_ID
from cskt.embed import Encoder
from cskt.embed.exported import SHORTEST_CAPTION, Form, import_silent
from cskt.model.clip import PlacedCaptions
from cskt.model.folded import FoldedText, FoldedVision, fold_text, fold_vision


class ImageGraph(nn.Module):
    """Pixels to unit rows."""

    def __init__(self, tower: FoldedVision, architecture: ClipArchitecture) -> None:
        super().__init__()
        self.tower = tower
        self.mean, self.std = architecture.image_mean, architecture.image_std

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] uint8 -> [B, D] float32."""
        return F.normalize(self.tower(normalise(pixels, self.mean, self.std)), dim=-1)


class TextGraph(nn.Module):
    """Caption ids to unit rows. They fit beside the prompts already: where to cut them would be a branch, and a graph
    has none."""

    def __init__(self, text: FoldedText) -> None:
        super().__init__()
        self.text = text

    def forward(self, caption_ids: Tensor) -> Tensor:
        """[B, L] int64, L up to the context without the prompts' share -> [B, D] float32."""
        tower, num_slots = self.text.tower, self.text.num_slots
        slots = caption_ids.new_zeros(len(caption_ids), num_slots)
        ids = torch.cat([caption_ids[:, :1], slots, caption_ids[:, 1:]], dim=1)
        placed = PlacedCaptions(ids, caption_ids.argmax(dim=1) + num_slots)
        return F.normalize(tower.project(tower.end_token(placed, prefix_kv=list(self.text.prefix_kv))), dim=-1)


def write_graphs(encoder: Encoder, folder: Path, form: Form, calibration: Sequence[Tensor] | None) -> None:
    """Write `image` and `text` graphs into a folder; see `cskt.export.folder.write_folder`."""
    architecture, longest = encoder.model.architecture, encoder.tokenizer.context_length
    pixels = torch.zeros(2, 3, architecture.image_height, architecture.image_width, dtype=torch.uint8)
    ids = torch.full((2, longest - 1), END_ID)
    with torch.no_grad(), _quiet():
        image = _traced(ImageGraph(fold_vision(encoder.model), architecture), pixels, {0: Dim("batch")})
        length = Dim("length", min=SHORTEST_CAPTION, max=longest)
        text = _traced(TextGraph(fold_text(encoder.model)), ids, {0: Dim("batch"), 1: length})
        if form == "onnx":
            _write_onnx(image, folder / "image.onnx", "pixels")
            _write_onnx(text, folder / "text.onnx", "caption_ids")
        else:
            _write_openvino(image, folder / "image.xml", "pixels", calibration)
            _write_openvino(text, folder / "text.xml", "caption_ids", None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What torch, ONNX and NNCF say of their own work is not for users; stdout is the command's."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _traced(graph: nn.Module, example: Tensor, open_sizes: dict[int, Any]) -> ExportedProgram:
    return torch.export.export(graph.eval(), (example,), dynamic_shapes=(open_sizes,), strict=True)


def _write_onnx(program: ExportedProgram, path: Path, name: str) -> None:
    model = torch.onnx.export(program, input_names=[name], output_names=["features"], verbose=False)
    assert model is not None
    model.save(path, external_data=False)


def _write_openvino(program: ExportedProgram, path: Path, name: str, calibration: Sequence[Tensor] | None) -> None:
    openvino = import_silent("openvino")
    model = openvino.convert_model(program)
    model.inputs[0].get_tensor().set_names({name})
    model.outputs[0].get_tensor().set_names({"features"})
    if calibration is not None:
        model = _quantised(model, calibration)
    openvino.save_model(model, path, compress_to_fp16=False)


def _quantised(model: Any, calibration: Sequence[Tensor]) -> Any:
    """Weights and inputs of the matrix products in int8, their ranges read off the calibration images (NNCF)."""
    nncf = import_silent("nncf")
    model.reshape([-1, *calibration[0].shape])
    batches = [pixels[None].numpy() for pixels in calibration]
    # By default a range is the mean of the images' own largest values, which clips the unusual crop: on generated
    # pedestrians cosines to float32 fell to 0.956 and R1 by a point; with the largest of all, to 0.996 and not at all.
    ranges = importlib.import_module("nncf.quantization.range_estimator").RangeEstimatorParametersSet.MINMAX
    return nncf.quantize(
        model,
        nncf.Dataset(batches),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(batches),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            activations_range_estimator_params=ranges,
            overflow_fix=nncf.OverflowFix.ENABLE,  # weights of 7 bits: a CPU without VNNI adds products up in 16
        ),
    )
