"""What happens to an image before it is shown."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from emocaliber.runtime.errors import ConfigError
from emocaliber.train.stage_recipes import AugmentRecipe
from emocaliber.train.vision.augmentation import Augmentation, altered

PROCESSOR: Any = SimpleNamespace(rescale_factor=1 / 255, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5])
NONE = AugmentRecipe()


def ramp(count: int, side: int) -> torch.Tensor:
    """Returns (count, 3, side, side) bytes that rise from left to right, the same in all rows."""
    return (torch.arange(side) * (255 // side)).to(torch.uint8).expand(count, 3, side, side)


def test_nothing_is_done_but_mirroring_where_nothing_is_asked_for() -> None:
    augment, images = Augmentation([NONE, NONE], 24, PROCESSOR), ramp(50, 24)
    assert augment.source_side == 24
    labels = torch.rand(50, 3)
    torch.manual_seed(3)
    shown, (after,) = augment(images, torch.arange(50) % 2, [labels])
    state = torch.random.get_rng_state()
    torch.manual_seed(3)
    mirrored = torch.rand(50) < 0.5
    assert torch.equal(state, torch.random.get_rng_state()), "more was drawn than who is mirrored"
    expected = images.float() / 127.5 - 1
    expected = torch.where(mirrored.view(-1, 1, 1, 1), expected.flip(-1), expected)
    assert torch.allclose(shown, expected, atol=1e-3)
    assert torch.equal(after, labels)


def test_crops_keep_the_share_asked_for() -> None:
    augment, images = Augmentation([AugmentRecipe(crop=0.5), NONE], 24, PROCESSOR), ramp(400, 32)
    assert augment.source_side == 32
    torch.manual_seed(0)
    sets = torch.arange(400) % 2
    shown, _ = augment(images, sets, [])
    assert shown.shape == (400, 3, 24, 24)
    # In a ramp, the range from left to right tells the width of what is kept.
    width = (shown[:, 0, 0, -1] - shown[:, 0, 0, 0]).abs() / 23 * 24 / (31 * 7 / 127.5) * 31 / 32
    assert torch.allclose(width[sets == 1], torch.tensor(1.0), atol=0.02)
    crops = width[sets == 0]
    # An area of a half, at the narrowest shape.
    assert (0.5 * 0.778) ** 0.5 - 0.02 < crops.min() < 0.75
    assert 0.97 < crops.max() < 1.02
    assert shown.isfinite().all()


def test_training_in_half_precision_sees_the_same_images() -> None:
    augment, images = Augmentation([AugmentRecipe(crop=0.5, rotate=20.0, jitter=0.2)], 24, PROCESSOR), ramp(8, 32)
    shown = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            shown.append(augment(images, torch.zeros(8, dtype=torch.long), [])[0])
    assert torch.equal(*shown)


def test_images_are_turned_either_way() -> None:
    augment = Augmentation([AugmentRecipe(rotate=90)], 24, PROCESSOR)
    torch.manual_seed(0)
    shown, _ = augment(ramp(200, 32), torch.zeros(200, dtype=torch.long), [])
    # Unturned, all rows are alike.
    slopes = shown[:, 0, -1, 12] - shown[:, 0, 0, 12]
    assert slopes.min() < -0.5
    assert slopes.max() > 0.5


def test_colours_change_within_bounds() -> None:
    augment = Augmentation([AugmentRecipe(jitter=0.3), NONE], 8, PROCESSOR)
    images = torch.tensor([150, 120, 90], dtype=torch.uint8).view(1, 3, 1, 1).expand(300, 3, 8, 8)
    torch.manual_seed(0)
    sets = torch.arange(300) % 2
    shown, _ = augment(images, sets, [])
    assert torch.allclose(shown[sets == 1], images[sets == 1].float() / 127.5 - 1, atol=1e-3)
    changed = shown[sets == 0]
    grey = changed.mean(dim=(1, 2, 3)) - (120 / 127.5 - 1)
    assert 0.25 < grey.abs().max() <= 0.3 + 1e-3
    spread = (changed[:, 0, 0, 0] - changed[:, 2, 0, 0]) / (60 / 127.5)
    # Contrast and saturation each take or add at most 0.3 of it.
    assert 0.7**2 - 0.01 < spread.min() < 0.75
    assert 1.25 < spread.max() < 1.3**2 + 0.01
    assert shown.abs().max() <= 1


def test_images_are_mixed_within_their_label_set_and_labels_with_them() -> None:
    augment = Augmentation([AugmentRecipe(mixup=1.0), AugmentRecipe(mixup=0.2), NONE], 4, PROCESSOR)
    sets = torch.randint(3, (300,), generator=torch.Generator().manual_seed(0))
    images = (torch.arange(300) % 250).to(torch.uint8).view(-1, 1, 1, 1).expand(300, 3, 4, 4)
    torch.manual_seed(0)
    shown, (labels, names) = augment(images, sets, [torch.eye(300), torch.nn.functional.one_hot(sets, 3).float()])
    assert torch.allclose(labels.sum(dim=1), torch.ones(300))
    own = labels.diagonal()
    assert (own >= 0.5).all()
    assert torch.equal(names, torch.nn.functional.one_hot(sets, 3).float()), "images of several sets were mixed"
    # The images are mixed as the labels say.
    assert torch.allclose(shown[:, 0, 0, 0], labels @ (images[:, 0, 0, 0].float() / 127.5 - 1), atol=2e-3)
    assert (own[sets == 2] == 1).all()
    # Uniform on [1/2, 1] for alpha 1; closer to 1 for smaller ones.
    assert own[sets == 0].mean().item() == pytest.approx(0.75, abs=0.06)
    assert own[sets == 1].mean() > 0.85


@pytest.mark.parametrize(("field", "value"), [("crop", 0.0), ("crop", 1.1), ("rotate", -1.0), ("mixup", -0.1)])
def test_impossible_strengths_are_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{field} is {value}, expected a number in"):
        AugmentRecipe(**{field: value})


def test_images_that_are_normalised_already_are_altered_alike() -> None:
    images = (ramp(200, 24).float() / 127.5 - 1)[:, None]
    assert torch.equal(altered(images, NONE, PROCESSOR), images)
    torch.manual_seed(0)
    cropped = altered(images, AugmentRecipe(crop=0.5), PROCESSOR)
    assert cropped.shape == images.shape
    widths = (cropped[:, 0, 0, 0, -1] - cropped[:, 0, 0, 0, 0]) / (images[0, 0, 0, 0, -1] - images[0, 0, 0, 0, 0])
    # A crop of half the area is at least 0.5 ** 0.5 * e ** -0.125 of the width.
    assert 0.60 < float(widths.min()) < 0.70
    assert 0.9 < float(widths.max()) < 1.01
    coloured = altered(images, AugmentRecipe(jitter=0.25), PROCESSOR)
    assert float(coloured.min()) >= -1.0
    assert float(coloured.max()) <= 1.0
    assert (coloured != images).flatten(1).any(dim=1).all()
