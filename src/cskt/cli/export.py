"""`cskt export`: a run as one self-contained file, a trained CLIP as a backbone for other runs, a model for other
runtimes (`export_runtime`), or a folder for the released programs (`export_released`)."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from cskt.cli.export_released import export_released
from cskt.cli.export_runtime import RUNTIME_FLAGS, add_runtime_flags, export_runtime
from cskt.cli.model_flags import add_weights_flag
from cskt.cli.parsing import Parser
from cskt.config import LoraConfig, RunConfig, as_trained, load_config, to_dict
from cskt.data.datasets import read_dataset
from cskt.embed import Encoder, load
from cskt.embed.exported import SUFFIXES
from cskt.errors import CsktError, out_of_memory_errors
from cskt.model.io.native import MethodFile, read_method, save_backbone, save_method
from cskt.training.run_folder import BEST, CONFIG

RELEASED = "released"


@out_of_memory_errors()
def main(argv: Sequence[str]) -> int:
    """See `cskt export --help`."""
    parser = Parser(prog="cskt export", description="Write a run in another form.")
    add = parser.add_argument
    # fmt: off
    add("run", type=Path, help="run folder; with --format any model")
    add("--backbone", help="CLIP weights of an adapter-only run, if not where its config says")
    add_weights_flag(parser)
    form = parser.add_mutually_exclusive_group(required=True)
    form.add_argument("--merge", type=Path, metavar="FILE", help="backbone and method in one .safetensors file")
    form.add_argument("--as-backbone", type=Path, metavar="FILE",
        help="a whole trained CLIP, for --backbone.name of other runs")
    form.add_argument("--format", choices=(*SUFFIXES, RELEASED),
        help="a folder for ONNX Runtime or OpenVINO, or for the released CSKT and IRRA programs, checked")
    add("--half", action="store_true", help="with --as-backbone: store float16")
    add("--seen-tokens", action="store_true", help="with --as-backbone: keep the embeddings of training's words only")
    # fmt: on
    add_runtime_flags(parser)
    flags = parser.parse(argv)
    check_flags(flags)
    if flags.format and flags.format != RELEASED:
        export_runtime(flags)
        return 0
    if flags.weights == "ema":
        raise CsktError(f"{flags.run}: a trained run has one set of weights; leave out --weights ema")
    run = read_run(flags.run, flags.backbone)
    if flags.format:
        target = flags.output or flags.run / RELEASED
        epoch = int(run.source.facts.get("epoch", 0))
        export_released(run.folder, run.config, run.encoder, epoch=epoch, target=target, root=flags.root)
        print(target)
        return 0
    if flags.merge:
        write_merged(flags.merge, run)
    else:
        write_backbone(flags.as_backbone, run, half=flags.half, seen_tokens=flags.seen_tokens)
    print(flags.merge or flags.as_backbone)
    return 0


def check_flags(flags: argparse.Namespace) -> None:
    """Check that the flags belong together, before anything is read."""
    if (flags.merge or flags.format) and (flags.half or flags.seen_tokens):
        raise CsktError("--half and --seen-tokens shorten a backbone; give them with --as-backbone")
    given = [name for name in RUNTIME_FLAGS if getattr(flags, name) is not None]
    if flags.format == RELEASED:
        given = [name for name in given if name not in ("output", "root")]
    elif flags.format:
        return
    if given:
        raise CsktError(f"--{given[0].replace('_', '-')} belongs to --format; give it with --format onnx or openvino")
    if flags.format:
        return
    flag, target = ("--merge", flags.merge) if flags.merge else ("--as-backbone", flags.as_backbone)
    if target.suffix != ".safetensors":
        raise CsktError(f"{flag} {target}: name a file that ends in .safetensors")


@dataclass(frozen=True)
class Folded:
    """A run whose LoRA updates are folded into its weights, so that no config of the export names any."""

    folder: Path
    config: RunConfig
    source: MethodFile
    """The run's weight file, with the source of its backbone and facts."""
    encoder: Encoder

    @property
    def state(self) -> dict[str, Tensor]:
        """Every tensor of the model by name."""
        return {name: value.detach() for name, value in self.encoder.model.named_parameters()}


def read_run(folder: Path, backbone: str | None) -> Folded:
    """Load a run over its backbone."""
    if not (folder / CONFIG).is_file():
        raise CsktError(f"{folder}: no run folder (it has no {CONFIG})")
    config = as_trained(load_config(folder / CONFIG))
    source = read_method(folder / BEST)
    encoder = load(folder, backbone, "cpu")
    encoder.model.fold_lora()
    return Folded(folder, dataclasses.replace(config, lora=LoraConfig()), source, encoder)


def write_merged(target: Path, run: Folded) -> None:
    """Write backbone and method into one file."""
    save_method(
        target,
        run.state,
        config=to_dict(run.config),
        backbone_name=run.source.backbone_name,
        backbone_sha256=run.source.backbone_sha256,
        facts=run.source.facts,
        architecture=run.encoder.model.architecture,
        known_token_ids=run.encoder.tokenizer.known_ids,
    )


def write_backbone(target: Path, run: Folded, *, half: bool, seen_tokens: bool) -> None:
    """Write the towers alone, as a backbone of other runs."""
    state = run.state
    if added := [name for name in state if not name.startswith(("vision.", "text."))]:
        raise CsktError(f"{run.folder}: has prompts or adapters ({added[0]}, ...), a backbone has none; use --merge")
    save_backbone(
        target,
        state,
        run.encoder.model.architecture,
        facts=run.source.facts
        | {"seed": str(run.config.seed), "recipe": run.config.name}
        | {"interpolation": run.config.backbone.interpolation},
        half=half,
        known_token_ids=seen_token_ids(run) if seen_tokens else None,
    )


def seen_token_ids(run: Folded) -> frozenset[int]:
    """Return the token ids of the captions that a run was trained on."""
    split = read_dataset(run.config.data.dataset, Path(run.config.data.root))["train"]
    return frozenset(run.encoder.tokenizer(split.captions).flatten().tolist())
