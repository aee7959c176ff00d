"""Images and their order on the GPU: with the same numbers the same as on the CPU."""

import pytest
import torch
from torch import Tensor

from classic_cnns.data.batches import Batches
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
from tests.gpu import GPU

pytestmark = pytest.mark.gpu

# How far a pixel of 0 to 255 may be off: not at all where pixels only move.
DISTORTIONS = {
    RandomShift(4): 0,
    RandomCrop(24): 0,
    RandomFlip(): 0,
    RandomAffine(shift=2, scale=0.1, squeeze=0.1, shear=0.2): 0.01,
    ColourNoise(0.1): 0.001,
}
FITS = {
    "pad": (lambda x: pad_to(x, 39), 0),
    "crop": (lambda x: crop_to(x, 21), 0),
    "nine": (lambda x: patches_of(x, 24, "nine"), 0),
    "ten": (lambda x: patches_of(x, 24, "ten"), 0),
    "larger": (lambda x: resize_to(x, 96), 0.01),
    "smaller": (lambda x: resize_to(x, 13), 0.01),
    "scale": (lambda x: scale(x, -0.1, 1.175), 2**-22),  # two last places of 1.175
}


def pixels(count: int) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, 32, 32), generator=random, dtype=torch.uint8)


def numbers(count: int, draws: int) -> Tensor:
    """Uniform random numbers; those of the first two images are the least and the greatest."""
    noise = torch.rand(count, draws, generator=torch.Generator().manual_seed(1))
    noise[0], noise[1] = 0.0, 1 - 2**-24
    return noise


def check(got: Tensor, want: Tensor, off: float) -> None:
    assert got.device.type == GPU.type and got.dtype == want.dtype
    torch.testing.assert_close(got.cpu(), want, rtol=0, atol=off)


@pytest.mark.parametrize("distortion", DISTORTIONS, ids=lambda d: type(d).__name__)
def test_distortions_are_those_of_the_cpu(distortion) -> None:
    images, noise = pixels(2000), numbers(2000, distortion.draws)
    distortion.partial_fit(images)
    want = distortion(images, noise)
    there = images.to(GPU)
    distortion.partial_fit(there)
    check(distortion(there, noise.to(GPU)), want, DISTORTIONS[distortion])
    assert torch.equal(there.cpu(), images)  # a distortion in place would spoil the data set
    assert len(distortion(there[:0], noise[:0].to(GPU))) == 0
    differ = (want != images).flatten(1).any(1) if want.shape == images.shape else want.any()
    assert differ.double().mean() > 0.4  # it does something


@pytest.mark.parametrize("name", FITS)
def test_images_get_the_size_that_the_cpu_gives_them(name: str) -> None:
    fit, off = FITS[name]
    images = pixels(500)
    check(fit(images.to(GPU)), fit(images), off)


def batches(images: Tensor, labels: Tensor, **options) -> Batches:
    indices = torch.arange(1, len(labels), 2)  # the odd ones take part
    augment = list(DISTORTIONS)
    augment[-1].partial_fit(images.to(GPU))
    usual = {"shuffle": True, "seed": 3, "augment": augment, "to_input": torch.Tensor.float}
    there = images.to(GPU), labels.to(GPU), indices.to(GPU)
    return Batches(*there, 100, **usual | options)


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("shuffle", [True, False])
def test_each_image_comes_once_and_is_the_one_of_its_number(shuffle: bool, ranks: int) -> None:
    images, labels = pixels(5010), torch.arange(5010)
    plain = [
        batches(images, labels, shuffle=shuffle, augment=[], rank=r, world_size=ranks)
        for r in range(ranks)
    ]
    seen = []
    for share in plain:
        for part, names in share:
            assert part.device.type == names.device.type == GPU.type
            assert torch.equal(part.cpu(), images[names.cpu()].float())
            seen += names.tolist()
    assert sorted(seen) == list(range(1, 5010, 2))
    assert (seen == sorted(seen)) == (not shuffle and ranks == 1)


def test_the_order_is_a_pure_function_of_seed_and_epoch() -> None:
    images, labels = pixels(5010), torch.arange(5010)
    here = batches(images, labels)
    orders = [here.order(epoch).cpu() for epoch in (0, 1, 0)]
    assert torch.equal(orders[0], orders[2]) and not torch.equal(orders[0], orders[1])
    # Pinned by CPUs: a run that goes on elsewhere sees the images in the same order.
    cpu = Batches(
        images, labels, torch.arange(1, 5010, 2), 100, shuffle=True, seed=3, to_input=None
    )
    assert torch.equal(orders[0], cpu.order(0))


@pytest.mark.filterwarnings("ignore:.*prototype.*:UserWarning")  # set_sync_debug_mode
def test_the_cpu_waits_for_no_batch_of_a_pass() -> None:
    several = batches(pixels(10020), torch.arange(10020))  # five blocks of a thousand
    several.to_input = lambda images: scale(resize_to(images, 32), -1, 1)
    iterator = iter(several)
    total = len(next(iterator)[1])  # order and noise are copied over once
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _, labels in iterator:
            total += len(labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert total == 5010
