"""Images and their order on the GPU compared with the CPU, for the same random numbers."""

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
from tests.gpu import GPU, needs_cuda

pytestmark = pytest.mark.gpu

# The tolerance for pixels of 0 to 255: 0 where pixels are only moved.
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
    "scale": (lambda x: scale(x, -0.1, 1.175), 2**-22),  # two units in the last place of 1.175
}


def pixels(count: int) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, 32, 32), generator=random, dtype=torch.uint8)


def numbers(count: int, draws: int) -> Tensor:
    """Uniform random numbers; the first two images have the least and the greatest ones."""
    noise = torch.rand(count, draws, generator=torch.Generator().manual_seed(1))
    noise[0], noise[1] = 0.0, 1 - 2**-24
    return noise


def check(got: Tensor, want: Tensor, tolerance: float) -> None:
    assert got.device.type == GPU.type and got.dtype == want.dtype
    torch.testing.assert_close(got.cpu(), want, rtol=0, atol=tolerance)


@pytest.mark.parametrize("distortion", DISTORTIONS, ids=lambda d: type(d).__name__)
def test_distortions_equal_those_on_the_cpu(distortion) -> None:
    images, noise = pixels(2000), numbers(2000, distortion.draws)
    if hasattr(distortion, "partial_fit"):
        distortion.partial_fit(images)
    want = distortion(images, noise)
    on_gpu = images.to(GPU)
    if hasattr(distortion, "partial_fit"):
        distortion.partial_fit(on_gpu)
    check(distortion(on_gpu, noise.to(GPU)), want, DISTORTIONS[distortion])
    assert torch.equal(on_gpu.cpu(), images)  # distorting in place would change the data set
    assert len(distortion(on_gpu[:0], noise[:0].to(GPU))) == 0
    changed = (want != images).flatten(1).any(1) if want.shape == images.shape else want.any()
    assert changed.double().mean() > 0.4  # most images change


@pytest.mark.parametrize("name", FITS)
def test_images_are_fitted_as_on_the_cpu(name: str) -> None:
    fit, tolerance = FITS[name]
    images = pixels(500)
    check(fit(images.to(GPU)), fit(images), tolerance)


def batches(images: Tensor, labels: Tensor, **options) -> Batches:
    indices = torch.arange(1, len(labels), 2)  # only these are in the data set
    augment = list(DISTORTIONS)
    augment[-1].partial_fit(images.to(GPU))
    defaults = {"shuffle": True, "seed": 3, "augment": augment, "to_input": torch.Tensor.float}
    on_gpu = images.to(GPU), labels.to(GPU), indices.to(GPU)
    return Batches(*on_gpu, 100, **defaults | options)


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("shuffle", [True, False])
def test_each_image_comes_once_with_its_label(shuffle: bool, ranks: int) -> None:
    images, labels = pixels(5010), torch.arange(5010)
    plain = [
        batches(
            images, labels, shuffle=shuffle, whole=not shuffle, augment=[], rank=r, world_size=ranks
        )
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
    loader = batches(images, labels)
    orders = [loader.order(epoch).cpu() for epoch in (0, 1, 0)]
    assert torch.equal(orders[0], orders[2]) and not torch.equal(orders[0], orders[1])
    # Equal to the order on CPUs, so that a run can be resumed on another device.
    cpu = Batches(
        images, labels, torch.arange(1, 5010, 2), 100, shuffle=True, seed=3, to_input=None
    )
    assert torch.equal(orders[0], cpu.order(0))


@needs_cuda
@pytest.mark.filterwarnings("ignore:.*prototype.*:UserWarning")  # set_sync_debug_mode
def test_the_cpu_does_not_wait_for_the_gpu_in_a_pass() -> None:
    loader = batches(pixels(10020), torch.arange(10020))  # five blocks of a thousand
    loader.to_input = lambda images: scale(resize_to(images, 32), -1, 1)
    iterator = iter(loader)
    total = len(next(iterator)[1])  # order and noise are copied once
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _, labels in iterator:
            total += len(labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert total == 5010
