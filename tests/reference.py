"""Naive loops over the formulas, with which layers are compared.

They compute one output value at a time, without torch's convolution, pooling or normalisation.
"""

import math

import torch
from torch import Tensor


def pad(images: Tensor, padding: int) -> Tensor:
    """`padding` zeros on each side: (B, C, H, W) -> (B, C, H + 2p, W + 2p)."""
    batch, channels, height, width = images.shape
    result = images.new_zeros(batch, channels, height + 2 * padding, width + 2 * padding)
    result[:, :, padding : padding + height, padding : padding + width] = images
    return result


def conv2d(images: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
    """Images (B, C, H, W) and kernels (O, C, k, k): each output is a sum over all channels."""
    outputs, _, size, _ = weight.shape
    padded = pad(images, padding)
    rows = (padded.size(2) - size) // stride + 1
    columns = (padded.size(3) - size) // stride + 1
    result = images.new_zeros(len(images), outputs, rows, columns)
    for b in range(len(images)):
        for o in range(outputs):
            for y in range(rows):
                for x in range(columns):
                    top, left = y * stride, x * stride
                    window = padded[b, :, top : top + size, left : left + size]  # (C, k, k)
                    result[b, o, y, x] = (weight[o] * window).sum() + bias[o]
    return result


def linear_per_pixel(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 1x1 convolution: the same linear layer (O, C) on the channels of every pixel."""
    batch, _, height, width = images.shape
    result = images.new_zeros(batch, len(weight), height, width)
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                result[b, :, y, x] = weight @ images[b, :, y, x] + bias
    return result


def table_conv2d(
    images: Tensor, table: tuple[tuple[int, ...], ...], weight: Tensor, bias: Tensor
) -> Tensor:
    """LeNet-5's C3: output map o is a sum over the input maps table[o].

    `weight` (connections, k, k) contains the kernels of map 0, then of map 1, ...
    """
    kernels = iter(weight)
    maps = []
    for o, sources in enumerate(table):
        kernel = torch.stack([next(kernels) for _ in sources])  # (sources, k, k)
        maps.append(conv2d(images[:, list(sources)], kernel[None], bias[o : o + 1], 1, 0))
    return torch.cat(maps, dim=1)


def pool2d(images: Tensor, size: int, stride: int, kind: str, ceil: bool) -> Tensor:
    """`kind` is max or average. With `ceil` the last window is clipped at the edge."""
    batch, channels, height, width = images.shape
    rounding = math.ceil if ceil else math.floor
    rows = rounding((height - size) / stride) + 1
    columns = rounding((width - size) / stride) + 1
    result = images.new_zeros(batch, channels, rows, columns)
    for y in range(rows):
        for x in range(columns):
            top, left = y * stride, x * stride
            window = images[:, :, top : top + size, left : left + size].flatten(2)
            result[:, :, y, x] = window.amax(2) if kind == "max" else window.mean(2)
    return result


def batch_norm(images: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    """Training mode for (B, C) or (B, C, H, W), with the biased variance of each channel."""
    result = torch.empty_like(images)
    for c in range(images.size(1)):
        values = images[:, c].flatten().tolist()
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / len(values)
        normalised = (images[:, c] - mean) / math.sqrt(variance + eps)
        result[:, c] = gamma[c] * normalised + beta[c]
    return result


def same_map_norm(images: Tensor, size: int, scale: float, power: float) -> Tensor:
    """cuda-convnet's rnorm; the sum of squares is also divided by size^2 at the border."""
    _, _, height, width = images.shape
    half = size // 2
    result = torch.empty_like(images)
    for y in range(height):
        for x in range(width):
            total = torch.zeros_like(images[:, :, 0, 0])
            for i in range(max(0, y - half), min(height, y + half + 1)):
                for j in range(max(0, x - half), min(width, x + half + 1)):
                    total += images[:, :, i, j] ** 2
            result[:, :, y, x] = images[:, :, y, x] / (1 + scale / size**2 * total) ** power
    return result


def local_response_norm(a: Tensor, n: int, k: float, alpha: float, beta: float) -> Tensor:
    """Krizhevsky 2012, section 3.3, for each kernel; `a` is (B, N, H, W)."""
    count = a.shape[1]
    b = torch.empty_like(a)
    for i in range(count):
        total = torch.zeros_like(a[:, i])
        for j in range(max(0, i - n // 2), min(count - 1, i + n // 2) + 1):
            total += a[:, j] ** 2
        b[:, i] = a[:, i] / (k + alpha * total) ** beta
    return b


def locally_connected(images: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
    """A convolution with separate filters (k, k, C, O) and biases (O) at each position (y, x)."""
    rows, columns, size, _, channels, outputs = weight.shape
    padded = pad(images, padding)
    result = images.new_zeros(len(images), outputs, rows, columns)
    for b in range(len(images)):
        for y in range(rows):
            for x in range(columns):
                for o in range(outputs):
                    total = bias[y, x, o].clone()
                    for i in range(size):
                        for j in range(size):
                            for c in range(channels):
                                total += weight[y, x, i, j, c, o] * padded[b, c, y + i, x + j]
                    result[b, o, y, x] = total
    return result


def alexnet_two_towers(state: dict[str, Tensor], images: Tensor) -> dict[str, Tensor]:
    """Krizhevsky 2012, Fig. 2: two separate towers of ungrouped convolutions, without dropout.

    `state` has weights and biases under the paper's layer names; tower A has the first half of the
    rows of each. Images are (B, 3, 227, 227). Returns the outputs of all layers, with the maps of
    both towers concatenated.
    """

    def half(key: str, tower: int) -> Tensor:
        return state[key].chunk(2)[tower]

    def conv(name: str, inputs: list[Tensor], **kwargs: int) -> list[Tensor]:
        towers = [
            torch.conv2d(x, half(f"{name}.weight", t), half(f"{name}.bias", t), **kwargs)
            for t, x in enumerate(inputs)
        ]
        maps[name] = torch.cat(towers, 1)
        return [x.clamp(min=0) for x in towers]

    def norm_and_pool(number: int, inputs: list[Tensor]) -> list[Tensor]:
        towers = [local_response_norm(x, n=5, k=2, alpha=1e-4, beta=0.75) for x in inputs]
        maps[f"norm{number}"] = torch.cat(towers, 1)
        towers = [max_pool(x) for x in towers]
        maps[f"pool{number}"] = torch.cat(towers, 1)
        return towers

    def max_pool(x: Tensor) -> Tensor:
        return pool2d(x, size=3, stride=2, kind="max", ceil=False)

    maps: dict[str, Tensor] = {}
    towers = norm_and_pool(1, conv("conv1", [images, images], stride=4))
    towers = norm_and_pool(2, conv("conv2", towers, padding=2))
    both = torch.cat(towers, 1)
    towers = conv("conv3", [both, both], padding=1)
    towers = conv("conv4", towers, padding=1)
    towers = conv("conv5", towers, padding=1)
    x = maps["pool5"] = torch.cat([max_pool(t) for t in towers], 1)
    x = x.flatten(1)
    for name in ("fc6", "fc7", "fc8"):
        x = maps[name] = x @ state[f"{name}.weight"].T + state[f"{name}.bias"]
        x = x.clamp(min=0)
    return maps
