"""A prompt design of one's own, in a file outside the package: trained, resumed, exported, indexed and searched."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from cskt import plugins
from cskt.cli import export, index, search
from cskt.config import RunConfig, load_config, read_yaml
from cskt.data.datasets import read_dataset
from cskt.embed import Encoder, load
from cskt.errors import CsktError
from cskt.explain import explain
from cskt.model.io.native import read_method
from cskt.model.parts import PARTS
from cskt.training.loop import train
from tiny_run import quick_config

Configure = Callable[..., RunConfig]

DESIGN = '''
"""Prompts of both towers that one code per block generates, and a learned prefix in the vision tower."""

import torch
from torch import nn

from cskt.config.types import Positive, PositiveReal
from cskt.model.parts import PartExtras, Part, part_config, register


@register("shared_code")
class SharedCode(Part):
    @part_config
    class Config:
        length: Positive = 2
        """Prompts per tower and block."""
        prefix: Positive = 1
        """Keys and values that are added to each block of the vision tower."""
        init_std: PositiveReal = 0.02
        """Standard deviation of the initial values."""
        words: str = "a person"
        """The text prompts of the first block start at these words."""

    def __init__(self, config, architecture):
        super().__init__(config, architecture)
        towers = {"vision": architecture.vision_width, "text": architecture.text_width}
        depth = min(architecture.vision_layers, architecture.text_layers)
        self.codes = nn.ParameterList(torch.empty(config.length, 16) for _ in range(depth))
        self.decoders = nn.ModuleDict({side: nn.Linear(16, width) for side, width in towers.items()})
        self.start = nn.Parameter(torch.empty(config.length, architecture.text_width))
        shape = config.prefix, 2 * architecture.vision_width
        self.prefix = nn.ParameterList(torch.empty(shape) for _ in range(architecture.vision_layers))

    @torch.no_grad()
    def initialise(self, generator, embed_words=None):
        for parameter in self.parameters():
            parameter.normal_(std=self.config.init_std, generator=generator)
        if embed_words is not None:
            words = embed_words(self.config.words)
            self.start.copy_(words[torch.arange(self.config.length) % len(words)])

    def extras(self, side):
        prompts = [self.decoders[side](code) for code in self.codes]
        if side == "text":
            return PartExtras(prompts=[prompts[0] + self.start, *prompts[1:]])
        return PartExtras(prompts=prompts, prefix_kv=self.prefix)
'''
CHANGES: dict[str, object] = {"parts.shared_code": {"init_std": 0.1}, "prompts.directions": "none"}
NAMES = {f"parts.shared_code.{name}" for name in (
    "codes.0", "codes.1", "prefix.0", "prefix.1", "start", "decoders.text.bias", "decoders.text.weight",
    "decoders.vision.bias", "decoders.vision.weight",
)}  # fmt: skip


@pytest.fixture(scope="module")
def design(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("design") / "shared_code.py"
    path.write_text(DESIGN)
    return path


def forget() -> None:
    for loaded in plugins.loaded_plugins():
        PARTS.forget(loaded)
    plugins._loaded.clear()


@pytest.fixture(autouse=True)
def _plugin(design: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The plug-in is loaded; forgotten afterwards."""
    monkeypatch.setattr(plugins, "_loaded", {})
    plugins.load_plugins([design])
    yield
    forget()


