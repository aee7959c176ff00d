"""The picture of a first layer: each tower on its side, colours as they are, the rest grey."""

import torch

from classic_cnns.report.kernels import picture


def test_the_towers_stand_side_by_side_in_their_colours():
    kernels = torch.zeros(12, 3, 2, 2)
    kernels[:6, 0] = kernels[6:, 2] = 1  # red ones in the first tower, blue ones in the second
    image = picture(kernels, towers=2)
    assert image.shape == (3, 8 + 8, 2 * (6 * 12 + 4))  # 8 pixels a kernel, 4 around it
    left, right = image.chunk(2, dim=2)
    assert left[:, 8, 8].tolist() == [1, 0, 0] and right[:, 8, 8].tolist() == [0, 0, 1]
    assert left[:, 0, 0].tolist() == [1, 1, 1]


def test_each_kernel_has_its_own_contrast_and_other_channels_are_grey():
    kernels = torch.tensor([-1.0, 0.0, 1.0, 0.5]).view(1, 1, 2, 2).repeat(2, 1, 1, 1)
    kernels[1] *= 100
    image = picture(kernels, towers=1)
    for corner in (4, 4 + 12):
        row = image[:, 4, corner : corner + 8 : 4]
        assert row.tolist() == 3 * [[0.0, 0.5]]
        assert torch.allclose(image[:, 8, corner : corner + 8 : 4], torch.tensor([1.0, 0.75]))
