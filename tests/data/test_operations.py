"""Operations on images against loops over pixels, and that their numbers depend on the image's row alone."""

from __future__ import annotations

import colorsys
import math
import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from cskt import plugins
from cskt.config import AugmentConfig, load_config
from cskt.data.images import augment, normalise
from cskt.data.operations import OPERATIONS, Operation, apply_operations, check_operations, register
from cskt.errors import CsktError

HEIGHT, WIDTH = 24, 12
SIX = load_config("tbps-clip").augment
FEW = 2000
"""Images among which shares are counted: four standard deviations of a half are 0.045."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(num_images: int = 5, seed: int = 1, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    return torch.randint(0, 256, (num_images, 3, height, width), generator=generator(seed), dtype=torch.uint8)


def changed(name: str, images: Tensor, seed: int = 0, **fields: Any) -> tuple[Tensor, Tensor]:
    """Return float images after an operation, and its choices."""
    operation = OPERATIONS[name](**fields)
    choices = operation.draw(len(images), *images.shape[2:], generator(seed))
    return operation.apply(images.float() / 255, choices), choices


def test_flip_and_grey() -> None:
    images = pixels()
    assert torch.equal(changed("flip", images)[0], images.flip(-1).float() / 255)
    red, green, blue = (images.float() / 255).unbind(1)
    expected = (0.2989 * red + 0.587 * green + 0.114 * blue)[:, None].expand(-1, 3, -1, -1)
    torch.testing.assert_close(changed("grey", images)[0], expected)


def test_rotation_takes_the_nearest_pixel_of_the_turned_image() -> None:
    images = pixels()
    found, choices = changed("rotate", images, degrees=40)
    assert choices.abs().max() <= 40 and choices.min() < 0 < choices.max()
    num_different = 0
    for image, view, angle in zip(images.float() / 255, found, choices[:, 0].deg2rad().tolist(), strict=True):
        for row in range(HEIGHT):
            for column in range(WIDTH):
                y, x = row + 0.5 - HEIGHT / 2, column + 0.5 - WIDTH / 2
                from_x = math.cos(angle) * x - math.sin(angle) * y + WIDTH / 2 - 0.5
                from_y = math.sin(angle) * x + math.cos(angle) * y + HEIGHT / 2 - 0.5
                column_0, row_0 = round(from_x), round(from_y)
                is_inside = 0 <= column_0 < WIDTH and 0 <= row_0 < HEIGHT
                expected = image[:, row_0, column_0] if is_inside else torch.zeros(3)
                num_different += not torch.equal(view[:, row, column], expected)
    assert num_different <= 2, "a place half-way between two pixels may be rounded either way"


@pytest.mark.parametrize("area", [(0.2, 0.6), (0.9, 1.0)])
def test_a_resized_crop_is_the_resized_rectangle(area: tuple[float, float]) -> None:
    images = pixels(20)
    found, choices = changed("resized_crop", images, area=area, ratio=(0.4, 0.7))
    for image, view, (top, left, rows, columns) in zip(images, found, choices.long().tolist(), strict=True):
        crop = image[None, :, top : top + rows, left : left + columns].float() / 255
        expected = torch.nn.functional.interpolate(crop, (HEIGHT, WIDTH), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(view, expected, rtol=1e-5, atol=1e-5)


def test_crops_have_areas_and_ratios_of_their_ranges() -> None:
    choices = OPERATIONS["resized_crop"](area=(0.2, 1.0)).draw(FEW, 224, 224, generator())
    _, _, rows, columns = choices.double().unbind(1)
    assert (choices[:, 0] + rows <= 224).all() and (choices[:, 1] + columns <= 224).all()
    shares, ratios = rows * columns / 224**2, columns / rows
    assert 0.19 < shares.min() < 0.23 and 0.95 < shares.max() <= 1
    draw, expected = random.Random(0), []
    while len(expected) < FEW:  # the definition, one rectangle at a time: of ten tries one always fits here
        share, ratio = draw.uniform(0.2, 1.0), math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
        if max(share * ratio, share / ratio) <= 1:
            expected.append(share)
    assert abs(shares.mean() - sum(expected) / FEW) < 0.025
    assert 0.74 < ratios.min() < 0.76 and 1.32 < ratios.max() < 1.35 and abs(ratios.log().mean()) < 0.02
    # No rectangle of such a shape has so large an area: the largest one, in the middle.
    narrow = OPERATIONS["resized_crop"](area=(0.9, 1.0)).draw(3, 384, 128, generator())
    assert narrow.tolist() == [[106, 0, 171, 128]] * 3


def test_brightness_contrast_and_saturation_are_blended() -> None:
    images = pixels()
    plain = images.float() / 255
    grey = changed("grey", images)[0][:, :1]
    others = {"brightness": 0 * plain, "contrast": grey.mean(dim=(1, 2, 3), keepdim=True), "saturation": grey}
    for number, (name, other) in enumerate(others.items()):
        found, choices = changed("jitter", images, **{name: 0.5})
        factors = choices[:, 4 + number].float()[:, None, None, None]
        assert 0.5 <= factors.min() < 0.9 and 1.1 < factors.max() <= 1.5
        torch.testing.assert_close(found, (factors * plain + (1 - factors) * other).clamp(0, 1))


def test_hue_is_shifted_as_in_hsv() -> None:
    images = pixels(3, height=4, width=4)
    images[0, :, 0, 0] = 77  # grey has no hue
    found, choices = changed("jitter", images, hue=0.5)
    for image, view, shift in zip(images, found, choices[:, 7].tolist(), strict=True):
        for row in range(4):
            for column in range(4):
                hue, saturation, value = colorsys.rgb_to_hsv(*(image[:, row, column].double() / 255).tolist())
                expected = colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value)
                assert view[:, row, column].tolist() == pytest.approx(expected, abs=1e-5)


def test_the_order_of_colour_changes_is_random_and_matters() -> None:
    images = pixels(1).expand(FEW, -1, -1, -1)[:, :, :2, :2]
    operation = OPERATIONS["jitter"](brightness=0.9, contrast=0.9)
    choices = operation.draw(FEW, 2, 2, generator())
    orders = {tuple(row) for row in choices[:, :4].long().tolist()}
    assert len(orders) == 24
    choices[:, 4:] = torch.tensor([1.9, 0.2, 1.0, 0.0])
    first = choices[:, :4].argsort(dim=1)[:, :2]
    found = operation.apply(images.float() / 255, choices)
    brightness_first = first[:, 0] < first[:, 1]
    for group in (found[brightness_first], found[~brightness_first]):
        assert len(group) > 0.45 * FEW and torch.equal(group, group[:1].expand_as(group))
    assert not torch.allclose(found[brightness_first][0], found[~brightness_first][0], atol=0.02)


def test_blur_is_a_gaussian_mean_with_the_border_repeated() -> None:
    images = pixels(3, height=9, width=7)
    found, choices = changed("blur", images, sigma=(0.3, 1.5))
    reach = 5
    for image, view, sigma in zip(images.double() / 255, found, choices[:, 0].tolist(), strict=True):
        weights = {k: math.exp(-0.5 * (k / sigma) ** 2) for k in range(-reach, reach + 1)}
        total = sum(weights.values())
        for row in range(9):
            for column in range(7):
                expected = sum(
                    weights[dy] * weights[dx] / total**2
                    * image[:, min(max(row + dy, 0), 8), min(max(column + dx, 0), 6)]
                    for dy in weights for dx in weights
                )  # fmt: skip
                torch.testing.assert_close(view[:, row, column].double(), expected, rtol=1e-5, atol=1e-5)


def test_erasing_makes_a_rectangle_black_and_leaves_the_rest() -> None:
    images = pixels().clamp(min=1)
    found, choices = changed("erase", images)
    for image, view, (top, left, rows, columns) in zip(images.float() / 255, found, choices.tolist(), strict=True):
        expected = image.clone()
        expected[:, top : top + rows, left : left + columns] = 0
        assert torch.equal(view, expected) and rows * columns > 0.08 * HEIGHT * WIDTH


def test_operations_are_applied_with_their_probability() -> None:
    config = AugmentConfig(ops={"flip": {"probability": 0.3}, "grey": {"probability": 0.0}})
    images = torch.arange(8, dtype=torch.uint8).expand(FEW, 3, 2, 8)
    found = apply_operations(images, config, generator(), batch_size=FEW, first_row=0)
    assert abs((found[:, 0, 0, 0] > 0).float().mean().item() - 0.3) < 0.045


@dataclass(frozen=True)
class Plus(Operation):
    amount: float = 0.0

    def apply(self, images: Tensor, choices: Tensor) -> Tensor:
        return images + self.amount


@pytest.fixture
def plus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPERATIONS._entries, "one", Plus)
    monkeypatch.setitem(OPERATIONS._entries, "hundred", Plus)


@pytest.mark.usefixtures("plus")
def test_operations_are_drawn_with_replacement() -> None:
    config = AugmentConfig(ops={"one": {"amount": 1.0}, "hundred": {"amount": 100.0}}, draws=2)
    images = torch.zeros(FEW, 3, 1, 1, dtype=torch.uint8)
    found = apply_operations(images, config, generator(), batch_size=FEW, first_row=0)
    counts = {value: (found[:, 0, 0, 0] == value).double().mean().item() for value in (2.0, 101.0, 200.0)}
    assert sum(counts.values()) == 1 and abs(counts[101.0] - 0.5) < 0.045 and abs(counts[2.0] - 0.25) < 0.04


@pytest.mark.parametrize("view", ["", "simclr_1"])
def test_rows_are_those_of_the_whole_batch(view: str) -> None:
    images, config = pixels(9), SIX.view(view) if view else SIX
    whole = augment(images, config, generator(3))
    for first, last in ((0, 4), (4, 5), (5, 9)):
        part = augment(images[first:last], config, generator(3), batch_size=9, first_row=first)
        torch.testing.assert_close(part, whole[first:last])
    assert not torch.allclose(whole, normalise(images), atol=0.1)
    assert not torch.equal(whole, augment(images, config, generator(4)))


def test_the_pixels_of_the_caller_stay_as_they_are() -> None:
    images = pixels(9)
    before = images.clone()
    augment(images, SIX, generator())
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("ops", "message"),
    [
        ({"flop": {}}, "unknown operation on images 'flop': did you mean 'flip'"),
        ({"rotate": {"degree": 3}}, r"unknown key 'augment\.ops\.rotate\.degree': did you mean 'degrees'"),
        ({"rotate": {"degrees": -3}}, r"augment\.ops\.rotate\.degrees: .*greater than or equal to 0"),
        ({"flip": {"probability": 1.5}}, r"augment\.ops\.flip\.probability: .*less than or equal to 1"),
        ({"jitter": {"hue": 0.6}}, r"augment\.ops\.jitter: hue 0\.6 is more than half"),
        ({"erase": {"area": [0.3, 0.2]}}, r"augment\.ops\.erase: area \(0\.3, 0\.2\) is not a range"),
        ({"resized_crop": {"ratio": [0.0, 1.0]}}, r"augment\.ops\.resized_crop: ratio .* is not a range above 0"),
        ({"blur": {"sigma": [0.0, 1.0]}}, r"augment\.ops\.blur: sigma .* is not a range"),
    ],
)
def test_wrong_operations_are_refused(ops: dict[str, Any], message: str) -> None:
    with pytest.raises(CsktError, match=message):
        check_operations(AugmentConfig(ops=ops))
    of_view = message.replace(r"augment\.ops", r"augment\.views\.second\.ops")
    with pytest.raises(CsktError, match=of_view):
        check_operations(AugmentConfig(views={"second": {"ops": ops}}))


def test_draws_without_operations_are_refused() -> None:
    with pytest.raises(CsktError, match=r"augment\.draws is set without operations .* set augment\.ops"):
        AugmentConfig(draws=2)
    with pytest.raises(CsktError, match=r"augment\.views\.second\.draws is set without"):
        AugmentConfig(views={"second": {"draws": 2}})


def test_a_view_without_operations_is_made_as_the_first_one() -> None:
    assert SIX.view("second") == SIX
    assert list(SIX.view("simclr_1").ops) == ["resized_crop", "jitter", "grey", "blur", "flip"]


def test_what_is_no_operation_is_refused() -> None:
    with pytest.raises(CsktError, match="give a name of letters, digits and _"):
        register("a b")(Plus)
    with pytest.raises(CsktError, match="a frozen dataclass that extends"):
        register("wrong")(plugins.Plugin)  # type: ignore[type-var]


@pytest.mark.usefixtures("plus")
def test_an_operation_that_returns_another_shape_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plus, "apply", lambda self, images, choices: images[:, :1])
    with pytest.raises(CsktError, match=r"operation 'one': apply returned .*; expected \[2, 3, 24, 12\]"):
        augment(pixels(2), AugmentConfig(ops={"one": {}}), generator())
