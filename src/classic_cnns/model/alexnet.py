"""AlexNet, the net of 2012 with two towers.

Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep Convolutional Neural Networks,
NIPS 2012; "section" and "Fig." below refer to it. The kernels of conv1 ... conv5 and the neurons of
fc6 and fc7 are divided into two towers, which the authors computed on two GPUs. The input of conv1
is the image, that of conv2, conv4 and conv5 the maps of their own tower, and that of conv3 and the
fully-connected layers the outputs of both towers (section 3.2). A tower is one half of the rows
(dimension 0) of each weight, so conv2, conv4 and conv5 are grouped convolutions: conv2.weight is
(256, 48, 5, 5). This module does not choose the devices of the towers.

Images are pixels of 0 ... 255 less the mean image (section 2); the initial weights, N(0, 0.01) in
every layer, are made for this scale.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from classic_cnns.model.batch_norm import norm_layer
from classic_cnns.model.local_response_norm import LocalResponseNorm

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}  # section 3.1
POOLS = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}
NORMED = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7")
WINDOWS = {"overlapping": 3, "non_overlapping": 2}  # z of section 3.4; s is 2 in both


class AlexNet(nn.Module):
    """Five convolutional and three fully-connected layers (Fig. 2).

    `conf/model/alexnet.yaml` describes the keys. `channels` are the numbers of kernels of conv1 ...
    conv5 and `hidden` is the number of neurons of fc6 and of fc7, in both towers together. With one
    tower each kernel has all maps as inputs. Without `conv4`, conv5 follows conv3 (section 7).
    """

    # The layers whose inputs are the outputs of both towers.
    crossings = ("conv3", "fc6", "fc7", "fc8")

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        image_size: int,
        channels: Sequence[int],
        hidden: int,
        conv1_kernel: int,
        conv1_stride: int,
        towers: int,
        activation: str,
        lrn: bool,
        lrn_divide_by_size: bool,
        pool: str,
        dropout: float,
        weight_std: float,
        pooling: str = "max",  # defaults for configs of earlier versions
        norm: str = "none",
        conv4: bool = True,
    ) -> None:
        super().__init__()
        self.towers = towers
        c1, c2, c3, c4, c5 = channels
        window = WINDOWS[pool]

        def response_norm() -> nn.Module:  # the constants of section 3.3
            return LocalResponseNorm(
                size=5, alpha=1e-4, beta=0.75, k=2.0,
                groups=towers, divide_by_size=lrn_divide_by_size,
            )  # fmt: skip

        self.conv1 = nn.Conv2d(in_channels, c1, conv1_kernel, conv1_stride)
        self.norm1 = response_norm() if lrn else nn.Identity()
        self.pool1 = POOLS[pooling](window, 2)
        self.conv2 = nn.Conv2d(c1, c2, 5, padding=2, groups=towers)
        self.norm2 = response_norm() if lrn else nn.Identity()
        self.pool2 = POOLS[pooling](window, 2)
        self.conv3 = nn.Conv2d(c2, c3, 3, padding=1)
        if conv4:
            self.conv4 = nn.Conv2d(c3, c4, 3, padding=1, groups=towers)
        self.conv5 = nn.Conv2d(c4 if conv4 else c3, c5, 3, padding=1, groups=towers)
        self.pool5 = POOLS[pooling](window, 2)
        side = (image_size + self._overhang(image_size) - conv1_kernel) // conv1_stride + 1  # 55
        for _ in range(3):  # 27, 13, 6
            side = (side - window) // 2 + 1
        if side < 1:
            raise ValueError(
                f"model.input.size={image_size}: leaves nothing after pool5; "
                "try model.input.size=224, or a smaller model.net.conv1_stride"
            )
        self.fc6 = nn.Linear(c5 * side**2, hidden)
        self.drop6 = nn.Dropout(dropout)
        self.fc7 = nn.Linear(hidden, hidden)
        self.drop7 = nn.Dropout(dropout)
        self.fc8 = nn.Linear(hidden, num_classes)
        self.activation = ACTIVATIONS[activation]()
        for layer, size in zip(NORMED, (*channels, hidden, hidden), strict=True):
            if hasattr(self, layer):
                setattr(
                    self, f"{layer}_norm", norm_layer(norm, size, maps=layer.startswith("conv"))
                )
        for name, parameter in self.named_parameters():  # section 5
            layer, _, kind = name.partition(".")
            if layer.endswith("_norm"):
                continue
            if kind == "weight":
                nn.init.normal_(parameter, std=weight_std)
            else:  # 1, for positive inputs of the ReLUs
                one = layer in ("conv2", "conv4", "conv5", "fc6", "fc7")
                nn.init.constant_(parameter, float(one))

    def _overhang(self, size: int) -> int:
        """How far conv1's last window extends over the edge: 3 pixels at 224, 0 at 227.

        Windows of 11 pixels with a stride of 4 do not fit exactly into 224 pixels, but the paper
        has maps of 55 x 55: the authors' program, cuda-convnet, rounds the number of windows up and
        reads zeros beyond the right and bottom edges.
        """
        (kernel, _), (stride, _) = self.conv1.kernel_size, self.conv1.stride
        return (kernel - size) % stride

    def normed(self, layer: str, x: Tensor) -> Tensor:
        """A layer, its batch normalisation if there is one, and the activation."""
        x = getattr(self, layer)(x)
        return self.activation(getattr(self, f"{layer}_norm")(x))

    def forward(self, images: Tensor) -> Tensor:
        """Map images, float (B, in_channels, image_size, image_size), to scores (B, num_classes).

        The paper's images have 224 x 224 pixels; 227 x 227, as in later versions, give maps of the
        same sizes. The sizes in the comments are the paper's.
        """
        height, width = images.shape[-2:]
        act = self.normed
        x = F.pad(images, (0, self._overhang(width), 0, self._overhang(height)))  # (B, 3, 227, 227)
        x = self.norm1(act("conv1", x))  # (B, 96, 55, 55)
        x = self.norm2(act("conv2", self.pool1(x)))  # (B, 96, 27, 27) -> (B, 256, 27, 27)
        x = act("conv3", self.pool2(x))  # (B, 256, 13, 13) -> (B, 384, 13, 13)
        x = act("conv4", x) if hasattr(self, "conv4") else x  # (B, 384, 13, 13)
        x = act("conv5", x)  # (B, 256, 13, 13)
        x = self.pool5(x).flatten(1)  # (B, 256, 6, 6) -> (B, 9216)
        x = self.drop6(act("fc6", x))  # (B, 4096)
        x = self.drop7(act("fc7", x))  # (B, 4096)
        return self.fc8(x)  # (B, 1000)
