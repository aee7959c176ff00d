"""Batched transforms beside naive loops over images, channels and pixels."""

import numpy as np
import pytest
import torch

from classic_cnns.data.transforms import RandomShift, pad_to, scale


def images(count: int, channels: int, height: int, width: int) -> torch.Tensor:
    """Random uint8 pixels, none of them background."""
    pixels = np.random.RandomState(3).randint(1, 256, (count, channels, height, width))
    return torch.from_numpy(pixels.astype(np.uint8))


def moved(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """A naive shift of (C, H, W): what comes in is 0, what goes out is lost."""
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
def test_each_image_is_moved_by_itself_and_every_offset_occurs_alike(pixels, channels):
    side, each = 2 * pixels + 1, 2
    steps = (torch.arange(side) + 0.5) / side  # the middle of each of `side` equal parts of [0, 1)
    noise = torch.cartesian_prod(steps, steps).repeat(each, 1)
    batch = images(len(noise), channels, 7, 6)
    before = batch.clone()
    result = RandomShift(pixels)(batch, noise)

    assert result.dtype == torch.uint8 and result.shape == batch.shape
    assert torch.equal(batch, before)  # a shift in place would spoil the data set
    offsets = [
        offset(image, out, pixels) for image, out in zip(batch.numpy(), result.numpy(), strict=True)
    ]
    assert len(set(offsets)) == side**2
    assert all(offsets.count(one) == each for one in offsets)


def test_the_first_number_moves_vertically_and_the_second_horizontally():
    noise = torch.tensor([[0.5, 0.1], [0.1, 0.5], [0.5, 0.5]])
    batch = images(3, 2, 5, 9)
    result = RandomShift(1)(batch, noise).numpy()
    found = [offset(*pair, 1) for pair in zip(batch.numpy(), result, strict=True)]
    assert found[0][0] == 0 != found[0][1]
    assert found[1][1] == 0 != found[1][0]
    assert found[2] == (0, 0)


@pytest.mark.parametrize("pixels", range(12))
def test_the_largest_random_number_is_still_within_reach(pixels):
    batch = images(2, 1, 15, 15)
    ends = torch.tensor([[0.0, 0.0], [1 - 2**-24, 1 - 2**-24]])  # of torch.rand in float32
    low, high = (
        offset(*pair, pixels)
        for pair in zip(batch.numpy(), RandomShift(pixels)(batch, ends).numpy(), strict=True)
    )
    assert {low, high} == {(-pixels, -pixels), (pixels, pixels)}


def test_an_image_is_moved_alike_alone_and_in_a_batch():
    batch, noise = images(9, 1, 6, 6), torch.rand(9, 2, generator=torch.Generator().manual_seed(1))
    shift = RandomShift(1)
    alone = [shift(batch[i : i + 1], noise[i : i + 1]) for i in range(9)]
    assert torch.equal(torch.cat(alone), shift(batch, noise))


def test_an_empty_batch_stays_empty():
    # BUG: as_strided fails, and some rank does get an empty last batch (test_batches.py)
    assert RandomShift(1)(images(0, 1, 6, 6), torch.rand(0, 2)).shape == (0, 1, 6, 6)


@pytest.mark.parametrize("shape, size", [((28, 28), 32), ((28, 28), 28), ((5, 4), 8), ((3, 8), 8)])
def test_images_lie_in_the_middle_of_background(shape, size):
    batch = images(2, 3, *shape)
    result = pad_to(batch, size)
    expected = np.zeros((2, 3, size, size), np.uint8)
    for n, c, y, x in np.ndindex(2, 3, *shape):
        top, left = (size - shape[0]) // 2, (size - shape[1]) // 2
        expected[n, c, top + y, left + x] = batch[n, c, y, x]
    assert result.dtype == torch.uint8 and np.array_equal(result.numpy(), expected)


def test_background_is_exactly_minus_a_tenth_and_full_ink_1_175():
    every = torch.arange(256, dtype=torch.uint8)
    result = scale(every, -0.1, 1.175)
    assert result.dtype == torch.float32
    assert result[0] == torch.tensor(-0.1) and result[255] == torch.tensor(1.175)
    exact = [-0.1 + 1.275 * pixel / 255 for pixel in range(256)]  # in 64 bits: 0.005 a step
    assert np.abs(result.double().numpy() - exact).max() <= 2**-22  # two last places of 1.175
    assert torch.equal(every, torch.arange(256, dtype=torch.uint8))
