"""Small data sets in the three published layouts, drawn by Pillow."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

LAYOUTS = {
    "cuhk-pedes": ("CUHK-PEDES", "reid_raw.json", "file_path"),
    "icfg-pedes": ("ICFG-PEDES", "ICFG-PEDES.json", "file_path"),
    "rstpreid": ("RSTPReid", "data_captions.json", "img_path"),
}


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (16, 40)) -> Path:
    """A smooth random picture; the format follows the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 3, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def entry(split: str, pid: int, path: str, *captions: str, **extra: Any) -> dict[str, Any]:
    """A record under neutral key names; `write_dataset` gives them the names of the data set."""
    return {"split": split, "id": pid, "path": path, "captions": list(captions) or [f"person {pid}"], **extra}


def write_dataset(root: Path, name: str, entries: list[dict[str, Any]], images: bool = True) -> Path:
    """Write annotation and images of a data set under `root`; returns `root`."""
    folder, file_name, path_key = LAYOUTS[name]
    (root / folder).mkdir(exist_ok=True)
    content = [{path_key if key == "path" else key: value for key, value in item.items()} for item in entries]
    (root / folder / file_name).write_text(json.dumps(content), encoding="utf-8")
    if images:
        for seed, item in enumerate(entries):
            write_image(root / folder / "imgs" / item["path"].replace("\\", "/"), seed)
    return root
