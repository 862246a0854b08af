import io
import math
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_datasets import write_image

from cskt.config import CLIP_MEAN, CLIP_STD, AugmentConfig
from cskt.data.images import ImageReader, augment, normalise
from cskt.image_files.decode import decode_image

NOTHING = AugmentConfig(flip_probability=0, pad_pixels=0, erase_probability=0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(width: int = 50, height: int = 120, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".jpg", {}),
        (".jpg", {"quality": 30, "subsampling": 2}),
        (".jpg", {"progressive": True}),
        (".jpg", {"keep_rgb": True}),
        (".png", {}),
        (".bmp", {}),
        (".webp", {"lossless": True}),
        (".ppm", {}),
        (".tiff", {}),
    ],
)
def test_pixels_equal_pillows(tmp_path: Path, suffix: str, options: dict[str, object]) -> None:
    path = tmp_path / f"a{suffix}"
    picture().save(path, **options)
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(decode_image(path), expected)
    assert torch.equal(ImageReader(120, 50).read(path), torch.from_numpy(expected.copy()).permute(2, 0, 1))


@pytest.mark.parametrize(("width", "height"), [(50, 120), (300, 700), (128, 384), (40, 1000), (1, 1)])
def test_resize_follows_pillow(width: int, height: int) -> None:
    image = picture(width, height)
    expected = torch.from_numpy(np.array(image.resize((128, 384), Image.Resampling.BILINEAR))).permute(2, 0, 1)
    resized = ImageReader(384, 128).read(image)
    assert resized.shape == (3, 384, 128) and resized.dtype == torch.uint8 and resized.is_contiguous()
    difference = (resized.int() - expected.int()).abs()
    assert difference.max() <= 1