@pytest.fixture(scope="module")
def run(design: Path, dolls: Path, tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short training."""
    plugins.load_plugins([design])
    folder = train(quick_config(dolls, tiny_backbone, "cskt", CHANGES), tmp_path_factory.mktemp("run") / "run").folder
    forget()
    return folder


def features(encoder: Encoder, dolls: Path) -> torch.Tensor:
    split = read_dataset("cuhk-pedes", dolls)["val"]
    return torch.cat([encoder.encode_text(split.captions), encoder.encode_image(split.image_paths)])


def test_a_run_records_the_part_and_saves_its_parameters(run: Path) -> None:
    config = read_yaml(run / "config.yaml")
    assert config["parts"] == {"shared_code": {"length": 2, "prefix": 1, "init_std": 0.1, "words": "a person"}}
    digest = plugins.loaded_plugins()[0].sha256
    assert config["plugins"] == [{"name": "shared_code.py", "sha256": digest, "provides": ["parts.shared_code"]}]
    names = read_method(run / "best.safetensors").tensors.keys()
    assert {name for name in names if not name.startswith("adapters.")} == NAMES


def test_a_resumed_run_is_the_run_without_a_stop(run: Path, configure: Configure, tmp_path: Path) -> None:
    config = configure({**CHANGES, "loop.num_epochs": 2})
    straight = train(config, tmp_path / "straight").folder
    stopped = dataclasses.replace(config, loop=dataclasses.replace(config.loop, stop_after_epochs=1))
    resumed = train(stopped, tmp_path / "resumed").folder
    with pytest.raises(CsktError, match=r"parts\.shared_code\.words: a person -> a dog"):
        train(load_config(config, {"parts.shared_code.words": "a dog"}), resumed, resume=True)
    train(load_config(resumed / "config.yaml", {"loop.stop_after_epochs": None}), resumed, resume=True)
    one, other = (read_method(folder / "best.safetensors").tensors for folder in (straight, resumed))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_run_is_loaded_with_its_plugin_only(run: Path, design: Path, dolls: Path) -> None:
    before = load(run, device="cpu")
    forget()
    message = (
        r"run/best\.safetensors: 'shared_code' \(parts\) comes from the plug-in shared_code\.py: load it \(SHA-256"
    )
    with pytest.raises(CsktError, match=message):
        load(run, device="cpu")
    encoder = load(run, device="cpu", plugins=[design])
    assert "CLIP + adapters + shared_code" in repr(encoder)
    assert encoder.fingerprint == before.fingerprint
    assert torch.equal(features(encoder, dolls), features(before, dolls))


def test_a_new_run_starts_from_it(run: Path, configure: Configure, tmp_path: Path) -> None:
    again = train(configure({**CHANGES, "init_from": str(run), "optim.lr": 1e-9}), tmp_path / "again").folder
    one, other = (read_method(folder / "best.safetensors").tensors for folder in (run, again))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, atol=1e-6, rtol=0)
    with pytest.raises(CsktError, match=r"tensor 'parts\.shared_code\.\S+' is missing, which this recipe has"):
        plain = train(configure({"prompts.directions": "none"}), tmp_path / "plain").folder
        train(configure({**CHANGES, "init_from": str(plain)}), tmp_path / "more")


def test_it_is_merged_saved_and_explained(run: Path, dolls: Path, tmp_path: Path) -> None:
    encoder = load(run, device="cpu")
    expected = features(encoder, dolls)
    assert export.main([str(run), "--merge", str(tmp_path / "merged.safetensors")]) == 0
    for path in (tmp_path / "merged.safetensors", encoder.save(tmp_path / "saved.safetensors")):
        assert torch.equal(features(load(path, device="cpu"), dolls), expected)
    image = read_dataset("cuhk-pedes", dolls)["val"].image_paths[0]
    assert explain(encoder, image, "a woman with a red bag").sentence.shape == encoder.model.architecture.grid
    with pytest.raises(CsktError, match=r"parts\.shared_code: no released program has this"):
        export.main([str(run), "--format", "released", "--output", str(tmp_path / "released")])


@pytest.mark.slow
def test_it_trains_in_pieces_with_recomputed_activations_and_an_average(configure: Configure, tmp_path: Path) -> None:
    more = {"loop.checkpoint_activations": True, "loop.micro_batch_size": 4, "optim.ema_decay": 0.9}
    folder = train(configure({**CHANGES, **more}), tmp_path / "run").folder
    assert read_method(folder / "best.safetensors").tensors.keys() >= NAMES


@pytest.mark.slow
def test_the_onnx_export_needs_no_plugin(run: Path, dolls: Path, tmp_path: Path) -> None:
    expected = features(load(run, device="cpu"), dolls)
    assert export.main([str(run), "--format", "onnx", "--output", str(tmp_path / "onnx")]) == 0
    forget()
    exported = features(load(tmp_path / "onnx", device="cpu"), dolls)
    torch.testing.assert_close(exported, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_it_is_indexed_and_searched(run: Path, dolls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "gallery")
    assert index.main([folder, "--images", str(dolls / "CUHK-PEDES" / "imgs"), "--model", str(run)]) == 0
    assert search.main([folder, "a woman in a red coat"]) == 0
    assert ".jpg" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts.shared_code.length": "two"}, r"parts\.shared_code: length: input should be a valid integer"),
        ({"parts.shared_code.size": 1}, r"parts\.shared_code: unknown key 'size'"),
        ({"parts.nothing": {}}, "unknown method part 'nothing'"),
        ({"parts.prompts": {}}, "parts.prompts: the settings of prompts are the section prompts"),
        ({"prompts.directions": "both", "prompts.depth": 1}, "add prompts to 1, 2 blocks of the"),
    ],
)
def test_bad_settings_are_refused(
    configure: Configure, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(CsktError, match=message):
        train(configure({**CHANGES, **changes}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
