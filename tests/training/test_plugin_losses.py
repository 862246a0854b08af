"""Losses of plug-ins: trained by the command, recorded in the run, and demanded when they are missing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from shared_training import gradients_of_epoch
from test_distributed import BASE, PROGRAM, torchrun

from cskt import plugins
from cskt.config import RunConfig, load_config, read_yaml, save_config
from cskt.embed import load
from cskt.errors import CsktError
from cskt.losses import LOSSES
from cskt.training.context import prepare
from cskt.training.events import read_events
from cskt.training.loop import train

Configure = Callable[[dict[str, object]], RunConfig]

SCALED = """
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cskt.losses import Loss, LossInputs, Sizes, itc, register


@register("scaled_itc")
@dataclass(eq=False)
class ScaledITC(Loss):
    start: float = 10.0

    def setup(self, sizes: Sizes) -> None:
        self.log_scale = nn.Parameter(torch.tensor(self.start).log())
        self.mix = nn.Linear(sizes.embed_dim, sizes.embed_dim, bias=False)

    def forward(self, inputs: LossInputs) -> Tensor:
        images = inputs.image_features + self.mix(inputs.image_features)
        return itc(images, inputs.text_features * 1.0, temperature=1.0) * self.log_scale.exp()
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A plug-in with a loss that has parameters; forgotten afterwards."""
    monkeypatch.setattr(plugins, "_loaded", {})
    path = tmp_path / "scaled.py"
    path.write_text(SCALED)
    yield path
    for loaded in plugins.loaded_plugins():
        LOSSES.forget(loaded)


CHANGES: dict[str, object] = {"loss.weights": {"scaled_itc": 1.0}, "loss.scaled_itc.start": 5.0, "loop.num_epochs": 1}


def test_a_loss_with_parameters_trains_is_recorded_and_resumes(
    plugin: Path, configure: Configure, tmp_path: Path
) -> None:
    plugins.load_plugins([plugin])
    run = train(configure(CHANGES), tmp_path / "run").folder

    config = read_yaml(run / "config.yaml")
    digest = plugins.loaded_plugins()[0].sha256
    assert config["plugins"] == [{"name": "scaled.py", "sha256": digest, "provides": ["losses.scaled_itc"]}]
    assert config["loss"]["scaled_itc"] == {"start": 5.0}
    steps = [event for event in read_events(run) if event["event"] == "step"]
    assert steps and all("scaled_itc" in event["losses"] for event in steps)
    again = train(configure(CHANGES), tmp_path / "again").folder
    assert (again / "best.heads.safetensors").read_bytes() == (run / "best.heads.safetensors").read_bytes()
    longer = train(configure({**CHANGES, "loop.num_epochs": 1}), run, resume=True)
    assert longer.already_finished


def test_a_loss_without_gradient_is_refused(plugin: Path, configure: Configure, tmp_path: Path) -> None:
    plugin.write_text(SCALED.replace("return itc", "with torch.no_grad():\n            return itc"))
    plugins.load_plugins([plugin])
    with pytest.raises(CsktError, match=r"the losses \(scaled_itc\) depend on no trained parameter"):
        train(configure(CHANGES), tmp_path / "run")


def test_a_run_is_used_without_its_loss_but_not_trained_on(plugin: Path, configure: Configure, tmp_path: Path) -> None:
    plugins.load_plugins([plugin])
    run = train(configure(CHANGES), tmp_path / "run").folder
    forget_plugins()

    assert load(run, device="cpu").embed_dim
    with pytest.raises(
        CsktError, match=r"'scaled_itc' \(losses\) comes from the plug-in scaled\.py: load it \(SHA-256"
    ):
        train(configure({**CHANGES, "plugins": read_yaml(run / "config.yaml")["plugins"]}), tmp_path / "more")


def forget_plugins() -> None:
    for loaded in plugins.loaded_plugins():
        LOSSES.forget(loaded)
    plugins._loaded.clear()


def test_a_run_continued_with_other_losses_needs_no_plugin(plugin: Path, configure: Configure, tmp_path: Path) -> None:
    plugins.load_plugins([plugin])
    first = train(configure({**CHANGES, "loop.num_epochs": 1}), tmp_path / "first").folder
    forget_plugins()

    config = load_config("adapt", {"init_from": str(first), "loop.num_epochs": 1})
    assert config.loss.constants == {"scaled_itc": {"start": 5.0}}
    data = configure({}).data
    adapted = prepare(dataclasses.replace(config, data=data, device="cpu")).config
    assert (adapted.loss.constants, adapted.plugins) == ({}, ())


def test_all_missing_plugins_are_named_at_once(plugin: Path) -> None:
    needed = [
        plugins.Requirement("scaled.py", "0" * 64, ("losses.scaled_itc",)),
        plugins.Requirement("other.module", provides=("losses.other",)),
        plugins.Requirement("present.py", provides=("losses.sdm",)),
    ]
    message = (
        r"'scaled_itc' \(losses\) comes from the plug-in scaled\.py, 'other' \(losses\) comes from the plug-in"
        r" other\.module: load them \(SHA-256 0+\.\.\.\) with --plugin PATH/scaled\.py --plugin other\.module, or"
    )
    with pytest.raises(CsktError, match=message), plugins.required(needed):
        LOSSES["other"]
    with pytest.raises(CsktError, match=r"needs the plug-ins a\.py and b\.py: load them with --plugin PATH/a\.py --pl"):
        plugins.required([plugins.Requirement("a.py"), plugins.Requirement("b.py")]).__enter__()


def test_a_recipe_that_names_a_plugin_is_refused_without_it(plugin: Path, configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(CsktError, match=r"the config needs the plug-in scaled\.py: load it with --plugin PATH/scaled"):
        train(configure({"plugins": ["scaled.py"]}), tmp_path / "run")
    with pytest.raises(CsktError, match=r"load it with --plugin /shared/scaled\.py, or"):
        train(configure({"plugins": ["/shared/scaled.py"]}), tmp_path / "run")


def test_another_content_of_the_plugin_is_logged(
    plugin: Path, configure: Configure, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plugins.load_plugins([plugin])
    with plugins.required([plugins.Requirement("scaled.py", "0" * 64, ("losses.scaled_itc",))]):
        pass
    assert "the plug-in scaled.py has another content than that of the run (SHA-256" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss.scaled_itc.start": "high"}, "loss.scaled_itc.start: input should be a valid number"),
        ({"loss.scaled_itc.end": 1.0}, "unknown key 'loss.scaled_itc.end': known: start"),
        ({"loss.sdm.temperature": -1.0}, "loss.sdm.temperature: input should be greater than 0"),
        ({"loss.nothing.start": 1.0}, "unknown loss 'nothing'"),
        ({"loss.weights": {"scaled_ict": 1.0}}, "unknown loss 'scaled_ict': did you mean 'scaled_itc'?"),
    ],
)
def test_bad_constants_are_refused_before_anything_is_read(
    plugin: Path, configure: Configure, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    plugins.load_plugins([plugin])
    with pytest.raises(CsktError, match=message.replace("?", r"\?")):
        train(configure({**CHANGES, "data.root": "nowhere", **changes}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_parameters_of_a_loss_have_the_same_gradients_in_two_processes(
    plugin: Path, configure: Configure, tmp_path: Path
) -> None:
    """Both processes compute the whole loss from the gathered features, and their gradients are summed."""
    changes = BASE | {"loss.weights": {"scaled_itc": 1.0, "sdm": 1.0}}
    plugins.load_plugins([plugin])
    save_config(configure(changes), tmp_path / "config.yaml")
    words = (PROGRAM, "gradients", tmp_path / "config.yaml", tmp_path / "found")
    ran = torchrun(2, *words, **{plugins.ENVIRONMENT: str(plugin)})
    assert ran.returncode == 0, ran.stderr
    alone = gradients_of_epoch(prepare(configure(changes)))
    for shared, whole in zip(torch.load(tmp_path / "found.0"), alone, strict=True):
        own = [name for name in whole["gradients"] if name.startswith("losses.scaled_itc.")]
        assert len(own) == 2
        for name in (*own, "adapters.text.0.up.weight"):
            expected = whole["gradients"][name]
            assert (shared["gradients"][name] - expected).norm() < 1e-4 * expected.norm(), name
