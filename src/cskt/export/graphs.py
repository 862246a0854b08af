"""The folded towers of a model (`cskt.model.folded`) as graphs of other runtimes: ONNX, OpenVINO, OpenVINO in int8.

All start from `torch.export`: batch size and caption length are dynamic, prompts and couplings are constants. The image
graph begins with the model's normalisation, and both end with the division by the length.
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
    """Caption ids to unit rows. The ids must leave positions for the prompts: cutting them is a branch, which a graph
    cannot have."""

    def __init__(self, text: FoldedText) -> None:
        super().__init__()
        self.text = text

    def forward(self, caption_ids: Tensor) -> Tensor:
        """[B, L] int64, L up to the context without the prompts' share -> [B, D] float32."""
        num_slots = self.text.num_slots
        slots = caption_ids.new_zeros(len(caption_ids), num_slots)
        ids = torch.cat([caption_ids[:, :1], slots, caption_ids[:, 1:]], dim=1)
        placed = PlacedCaptions(ids, caption_ids.argmax(dim=1) + num_slots, 1 + num_slots)
        return F.normalize(self.text.features(placed), dim=-1)


def write_graphs(
    encoder: Encoder, folder: Path, form: Form, images: Sequence[Tensor] = (), captions: Sequence[str] = ()
) -> None:
    """Write `image` and `text` graphs into a folder; see `cskt.export.folder.write_folder`.

    Args:
        images: pixels [3, H, W] uint8 that set the ranges of the image graph in int8; none for float32.
        captions: sentences that set those of the text graph; none for float32.
    """
    architecture, longest = encoder.model.architecture, encoder.tokenizer.context_length
    pixels = torch.zeros(2, 3, architecture.image_height, architecture.image_width, dtype=torch.uint8)
    ids = torch.full((2, longest - 1), encoder.tokenizer.end_id)
    caption_ids = [
        F.pad(row, (0, max(0, SHORTEST_CAPTION - len(row))))
        for caption in captions
        for row in encoder.tokenizer([encoder.templates[0].replace("{}", caption)])
    ]
    with torch.no_grad(), _quiet():
        image = _traced(ImageGraph(fold_vision(encoder.model), architecture), pixels, {0: Dim("batch")})
        length = Dim("length", min=SHORTEST_CAPTION, max=longest)
        text = _traced(TextGraph(fold_text(encoder.model)), ids, {0: Dim("batch"), 1: length})
        if form == "onnx":
            _write_onnx(image, folder / "image.onnx", "pixels")
            _write_onnx(text, folder / "text.onnx", "caption_ids")
        else:
            _write_openvino(image, folder / "image.xml", "pixels", images)
            _write_openvino(text, folder / "text.xml", "caption_ids", caption_ids)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the messages of torch, ONNX and NNCF; stdout is for the command's own output."""
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
    for node in model.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces, with folders of this machine
    model.save(path, external_data=False)


def _write_openvino(program: ExportedProgram, path: Path, name: str, calibration: Sequence[Tensor]) -> None:
    openvino = import_silent("openvino")
    model = openvino.convert_model(program)
    model.inputs[0].get_tensor().set_names({name})
    model.outputs[0].get_tensor().set_names({"features"})
    if calibration:
        model = _quantised(model, calibration)
    openvino.save_model(model, path, compress_to_fp16=False)


def _quantised(model: Any, calibration: Sequence[Tensor]) -> Any:
    """Quantise weights and inputs of matrix products to int8 with ranges of the calibration inputs (NNCF)."""
    nncf = import_silent("nncf")
    batches = [one[None].numpy() for one in calibration]
    # The default range is the mean of the images' largest values, which clips unusual crops: on generated pedestrians
    # cosines to float32 fell to 0.956 and R1 by a point. With the largest of all, cosines are 0.996 and R1 is equal.
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
