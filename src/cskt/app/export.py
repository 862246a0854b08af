"""`cskt export`: a run as one file that needs nothing beside it, or a trained CLIP as a backbone for other runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cskt.app.parsing import Parser
from cskt.config import load_config, to_dict
from cskt.data.records import read_dataset
from cskt.embed import load
from cskt.model.files import read_method, save_backbone, save_method
from cskt.train.run_folder import BEST, CONFIG


def main(argv: Sequence[str]) -> int:
    """See `cskt export --help`."""
    parser = Parser(prog="cskt export", description="Write a run in another form.")
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--backbone", help="CLIP weights of an adapter-only run, if not where its config says")
    form = parser.add_mutually_exclusive_group(required=True)
    form.add_argument("--merge", type=Path, metavar="FILE", help="backbone and method in one .safetensors file")
    form.add_argument(
        "--as-backbone", type=Path, metavar="FILE", help="a whole trained CLIP, for --backbone.name of other runs"
    )
    parser.add_argument("--half", action="store_true", help="with --as-backbone: store float16")
    parser.add_argument(
        "--seen-tokens", action="store_true", help="with --as-backbone: keep the embeddings of training's words only"
    )
    flags = parser.parse(argv)
    if flags.merge and (flags.half or flags.seen_tokens):
        raise ValueError("--half and --seen-tokens shorten a backbone; give them with --as-backbone")
    target: Path = flags.merge or flags.as_backbone
    if target.suffix != ".safetensors":
        flag = "--merge" if flags.merge else "--as-backbone"
        raise ValueError(f"{flag} {target}: name a file that ends in .safetensors")
    if not (flags.run / CONFIG).is_file():
        raise ValueError(f"{flags.run}: no run folder (it has no {CONFIG})")
    config = load_config(flags.run / CONFIG)
    source = read_method(flags.run / BEST)
    encoder = load(flags.run, flags.backbone, "cpu")
    state = {name: value.detach() for name, value in encoder.model.named_parameters()}
    if flags.merge:
        save_method(
            target,
            state,
            config=to_dict(config),
            backbone_name=source.backbone_name,
            backbone_sha256=source.backbone_sha256,
            facts=source.facts,
            architecture=encoder.model.architecture,
            known_token_ids=encoder.tokenizer.known_ids,
        )
        print(target)
        return 0
    added = [name for name in state if not name.startswith(("vision.", "text."))]
    if added:
        raise ValueError(f"{flags.run}: has prompts or adapters ({added[0]}, ...), a backbone has none; use --merge")
    known = None
    if flags.seen_tokens:
        split = read_dataset(config.data.dataset, Path(config.data.root))["train"]
        known = frozenset(encoder.tokenizer(split.captions).flatten().tolist())
    save_backbone(
        target,
        state,
        encoder.model.architecture,
        facts=source.facts | {"seed": str(config.seed), "recipe": config.name},
        half=flags.half,
        known_token_ids=known,
    )
    print(target)
    return 0
