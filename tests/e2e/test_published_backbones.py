"""`train.py --pretrain_choice FILE` accepts what the released program accepts and names its own flags."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from command_line import done, typed
from torch import Tensor

from cskt.cli import train as train_module
from cskt.cli.released_programs import _train_parser, in_words_of_flags, in_words_of_test
from cskt.config import ClipArchitecture, RunConfig, flat_fields, load_config
from cskt.config.released_flags import IRRA, REFERENCE, to_published
from cskt.model.io.layouts import openai_name
from cskt.model.io.weights import load_backbone, tower_shapes
from tiny_run import HEIGHT

SIZES = ClipArchitecture(
    embed_dim=16, image_height=HEIGHT, image_width=HEIGHT, patch_size=8, stride=8, vision_width=128, vision_layers=2,
    vision_heads=2, text_width=64, text_layers=2, text_heads=1,
)  # fmt: skip
SMALL = f"--depth 2 --n_ctx 2 --batch_size 8 --num_epoch 1 --img_size {HEIGHT},{HEIGHT} --stride_size 8 --device cpu"


def state() -> dict[str, Tensor]:
    """A CLIP in OpenAI's names and sizes of heads, without the extra tensors of OpenAI's archives."""
    generator = torch.Generator().manual_seed(3)
    shapes = tower_shapes(SIZES)
    return {openai_name(name): 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture
def asked_for(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[RunConfig]]:
    """The configs that train.py would train, instead of training them."""
    configs: list[RunConfig] = []
    monkeypatch.setattr(train_module, "run", lambda config, *_, **__: configs.append(config) or 0)
    yield configs


@pytest.mark.parametrize("wrap", [lambda own: own, lambda own: {"state_dict": {f"module.{n}": own[n] for n in own}}])
def test_a_plain_state_dict_is_taken_as_the_released_program_takes_it(
    wrap: object, tmp_path: Path, asked_for: list[RunConfig]
) -> None:
    assert callable(wrap)
    path = tmp_path / "clip.pt"
    torch.save(wrap(state()), path)
    done(f"python train.py {SMALL} --pretrain_choice {path}")
    backbone = asked_for[0].backbone
    assert (backbone.activation, backbone.vision_heads, backbone.text_heads) == ("quick_gelu", 2, 1)
    assert load_backbone(backbone).architecture == SIZES


def test_what_is_stated_wins_over_the_assumptions(tmp_path: Path, asked_for: list[RunConfig]) -> None:
    path = tmp_path / "clip.pt"
    torch.save(state(), path)
    done(f"python train.py {SMALL} --pretrain_choice {path} --activation gelu --vision_heads 4")
    backbone = asked_for[0].backbone
    assert (backbone.activation, backbone.vision_heads, backbone.text_heads) == ("gelu", 4, 1)
    own = '{"model_cfg": {"vision_cfg": {"head_width": 32}, "text_cfg": {"heads": 4}}}'
    (tmp_path / "open_clip_config.json").write_text(own, encoding="utf-8")
    done(f"python train.py {SMALL} --pretrain_choice {path}")
    assert asked_for[1].backbone.activation is None, "the file beside it states it"
    assert load_backbone(asked_for[1].backbone).architecture.vision_heads == 4


def test_other_commands_ask_for_what_the_file_does_not_state(tmp_path: Path, dolls: Path) -> None:
    path, data = tmp_path / "clip.pt", f"--dataset cuhk-pedes --root {dolls} --device cpu"
    torch.save(state(), path)
    line = typed(f"cskt evaluate {path} {data}").refusal()
    assert all(flag in line for flag in ("--activation", "--vision-heads", "--text-heads"))
    size = f"--image-height {HEIGHT} --image-width {HEIGHT} --json"
    heads = "--activation quick_gelu --vision-heads 2 --text-heads 1"
    assert typed(f"cskt evaluate {path} {data} {size} {heads}").json()
    assert "--weights ema" in typed(f"cskt evaluate {path} {data} {size} {heads} --weights ema").refusal()


def test_trained_and_tested(dolls: Path, tmp_path: Path) -> None:
    path = tmp_path / "clip.pt"
    torch.save({"model": state(), "model_ema": state()}, path)
    done(f"python train.py {SMALL} --pretrain_choice {path} --root_dir {dolls} --output_dir {tmp_path / 'logs'}")
    (run,) = (tmp_path / "logs").glob("*/*")
    assert "R1" in done(f"python test.py --config_file {run}/configs.yaml --device cpu")
    line = typed(f"python test.py --config_file {run}/configs.yaml --device cpu --weights ema").refusal()
    assert "leave out --weights ema" in line


def test_every_key_of_the_config_has_a_flag_in_train_py() -> None:
    """So that an error can name it: its own, or --set."""
    reference, irra = (to_published(load_config(name)) for name in (REFERENCE, IRRA))
    known = _train_parser(reference, irra)._option_string_actions
    for key, _ in flat_fields():
        for message in (f"overrides: {key}: wrong", f"lower {key}", f"set {key} instead", f"{key} 3 is too many"):
            reason = in_words_of_flags(message)
            for flag in re.findall(r"--[\w-]+", reason):
                assert flag in known or flag.replace("-", "_").replace("__", "--") in known, reason
            if "." in key:
                assert key not in reason or f"--set {key}=" in reason


def test_set_reaches_any_key(asked_for: list[RunConfig]) -> None:
    done("python train.py --set optim.clip_grad_norm=2 --set loop.micro_batch_size=4")
    assert asked_for[0].optim.clip_grad_norm == 2 and asked_for[0].loop.micro_batch_size == 4
    assert "--set optim.clip_grad_norm=" in typed("python train.py --set optim.clip_grad_norm=-1").refusal()


def test_test_py_names_its_own_flags() -> None:
    reason = in_words_of_test("say which to use: --dataset rstpreid --root DIR, not --root_dir")
    assert reason == "say which to use: --dataset_name rstpreid --root_dir DIR, not --root_dir"
