"""Batched transforms compared with naive loops over images, channels and pixels."""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as vision

from classic_cnns.data.transforms import (
    ColourNoise,
    RandomAffine,
    RandomCrop,
    RandomFlip,
    RandomShift,
    crop_to,
    pad_to,
    patches_of,
    resize_to,
    scale,
)

DISTORTIONS = [
    RandomShift(2),
    RandomCrop(4),
    RandomFlip(),
    RandomAffine(shift=2, scale=0.1, squeeze=0.1, shear=0.2),
    ColourNoise(0.1),
]


def images(count: int, channels: int, height: int, width: int) -> torch.Tensor:
    """Random uint8 pixels, none of them background."""
    pixels = np.random.RandomState(3).randint(1, 256, (count, channels, height, width))
    return torch.from_numpy(pixels.astype(np.uint8))


def moved(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """A naive shift of an image (C, H, W), filled with 0."""
    result = np.zeros_like(image)
    channels, height, width = image.shape
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                if 0 <= y - down < height and 0 <= x - right < width:
                    result[c, y, x] = image[c, y - down, x - right]
    return result


def offset(image: np.ndarray, result: np.ndarray, pixels: int) -> tuple[int, int]:
    """The one shift of at most `pixels` that turns `image` into `result`."""
    span = range(-pixels, pixels + 1)
    (found,) = [
        (down, right)
        for down in span
        for right in span
        if np.array_equal(moved(image, down, right), result)
    ]
    return found


@pytest.mark.parametrize("pixels, channels", [(1, 1), (2, 3)])
def test_images_are_shifted_independently_and_uniformly(pixels, channels):
    side, each = 2 * pixels + 1, 2
    steps = (torch.arange(side) + 0.5) / side  # the middle of each of `side` equal parts of [0, 1)
    noise = torch.cartesian_prod(steps, steps).repeat(each, 1)
    batch = images(len(noise), channels, 7, 6)
    before = batch.clone()
    result = RandomShift(pixels)(batch, noise)

    assert result.dtype == torch.uint8 and result.shape == batch.shape
    assert torch.equal(batch, before)  # shifting in place would change the data set
    offsets = [
        offset(image, out, pixels) for image, out in zip(batch.numpy(), result.numpy(), strict=True)
    ]
    assert len(set(offsets)) == side**2
    assert all(offsets.count(one) == each for one in offsets)


def test_the_first_number_shifts_vertically_and_the_second_horizontally():
    noise = torch.tensor([[0.5, 0.1], [0.1, 0.5], [0.5, 0.5]])
    batch = images(3, 2, 5, 9)
    result = RandomShift(1)(batch, noise).numpy()
    found = [offset(*pair, 1) for pair in zip(batch.numpy(), result, strict=True)]
    assert found[0][0] == 0 != found[0][1]
    assert found[1][1] == 0 != found[1][0]
    assert found[2] == (0, 0)


@pytest.mark.parametrize("pixels", range(12))
def test_the_extreme_random_numbers_give_the_largest_shifts(pixels):
    batch = images(2, 1, 15, 15)
    ends = torch.tensor([[0.0, 0.0], [1 - 2**-24, 1 - 2**-24]])  # the range of torch.rand
    low, high = (
        offset(*pair, pixels)
        for pair in zip(batch.numpy(), RandomShift(pixels)(batch, ends).numpy(), strict=True)
    )
    assert {low, high} == {(-pixels, -pixels), (pixels, pixels)}


@pytest.mark.parametrize("augmentation", DISTORTIONS, ids=lambda d: type(d).__name__)
def test_an_image_is_distorted_equally_alone_and_in_a_batch(augmentation):
    batch = images(9, 3, 6, 6)
    before = batch.clone()
    noise = torch.rand(9, augmentation.draws, generator=torch.Generator().manual_seed(1))
    if hasattr(augmentation, "partial_fit"):
        augmentation.partial_fit(batch)
    whole = augmentation(batch, noise)
    alone = [augmentation(batch[i : i + 1], noise[i : i + 1]) for i in range(9)]
    torch.testing.assert_close(torch.cat(alone), whole)
    assert torch.equal(batch, before)  # working in place would change the data set


@pytest.mark.parametrize("augmentation", DISTORTIONS, ids=lambda d: type(d).__name__)
def test_an_empty_batch_stays_empty(augmentation):
    if hasattr(augmentation, "partial_fit"):
        augmentation.partial_fit(images(4, 3, 6, 6))
    result = augmentation(images(0, 3, 6, 6), torch.rand(0, augmentation.draws))
    assert len(result) == 0 and result.shape[1] == 3


def test_images_are_cropped_independently_and_uniformly():
    positions = torch.cartesian_prod((torch.arange(3) + 0.5) / 3, (torch.arange(2) + 0.5) / 2)
    batch = images(len(positions), 3, 7, 6)
    result = RandomCrop(5)(batch, positions)
    assert result.dtype == torch.uint8
    for n, (top, left) in enumerate((top, left) for top in range(3) for left in range(2)):
        for c, y, x in np.ndindex(3, 5, 5):
            assert result[n, c, y, x] == batch[n, c, top + y, left + x]


def test_the_extreme_random_numbers_crop_at_the_edges():
    batch = images(2, 1, 32, 32)
    low, high = RandomCrop(24)(batch, torch.tensor([[0.0, 0.0], [1 - 2**-24, 1 - 2**-24]]))
    assert torch.equal(low, batch[0, :, :24, :24]) and torch.equal(high, batch[1, :, 8:, 8:])


@pytest.mark.fact(
    "A window of 224 has 33x33 positions in 256 pixels; the paper counts 32x32",
    source="Krizhevsky 2012, section 4.1",
    code="data/transforms.py:RandomCrop",
)
def test_crops_of_224_have_33_by_33_positions():
    positions = 33 * 33  # with flips 2,178; the paper says "a factor of 2048"
    images = torch.arange(256 * 256).view(1, 1, 256, 256).int().expand(positions, -1, -1, -1)
    steps = (torch.arange(33) + 0.5) / 33
    corners = RandomCrop(224)(images, torch.cartesian_prod(steps, steps))[:, 0, 0, 0]
    assert corners.tolist() == [256 * top + left for top in range(33) for left in range(33)]


@pytest.mark.fact(
    "A training image is mirrored with a probability of one half",
    source="cuda-convnet, convdata.py",
    code="data/transforms.py:RandomFlip",
)
def test_half_of_the_images_are_mirrored():
    batch = images(4, 3, 5, 6)
    result = RandomFlip()(batch, torch.tensor([[0.0], [0.499], [0.5], [0.999]]))
    assert result.dtype == torch.uint8
    for n, c, y, x in np.ndindex(4, 3, 5, 6):
        assert result[n, c, y, x] == batch[n, c, y, 5 - x if n < 2 else x]


def affine(image: np.ndarray, right, down, scale, squeeze, shear) -> np.ndarray:
    """A naive affine distortion of an image (C, S, S) by bilinear interpolation."""
    channels, size, _ = image.shape
    forward = scale * np.array([[1, shear], [0, 1]]) @ np.diag([1 / squeeze, squeeze])
    result = np.zeros(image.shape)
    middle = (size - 1) / 2
    for y, x in np.ndindex(size, size):
        from_x, from_y = np.linalg.solve(forward, [x - middle - right, y - middle - down]) + middle
        left, top = math.floor(from_x), math.floor(from_y)
        for i, j in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
            if 0 <= i < size and 0 <= j < size:
                weight = (1 - abs(from_y - i)) * (1 - abs(from_x - j))
                result[:, y, x] += weight * image[:, i, j]
    return result


@pytest.mark.fact(
    "Distortions are translation, scaling, squeezing and horizontal shearing; no ranges are given",
    source="LeCun 1998, section III.B",
    code="data/transforms.py:RandomAffine",
)
@pytest.mark.parametrize("size", [9, 12])
def test_affine_distortions_equal_the_loop(size):
    batch = images(8, 2, size, size)
    noise = torch.rand(8, 5, generator=torch.Generator().manual_seed(2))
    noise[0] = 0.5  # nothing moves
    noise[1] = torch.tensor([0.75, 0.25, 0.5, 0.5, 0.5])  # one pixel to the right and one up
    result = RandomAffine(shift=2, scale=0.3, squeeze=0.2, shear=0.4)(batch, noise)
    for image, distorted, numbers in zip(batch.numpy(), result.numpy(), noise.numpy(), strict=True):
        right, down, scale, squeeze, shear = (2 * numbers - 1) * [2, 2, 0.3, 0.2, 0.4]
        expected = affine(image, right, down, 1 + scale, 1 + squeeze, shear)
        np.testing.assert_allclose(distorted, expected, atol=2e-3)
    assert torch.allclose(result[0], batch[0].float(), atol=1e-3)
    assert torch.allclose(result[1, :, :-1, 1:], batch[1, :, 1:, :-1].float(), atol=1e-3)
    assert result[1, :, -1].abs().max() < 1e-3 and result[1, :, :, 0].abs().max() < 1e-3


# --- Colour noise, K12, 4.1 -----------------------------------------------------------------------


@pytest.fixture
def coloured():
    """Pixels with correlated channels, so that the principal axes differ from the channels."""
    random = np.random.RandomState(6)
    mixing = np.array([[30, 10, 3], [28, -2, -6], [25, -9, 4]])
    pixels = np.einsum("ij,njyx->niyx", mixing, random.randn(1200, 3, 4, 4)) + 128
    return torch.from_numpy(pixels.clip(0, 255).astype(np.uint8))


@pytest.mark.fact(
    "Colour noise adds one random colour to all pixels of an image, another one to each image",
    source="Krizhevsky 2012, section 4.1",
    code="data/transforms.py:ColourNoise",
)
def test_one_colour_is_added_to_all_pixels_of_an_image(coloured):
    noise = ColourNoise(0.1)
    noise.partial_fit(coloured)
    numbers = torch.rand(5, 3, generator=torch.Generator().manual_seed(3))
    added = noise(coloured[:5], numbers) - coloured[:5]
    torch.testing.assert_close(added, added[:, :, :1, :1].expand_as(added), rtol=0, atol=1e-4)
    assert len(np.unique(added[:, :, 0, 0].numpy().round(2), axis=0)) == 5
    middle = noise(coloured[:1], torch.full((1, 3), 0.5))
    torch.testing.assert_close(middle, coloured[:1].float())


@pytest.mark.fact(
    "Its covariance is 0.1^2 times that of the pixels, as in the authors' code and not as in "
    "their formula",
    source="Krizhevsky 2012, section 4.1",
    code="data/transforms.py:ColourNoise",
)
def test_the_colours_have_a_hundredth_of_the_covariance_of_the_pixels(coloured):
    noise = ColourNoise(0.1)
    noise.partial_fit(coloured)
    count = 40000
    numbers = torch.rand(count, 3, generator=torch.Generator().manual_seed(4))
    colours = noise(torch.zeros(count, 3, 1, 1), numbers).flatten(1).double().numpy()
    pixels = coloured.numpy().astype(float).transpose(1, 0, 2, 3).reshape(3, -1)
    expected = 0.1**2 * np.cov(pixels, bias=True)
    errors = np.sqrt((expected**2 + np.outer(expected.diagonal(), expected.diagonal())) / count)
    assert (np.abs(np.cov(colours.T) - expected) < 5 * errors).all()
    assert (np.abs(colours.mean(0)) < 5 * np.sqrt(expected.diagonal() / count)).all()
    axis = colours @ np.linalg.eigh(expected)[1][:, 2]
    kurtosis = (axis**4).mean() / (axis**2).mean() ** 2
    assert abs(kurtosis - 3) < 5 * math.sqrt(24 / count)  # normal, not uniform


def test_the_extreme_random_numbers_give_finite_colours(coloured):
    noise = ColourNoise(0.1)
    noise.partial_fit(coloured)
    ends = torch.tensor([[0.0, 0.0, 0.0], [1 - 2**-24] * 3])
    assert noise(coloured[:2], ends).isfinite().all()


# --- Fitting images to the input size -------------------------------------------------------------


@pytest.mark.parametrize("shape, size", [((32, 32), 24), ((7, 5), 4), ((6, 6), 6)])
def test_the_centre_is_cropped(shape, size):
    batch = images(2, 3, *shape)
    result = crop_to(batch, size)
    for n, c, y, x in np.ndindex(2, 3, size, size):
        top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
        assert result[n, c, y, x] == batch[n, c, top + y, left + x]


@pytest.mark.fact(
    "The ten patches of a test image are four corners and the centre, and these mirrored",
    source="Krizhevsky 2012, section 4.1",
    code="data/transforms.py:patches_of",
)
def test_ten_patches_equal_torchvisions():
    batch = images(3, 2, 10, 14)  # even borders, since torchvision rounds odd ones up
    found, expected = patches_of(batch, 6, "ten"), vision.ten_crop(batch, [6, 6])
    assert found.shape == (3, 10, 2, 6, 6) and found.dtype == torch.uint8
    for number in range(3):
        ours = sorted(patch.numpy().tobytes() for patch in found[number])
        assert ours == sorted(patch[number].numpy().tobytes() for patch in expected)
    assert torch.equal(found[:, 4], crop_to(batch, 6))


@pytest.mark.fact(
    "The multiview test of 2011 has nine patches, 3x3, not mirrored",
    source="cuda-convnet, convdata.py",
    code="data/transforms.py:patches_of",
)
def test_nine_patches_equal_the_loop():
    batch = images(2, 3, 32, 32)
    found = patches_of(batch, 24, "nine")
    assert found.shape == (2, 9, 3, 24, 24)
    for y, x in np.ndindex(3, 3):
        window = batch[:, :, 4 * y : 4 * y + 24, 4 * x : 4 * x + 24]
        assert torch.equal(found[:, 3 * y + x], window)
    assert torch.equal(found[:, 4], crop_to(batch, 24))


@pytest.mark.parametrize("shape, size", [((32, 32), 96), ((28, 28), 13), ((9, 14), 12)])
def test_images_are_resized_as_by_torchvision(shape, size):
    batch = images(2, 3, *shape)
    result = resize_to(batch, size)
    torch.testing.assert_close(result, vision.resize(batch.float(), [size, size], antialias=True))
    rounded = vision.resize(batch, [size, size], antialias=True)
    assert (result - rounded).abs().max() <= 1


def test_an_enlarged_image_equals_the_loop():
    batch = images(1, 1, 3, 4)
    image, result = batch[0, 0].double().numpy(), resize_to(batch, 8)[0, 0].numpy()
    for y, x in np.ndindex(8, 8):
        from_y, from_x = (y + 0.5) * 3 / 8 - 0.5, (x + 0.5) * 4 / 8 - 0.5
        value = total = 0
        for i, j in np.ndindex(3, 4):
            weight = max(0, 1 - abs(from_y - i)) * max(0, 1 - abs(from_x - j))
            value, total = value + weight * image[i, j], total + weight
        assert abs(result[y, x] - value / total) < 1e-3


@pytest.mark.fact(
    "Images of 28x28 are centred in 32x32 pixels of background; they are not resized",
    source="LeCun 1998, sections II.B and III.A",
    code="data/transforms.py:pad_to",
)
@pytest.mark.parametrize("shape, size", [((28, 28), 32), ((28, 28), 28), ((5, 4), 8), ((3, 8), 8)])
def test_images_are_centred_in_background(shape, size):
    batch = images(2, 3, *shape)
    result = pad_to(batch, size)
    expected = np.zeros((2, 3, size, size), np.uint8)
    for n, c, y, x in np.ndindex(2, 3, *shape):
        top, left = (size - shape[0]) // 2, (size - shape[1]) // 2
        expected[n, c, top + y, left + x] = batch[n, c, y, x]
    assert result.dtype == torch.uint8 and np.array_equal(result.numpy(), expected)


@pytest.mark.fact(
    "Background is -0.1 and ink 1.175",
    source="LeCun 1998, section II.B",
    code="data/transforms.py:scale",
)
def test_background_is_exactly_minus_a_tenth_and_full_ink_1_175():
    every = torch.arange(256, dtype=torch.uint8)
    result = scale(every, -0.1, 1.175)
    assert result.dtype == torch.float32
    assert result[0] == torch.tensor(-0.1) and result[255] == torch.tensor(1.175)
    exact = [-0.1 + 1.275 * pixel / 255 for pixel in range(256)]  # in float64, steps of 0.005
    # At most two units in the last place of 1.175.
    assert np.abs(result.double().numpy() - exact).max() <= 2**-22
    assert torch.equal(every, torch.arange(256, dtype=torch.uint8))
