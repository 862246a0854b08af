"""Make the files of version 0.1.0 that later versions must read: a backbone, a run and a gallery.

`tests/compat/v0_1_0` was made with commit 53fbb8d, the last one before the formats grew:

    git worktree add /somewhere 53fbb8d
    cp -r tests/compat /somewhere/tests && cd /somewhere
    PYTHONPATH=src:tests python tests/compat/make_fixture.py /home/user/v0_1_0

and copied here. A later version must not make it again. `expected.json` holds the answers of 0.1.0.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch

import cskt
from cskt.cli.main import main as cskt_command
from cskt.data.datasets import read_dataset
from cskt.data.paperdoll import make_dataset
from cskt.data.tokenizer import Tokenizer
from cskt.gallery.gallery import Gallery
from cskt.model.io.native import save_backbone
from tiny_run import ARCHITECTURE, HEIGHT, WIDTH, plain_clip

SENTENCES = ["a woman in a red coat with a brown bag", "a man in blue jeans"]
"""Queries with their answers in `expected.json`."""


def main(target: Path) -> None:
    """Write the fixture."""
    torch.set_num_threads(1)
    root = target.parent / "dolls"
    make_dataset(root, ids={"train": 4, "val": 2, "test": 3}, images_per_id=2, seed=1)
    _make(target, root)


def _make(target: Path, root: Path) -> None:
    target.mkdir(parents=True)
    backbone = target / "backbone.safetensors"
    _write_backbone(backbone, root)
    run = target / "run"
    flags = (
        f"train --config cskt --root {root} --backbone.name {backbone} --device cpu --depth 2 --length 2 --lr 1e-2"
        f" --warmup-epochs 0 --data.batch_size 4 --num-workers 0 --num-epochs 2 --image-height {HEIGHT}"
        f" --image-width {WIDTH} --output {run}"
    )
    assert cskt_command(flags.split()) == 0
    assert cskt_command(f"evaluate {run} --root {root} --device cpu".split()) == 0
    shutil.rmtree(run / "tensorboard")
    (run / "report.html").unlink()
    (run / "last.previous.pt").unlink(missing_ok=True)

    crops = target / "gallery" / "crops"
    pictures = sorted((root / "CUHK-PEDES" / "imgs").rglob("*.jpg"))
    encoder = cskt.load(run, device="cpu", precision="fp32")
    gallery = Gallery.create(target / "gallery", encoder)
    crops.mkdir()
    for number, picture in enumerate(pictures[:6]):
        shutil.copy(picture, crops / f"{number}{picture.suffix}")
    names = sorted(path.name for path in crops.iterdir())
    facts = {name: {"camera": f"c{number % 2}", "size": 150.5 + number} for number, name in enumerate(names)}
    gallery.index(crops, metadata=facts)
    gallery.add([pictures[6]], ["handed/over.jpg"], [{"camera": "c9"}])
    expected = {
        "fingerprint": encoder.fingerprint,
        "backbone_fingerprint": cskt.load(backbone, device="cpu", precision="fp32").fingerprint,
        "clip_tiny_fingerprint": cskt.load("clip-tiny", device="cpu", precision="fp32").fingerprint,
        "hits": {
            text: [[hit.image_id, hit.score, hit.metadata] for hit in gallery.search(text, k=7)] for text in SENTENCES
        },
        "filtered": [hit.image_id for hit in gallery.search(SENTENCES[0], where="camera = 'c1' AND size > 152")],
    }
    gallery.close()
    text = json.dumps(expected, indent=1, ensure_ascii=False, default=str)
    (target / "expected.json").write_text(text + "\n", encoding="utf-8")


def _write_backbone(path: Path, root: Path) -> None:
    """Return a random CLIP with the embeddings of the words of the data set only, so that its file is small."""
    dataset = read_dataset("cuhk-pedes", root)
    captions = [caption for split in dataset.values() for record in split.records for caption in record.captions]
    words = Tokenizer(77)([*captions, *SENTENCES, "a photo of a person"])
    known = frozenset(words.unique().tolist())
    state = {name: value.detach() for name, value in plain_clip().named_parameters()}
    save_backbone(path, state, ARCHITECTURE, facts={"seed": "0"}, known_token_ids=known)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
