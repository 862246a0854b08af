"""A gallery of generated pedestrians with cameras, times and tracks, for a first try without crops."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

from cskt.data.paperdoll import make_dataset, stable_random
from cskt.embed import load
from cskt.gallery.gallery import Gallery
from cskt.gallery.manifest import is_gallery
from cskt.model.io.cache import CLIP_TINY
from cskt.utils.console import counting_bar

NUM_PEOPLE = 120
IMAGES_PER_PERSON = 4
CAMERAS = ("north gate", "hall", "platform 1", "platform 2", "car park")
FIRST_DAY = datetime(2026, 3, 2, 6)
HOURS = 14


def build_demo_gallery(folder: Path, *, num_people: int = NUM_PEOPLE, device: str | None = None) -> Path:
    """Draw people whom clip-tiny has not seen, in the style that it was trained on, and index them.

    Existing images and crops are not made again. The images are in `people/`, and the result is the path of `gallery/`.
    """
    with counting_bar("drawing pedestrians") as on_progress:
        drawn = make_dataset(
            folder / "people", layout="jsonl", domain="source", ids={"test": num_people},
            images_per_id=IMAGES_PER_PERSON, seed=4, on_progress=on_progress,
        )  # fmt: skip
    images = drawn / "imgs" / "paperdoll"
    home = folder / "gallery"
    if is_gallery(home):
        gallery = Gallery.open(home, device=device)
    else:
        gallery = Gallery.create(home, load(CLIP_TINY, device=device))
    with gallery, counting_bar("indexing", "images") as on_progress:
        gallery.index(images, metadata=sightings(num_people), on_progress=on_progress)
    return home


def sightings(num_people: int) -> dict[str, dict[str, str]]:
    """Return path of each image -> camera and time of the sighting; the images of one camera are a track."""
    rows = {}
    for person in range(1, num_people + 1):
        random = stable_random("sightings", person)
        cameras = random.sample(CAMERAS, 2)
        entered = FIRST_DAY + timedelta(seconds=random.randrange(HOURS * 3600))
        for number in range(IMAGES_PER_PERSON):
            later = timedelta(seconds=240 * (number // 2) + 3 * (number % 2))
            rows[f"{person:04d}/{person:04d}_{number}.jpg"] = {
                "camera": cameras[number // 2],
                "time": (entered + later).isoformat(),
                "track": f"t{2 * person + number // 2:04d}",
            }
    return rows
