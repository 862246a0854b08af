"""R1 by domain of the pictures and of the captions: whether a model lacks pictures or words of another domain.

    python -m benchmarks.domain_gap                       # clip-tiny
    python -m benchmarks.domain_gap --model RUN_OR_FILE

100 generated people with 4 pictures each are drawn once per domain, and each picture is described twice with the words
of each domain. All people are the same in every cell of the table.
"""

from __future__ import annotations

import argparse
import io

import torch
from PIL import Image
from torch import Tensor

import cskt
from cskt.data.paperdoll import draw_person, sample_attributes, stable_random, write_caption
from cskt.data.paperdoll.drawing import Drawing

DOMAINS = ("source", "varied", "target")
NUM_PEOPLE = 100
IMAGES_PER_PERSON = 4
CAPTIONS_PER_IMAGE = 2


def as_jpeg(drawing: Drawing) -> Image.Image:
    """Return a drawing as it is read from a file of a data set."""
    file = io.BytesIO()
    drawing.image.save(file, "jpeg", quality=drawing.jpeg_quality)
    return Image.open(file).convert("RGB")


def recall_at_1(encoder: cskt.Encoder, image_features: Tensor, captions: list[str]) -> float:
    """Return R1 in percent for the captions of each image, image by image."""
    person_of_image = torch.arange(NUM_PEOPLE).repeat_interleave(IMAGES_PER_PERSON)
    person_of_caption = person_of_image.repeat_interleave(CAPTIONS_PER_IMAGE)
    first = (encoder.encode_text(captions) @ image_features.T).argmax(dim=1)
    return 100 * (person_of_image[first] == person_of_caption).double().mean().item()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="clip-tiny", help="what cskt.load takes (default: clip-tiny)")
    encoder = cskt.load(parser.parse_args().model, device="cpu")
    people = [sample_attributes(stable_random("cross", number)) for number in range(NUM_PEOPLE)]
    images = range(IMAGES_PER_PERSON)
    print(f"{'pictures':>10}" + "".join(f"{domain:>10}" for domain in DOMAINS) + "   <- captions; R1 in percent")
    for pictured in DOMAINS:
        drawings = [
            (person, draw_person(person, stable_random("ci", number, image), domain=pictured))
            for number, person in enumerate(people)
            for image in images
        ]
        features = encoder.encode_image([as_jpeg(drawing) for _, drawing in drawings])
        cells = []
        for written in DOMAINS:
            captions = [
                write_caption(person, drawing, stable_random("cc", number, caption), domain=written)
                for number, (person, drawing) in enumerate(drawings)
                for caption in range(CAPTIONS_PER_IMAGE)
            ]
            cells.append(f"{recall_at_1(encoder, features, captions):10.1f}")
        print(f"{pictured:>10}" + "".join(cells))


if __name__ == "__main__":
    main()