def test_format_is_recognised_by_content(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert np.array_equal(decode_image(tmp_path / "a.jpg"), np.asarray(picture()))


def test_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    picture().save(tmp_path / "a.jpg", exif=exif)
    assert (
        ImageReader(120, 50).read(tmp_path / "a.jpg").shape == decode_image(tmp_path / "a.jpg").transpose(2, 0, 1).shape
    )


def grey16() -> np.ndarray:
    return np.linspace(0, 65535, 40 * 16).reshape(40, 16).astype(np.uint16)


def test_unusual_modes(tmp_path: Path) -> None:
    rgb = picture()
    for name, image in {
        "grey.jpg": rgb.convert("L"),
        "cmyk.jpg": rgb.convert("CMYK"),
        "grey.png": rgb.convert("L"),
        "palette.png": rgb.quantize(16),
        "bits.png": rgb.convert("1"),
    }.items():
        image.save(tmp_path / name)
        with Image.open(tmp_path / name) as reopened:
            expected = np.asarray(reopened.convert("RGB"))
        assert np.array_equal(decode_image(tmp_path / name), expected), name


def test_transparency_is_dropped(tmp_path: Path) -> None:
    image = picture()
    alpha = image.copy()
    alpha.putalpha(0)
    alpha.save(tmp_path / "alpha.png")
    assert np.array_equal(decode_image(tmp_path / "alpha.png"), np.asarray(image))
    palette = image.quantize(16)
    palette.save(tmp_path / "palette.png", transparency=bytes(range(16)))
    assert np.array_equal(decode_image(tmp_path / "palette.png"), np.asarray(palette.convert("RGB")))


def test_sixteen_bit_grey_keeps_its_range(tmp_path: Path) -> None:
    Image.fromarray(grey16()).save(tmp_path / "a.png")
    pixels = decode_image(tmp_path / "a.png")
    assert np.array_equal(pixels, np.repeat((grey16() >> 8).astype(np.uint8)[..., None], 3, axis=2))


def test_animation_shows_its_first_frame(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (8, 8), (250, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 250))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    assert (decode_image(tmp_path / "a.gif") == (250, 0, 0)).all()


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    picture(200, 400).save(buffer, kind, quality=90)
    return buffer.getvalue()


def jpeg_claiming(width: int, height: int) -> bytes:
    data = bytearray(encoded("JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


JPEG, PNG = encoded("JPEG"), encoded("PNG")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"this is text, not a picture", "not an image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image of a known format"),
        (JPEG[:2], "not"),
        (JPEG[:300], "corrupt image"),
        (JPEG[: len(JPEG) // 2], "corrupt image: Premature end"),
        (JPEG[:-2], "corrupt image: Premature end"),
        (JPEG[: len(JPEG) // 2] + bytes(len(JPEG) // 2) + b"\xff\xd9", "corrupt image: Corrupt JPEG"),
        (JPEG[: len(JPEG) // 2] + JPEG[len(JPEG) // 2 + 400 :], "corrupt image: Corrupt JPEG"),
        (PNG[: len(PNG) // 2], "corrupt image"),
        (PNG[:40], "not"),
        (PNG[: len(PNG) // 2] + b"x" * 99 + PNG[len(PNG) // 2 + 99 :], "corrupt image: unrecognized data"),
        (png_claiming(20_000, 20_000), "Image size"),
        (png_claiming(10_000, 9_000), "Image size"),
        (png_claiming(8_001, 8_000), "8001 x 8000 pixels are more than the limit of 64000000; scale it down"),
        (jpeg_claiming(20_000, 20_000), "20000 x 20000 pixels are more than the limit"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        ImageReader(384, 128).read(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"b\.jpg: no such image"):
        ImageReader(8, 8).read(tmp_path / "b.jpg")
    with pytest.raises(ValueError, match=r"a folder"):
        ImageReader(8, 8).read(tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow on odd TIFF tags
def test_damage_never_escapes_as_another_error(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    path = tmp_path / "a"
    outcomes = set()
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"):
        data = encoded(kind)
        for _ in range(40):
            corrupt = bytearray(data[: draw.integers(1, len(data) + 1)])
            for position in draw.integers(0, min(len(corrupt), 400), 4):
                corrupt[position] = draw.integers(256)
            path.write_bytes(corrupt)
            try:
                outcomes.add(ImageReader(8, 4).read(path).shape)
            except ValueError as error:
                outcomes.add(str(error).startswith(f"{path}: "))
    assert outcomes <= {True, (3, 8, 4)} and True in outcomes


def test_damaged_pillow_image_is_an_error() -> None:
    with Image.open(io.BytesIO(PNG[: len(PNG) // 2])) as image, pytest.raises(ValueError, match="image: corrupt image"):
        ImageReader(8, 8).read(image)
    with pytest.raises(ValueError, match="image: its pixels are real numbers"):
        ImageReader(8, 8).read(Image.new("F", (8, 8)))


def random_batch(num_images: int = 6, height: int = 24, width: int = 10, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (num_images, 3, height, width), generator=generator(seed), dtype=torch.uint8)


def test_normalise_closed_form() -> None:
    images = random_batch()
    expected = images.double().div(255).sub(torch.tensor(CLIP_MEAN).double().view(3, 1, 1))
    expected = expected / torch.tensor(CLIP_STD).double().view(3, 1, 1)
    normalised = normalise(images)
    assert normalised.dtype == torch.float32
    torch.testing.assert_close(normalised, expected.float())


def test_no_augmentation_is_normalising() -> None:
    images = random_batch()
    before = images.clone()
    assert torch.equal(augment(images, NOTHING, generator()), normalise(images))
    augment(images, AugmentConfig(), generator())
    assert torch.equal(images, before), "the caller's pixels stay as they are"
    assert augment(images[:0], AugmentConfig(), generator()).shape == (0, 3, 24, 10)


def test_certain_flip_mirrors() -> None:
    images = random_batch()
    assert torch.equal(augment(images, replace(NOTHING, flip_probability=1), generator()), normalise(images).flip(-1))


def test_same_generator_state_same_view() -> None:
    images = random_batch()
    one, two, other = (augment(images, AugmentConfig(), generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_flip_rate() -> None:
    images = torch.arange(8, dtype=torch.uint8).expand(4000, 3, 2, 8)
    views = augment(images, replace(NOTHING, flip_probability=0.3), generator())
    flipped = views[:, 0, 0, 0] > views[:, 0, 0, -1]
    assert abs(flipped.float().mean().item() - 0.3) < 0.03  # four standard deviations


def test_crops_are_shifted_copies_with_black_beyond_the_edge() -> None:
    pad, height, width = 2, 6, 5
    image = torch.arange(1, height * width + 1, dtype=torch.uint8).view(1, 1, height, width).repeat(500, 3, 1, 1)
    views = augment(image, replace(NOTHING, pad_pixels=pad), generator())
    framed = torch.zeros(1, 3, height + 2 * pad, width + 2 * pad, dtype=torch.uint8)
    framed[:, :, pad:-pad, pad:-pad] = image[:1]
    shifts = {
        (top, left): normalise(framed[:, :, top : top + height, left : left + width])[0]
        for top in range(2 * pad + 1)
        for left in range(2 * pad + 1)
    }
    seen = [next(shift for shift, crop in shifts.items() if torch.equal(crop, view)) for view in views]
    assert set(seen) == set(shifts), "every shift occurs"
    assert max(seen.count(shift) for shift in shifts) < 45, "none is preferred: mean 20, standard deviation 4.4"


def test_every_image_is_cropped_as_if_alone() -> None:
    images, pad = random_batch(height=20, width=7), 3
    config = replace(NOTHING, pad_pixels=pad)
    views = augment(images, config, generator(7))
    alike = generator(7)
    torch.rand(len(images), generator=alike)  # flips are drawn first
    corners = torch.randint(0, 2 * pad + 1, (len(images), 2), generator=alike).tolist()
    for image, view, (top, left) in zip(images, views, corners, strict=True):
        framed = torch.zeros(3, 20 + 2 * pad, 7 + 2 * pad, dtype=torch.uint8)
        framed[:, pad:-pad, pad:-pad] = image
        assert torch.equal(view, normalise(framed[None, :, top : top + 20, left : left + 7])[0])
    in_another_order = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # of memory
    assert torch.equal(augment(in_another_order, config, generator(7)), views)


def erased_rectangles(
    config: AugmentConfig, num_images: int, height: int, width: int
) -> list[tuple[int, int, int, int]]:
    """Top, left, rows, columns of what was overwritten; images left whole are absent."""
    images = torch.zeros(num_images, 3, height, width, dtype=torch.uint8)
    views = augment(images, config, generator())
    filled = torch.tensor(CLIP_MEAN).view(1, 3, 1, 1)
    changed = (views == filled).all(1)
    assert torch.equal(torch.where(changed[:, None], normalise(images), views), normalise(images)), "two values only"
    rectangles = []
    for mask in changed:
        rows, columns = mask.any(1).nonzero().flatten().tolist(), mask.any(0).nonzero().flatten().tolist()
        if rows:
            assert mask.sum() == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1), "one solid rectangle"
            rectangles.append((rows[0], columns[0], len(rows), len(columns)))
    return rectangles


def test_erasing_draws_area_and_ratio_from_their_ranges() -> None:
    height, width, num_images = 96, 64, 2000  # every rectangle of these areas fits
    config = replace(NOTHING, erase_probability=0.5, erase_area=(0.02, 0.1))
    rectangles = erased_rectangles(config, num_images, height, width)
    assert abs(len(rectangles) / num_images - 0.5) < 0.045  # four standard deviations, as below
    area = torch.tensor([rows * columns / (height * width) for _, _, rows, columns in rectangles])
    ratio = torch.tensor([rows / columns for _, _, rows, columns in rectangles])
    assert area.min() > 0.018 and area.max() < 0.104 and abs(area.mean() - 0.06) < 0.003
    assert ratio.min() > 0.27 and ratio.max() < 3.7, "rounding to pixels widens the range a little"
    assert abs(ratio.log().mean() + 0.005) < 0.09 and abs(ratio.log().std() - 0.692) < 0.05, "log-uniform"
    tops = torch.tensor([top / (height - rows) for top, _, rows, _ in rectangles])
    assert abs(tops.mean() - 0.5) < 0.037 and tops.min() == 0 and tops.max() == 1


def test_erasing_draws_as_torchvision_defines_it() -> None:
    # The definition, one image at a time, against the batched draw: same distribution of sizes.
    height, width, config = 30, 10, replace(NOTHING, erase_probability=1)
    draw = np.random.default_rng(0)
    expected: list[tuple[int, int]] = []
    num_images, num_whole = 3000, 0
    for _ in range(num_images):
        for _ in range(10):
            area = height * width * draw.uniform(*config.erase_area)
            ratio = math.exp(draw.uniform(math.log(config.erase_ratio[0]), math.log(config.erase_ratio[1])))
            rows, columns = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if rows < height and columns < width:
                expected.append((rows, columns))
                break
        else:
            num_whole += 1
    sizes = [(rows, columns) for _, _, rows, columns in erased_rectangles(config, num_images, height, width)]
    assert abs(len(sizes) - (num_images - num_whole)) <= 10
    assert np.allclose(np.mean(sizes, axis=0), np.mean(expected, axis=0), rtol=0.03)
    assert np.allclose(np.std(sizes, axis=0), np.std(expected, axis=0), rtol=0.05)


def test_rectangles_that_never_fit_leave_the_image_whole() -> None:
    config = replace(NOTHING, erase_probability=1, erase_area=(1.0, 1.0), erase_ratio=(3.0, 3.0))
    assert erased_rectangles(config, 20, 16, 16) == []


def test_order_is_crop_normalise_erase() -> None:
    # A white image: black from the padding is normalised, the erased rectangle is not.
    images = torch.full((200, 3, 20, 20), 255, dtype=torch.uint8)
    views = augment(images, AugmentConfig(pad_pixels=4, erase_probability=1), generator())
    black, white = normalise(torch.zeros(1, 3, 1, 1, dtype=torch.uint8)), normalise(images[:1, :, :1, :1])
    filled = torch.tensor(CLIP_MEAN).view(1, 3, 1, 1)
    kinds = [(views == value).all(1) for value in (black, white, filled)]
    assert all(kind.any() for kind in kinds) and (sum(kind.int() for kind in kinds) == 1).all()


def test_errors_name_bytes_as_the_caller_does() -> None:
    with pytest.raises(ValueError, match=r"^a\.jpg: not an image of a known format"):
        decode_image(b"text", name="a.jpg")
    with pytest.raises(ValueError, match=r"^image: not an image of a known format"):
        decode_image(b"text")


def test_read_image_takes_paths_and_pictures(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png")
    with Image.open(path) as image:
        assert torch.equal(ImageReader(24, 8).read(path), ImageReader(24, 8).read(image))
