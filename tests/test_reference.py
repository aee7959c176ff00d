"""The naive loops of reference.py compared with torch, and with sums by hand."""

import pytest
import torch
from torch.nn import functional as F

from tests import reference


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (1, 2), (2, 1), (3, 0)])
def test_convolution(stride: int, padding: int) -> None:
    images, weight, bias = torch.randn(2, 3, 7, 8), torch.randn(4, 3, 3, 3), torch.randn(4)
    expected = F.conv2d(images, weight, bias, stride, padding)
    torch.testing.assert_close(
        reference.conv2d(images, weight, bias, stride, padding), expected, rtol=1e-4, atol=1e-5
    )


def test_1x1_convolution_is_a_linear_layer_per_pixel() -> None:
    images, weight, bias = torch.randn(2, 3, 4, 5), torch.randn(6, 3), torch.randn(6)
    kernels = weight.view(6, 3, 1, 1)
    expected = reference.conv2d(images, kernels, bias, stride=1, padding=0)
    torch.testing.assert_close(reference.linear_per_pixel(images, weight, bias), expected)
    torch.testing.assert_close(F.conv2d(images, kernels, bias), expected)


@pytest.mark.parametrize("kind", ["max", "average"])
@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize(("size", "stride"), [(2, 2), (3, 2), (3, 1)])
def test_pooling(kind: str, ceil: bool, size: int, stride: int) -> None:
    images = torch.randn(2, 3, 8, 7)
    if kind == "max":
        expected = F.max_pool2d(images, size, stride, ceil_mode=ceil)
    else:
        expected = F.avg_pool2d(images, size, stride, ceil_mode=ceil, count_include_pad=False)
    torch.testing.assert_close(reference.pool2d(images, size, stride, kind, ceil), expected)


def test_the_average_of_a_clipped_window() -> None:
    images = torch.arange(16.0).view(1, 1, 4, 4)
    pooled = reference.pool2d(images, size=3, stride=2, kind="average", ceil=True)
    assert pooled.flatten().tolist() == [5.0, 6.5, 11.0, 12.5]  # windows 3x3, 3x2, 2x3, 2x2


@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 4, 5)])
def test_batch_norm(shape: tuple[int, ...]) -> None:
    images, gamma, beta = torch.randn(shape), torch.randn(3), torch.randn(3)
    expected = F.batch_norm(images, None, None, gamma, beta, training=True, eps=1e-3)
    torch.testing.assert_close(reference.batch_norm(images, gamma, beta, 1e-3), expected)


def test_local_response_norm_is_torchs_with_alpha_divided_by_the_window() -> None:
    images = 10 * torch.randn(2, 12, 3, 3)
    expected = F.local_response_norm(images, size=9, alpha=0.5, beta=0.75, k=2.0)
    normed = reference.local_response_norm(images, n=9, k=2.0, alpha=0.5 / 9, beta=0.75)
    torch.testing.assert_close(normed, expected)


def test_same_map_norm_of_a_constant_image() -> None:
    normed = reference.same_map_norm(torch.full((1, 1, 3, 3), 2.0), size=3, scale=9.0, power=1.0)
    # Squares of 4 at 4 places in a corner, 6 at an edge and 9 in the middle: 2 / (1 + 4 n).
    assert normed[0, 0, 0, 0].item() == pytest.approx(2 / 17)
    assert normed[0, 0, 0, 1].item() == pytest.approx(2 / 25)
    assert normed[0, 0, 1, 1].item() == pytest.approx(2 / 37)


def test_locally_connected_with_equal_filters_is_a_convolution() -> None:
    images, weight, bias = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 3, 3), torch.randn(2)
    filters = weight.permute(2, 3, 1, 0).expand(4, 5, 3, 3, 3, 2)
    torch.testing.assert_close(
        reference.locally_connected(images, filters, bias.expand(4, 5, 2), padding=1),
        reference.conv2d(images, weight, bias, stride=1, padding=1),
        rtol=1e-4,
        atol=1e-5,
    )


def test_table_with_every_pair_is_a_convolution() -> None:
    images, weight, bias = torch.randn(2, 3, 6, 6), torch.randn(4, 3, 5, 5), torch.randn(4)
    torch.testing.assert_close(
        reference.table_conv2d(images, ((0, 1, 2),) * 4, weight.flatten(0, 1), bias),
        F.conv2d(images, weight, bias),
        rtol=1e-4,
        atol=1e-5,
    )
