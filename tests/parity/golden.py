"""Helpers of golden tests: figures and tensors of a case, and the weights that its rule gives."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import weights as rule
from safetensors.torch import load_file
from torch import Tensor, nn

from cskt.config import ClipArchitecture, OptimConfig
from cskt.model.io.layouts import OPENAI
from cskt.model.io.released.methods import released_name
from cskt.model.io.weights import gather, load_state, resize_positions, tower_shapes
from cskt.training.optim import parameter_groups
from cskt.utils.modules import named_tensors

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Golden:
    """A case as an independent implementation computed it."""

    figures: dict[str, Any]
    tensors: dict[str, Tensor]
    image_size: tuple[int, int] = (384, 128)

    @classmethod
    def read(cls, name: str, image_size: tuple[int, int] = (384, 128)) -> Golden:
        figures = json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))
        return cls(figures, load_file(HERE / f"{name}.safetensors"), image_size)

    @property
    def layers(self) -> dict[str, int]:
        return {key: self.figures[key] for key in ("vision_layers", "text_layers")}

    @property
    def architecture(self) -> ClipArchitecture:
        height, width = self.image_size
        return ClipArchitecture(**self.layers, image_height=height, image_width=width)

    def images(self, view: int = 0) -> Tensor:
        """Return the images, or with a number above 0 a further view of them."""
        return rule.images(self.figures["seed"] + view, len(self.figures["pids"]), *self.image_size)

    def ids(self, name: str) -> Tensor:
        return self.tensors[name].long()

    def fill(self, module: nn.Module) -> None:
        """Give a model or an objective the weights of the rule; counts in buffers stay."""
        towers = {}
        if any(name.startswith("vision.") for name, _ in module.named_parameters()):
            square, positions = ClipArchitecture(**self.layers), "vision.positional_embedding"
            drawn = rule.clip_state_dict(self.figures["seed"], **self.layers)
            towers = gather(drawn, tower_shapes(square), OPENAI, origin="the rule")
            towers[positions] = resize_positions(towers[positions], square.grid, self.architecture.grid)
        added = {
            name: rule.value(released_name(name), tensor.shape, self.figures["seed"])
            if tensor.is_floating_point()
            else tensor
            for name, tensor in named_tensors(module).items()
            if name not in towers
        }
        load_state(module, towers | added, origin="the rule", prefixes=("",))

    def check_features(self, image_features: Tensor, text_features: Tensor) -> None:
        torch.testing.assert_close(image_features, self.tensors["image_features"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(text_features, self.tensors["text_features"], rtol=1e-4, atol=1e-4)

    def check_gradients(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        expected: Mapping[str, float] | None = None,
        *,
        without: Container[str] = (),
    ) -> None:
        """Every parameter that the case has a gradient for has one here, none other, and their norms agree.

        Those named in `without` are not compared.
        """
        norms = {released_name(name): p.grad.norm().item() for name, p in named_parameters if p.grad is not None}
        expected = self.figures["grad_norms"] if expected is None else expected
        assert norms.keys() == expected.keys()
        for name, norm in expected.items():
            if name not in without:
                assert norms[name] == pytest.approx(norm, rel=1e-3, abs=1e-6), name


def rates_and_decays(model: nn.Module, optim: OptimConfig) -> dict[str, tuple[float, float]]:
    """Return rate and weight decay of every trainable parameter, by its released name."""
    names = {id(parameter): released_name(name) for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in parameter_groups(model.named_parameters(), optim)
        for parameter in group["params"]
    }


def check_losses(found: Mapping[str, Tensor], expected: Mapping[str, float]) -> None:
    """Ours by their names, against published names (`sdm_loss`)."""
    assert {f"{name}_loss" for name in found} == expected.keys()
    for name, value in found.items():
        assert value.item() == pytest.approx(expected[f"{name}_loss"], rel=1e-4), name
