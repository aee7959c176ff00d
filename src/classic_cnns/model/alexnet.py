"""AlexNet, the net of 2012 in its two towers.

Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep Convolutional Neural Networks,
NIPS 2012; "section" and "Fig." below are this paper's. The kernels of conv1 ... conv5 and the
neurons of fc6 and fc7 stand in two towers, which the authors put on two GPUs. conv1 sees the image;
conv2, conv4 and conv5 see the maps of their own tower only; conv3 and the fully-connected layers
see both (section 3.2). So a tower is one half of the rows (dimension 0) of a weight, and "own tower
only" is a grouped convolution: conv2.weight is (256, 48, 5, 5). On which device a tower is computed
is no business of this file.

Images come centred: the authors subtract the mean of each pixel and keep the scale of 0 ... 255
(section 2), which their initial weights, N(0, 0.01) in every layer, suit.
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

    `conf/model/alexnet.yaml` says what each key is and where the paper has it. `channels` counts
    the kernels of conv1 ... conv5, `hidden` the neurons of fc6 and of fc7, both towers together;
    with one tower every kernel sees every map.
    """

    # Where the towers meet: the layers whose neurons see the outputs of both.
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
        self.conv4 = nn.Conv2d(c3, c4, 3, padding=1, groups=towers)
        self.conv5 = nn.Conv2d(c4, c5, 3, padding=1, groups=towers)
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
            setattr(self, f"{layer}_norm", norm_layer(norm, size, maps=layer.startswith("conv")))
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
        """Return how far conv1's last window hangs over the edge: 3 pixels at 224, 0 at 227.

        Windows of 11 pixels at a stride of 4 do not tile 224 pixels, yet give 55 x 55 maps in the
        paper: the authors' program, cuda-convnet, rounds their number up, and reads zeros beyond
        the right and bottom edges.
        """
        (kernel, _), (stride, _) = self.conv1.kernel_size, self.conv1.stride
        return (kernel - size) % stride

    def normed(self, layer: str, x: Tensor) -> Tensor:
        """A layer, its batch normalisation if there is one, and the activation."""
        x = getattr(self, layer)(x)
        return self.activation(getattr(self, f"{layer}_norm")(x))

    def forward(self, images: Tensor) -> Tensor:
        """Map images, float (B, in_channels, image_size, image_size), to scores (B, num_classes).

        The paper's net takes 224 x 224 pixels, or the 227 x 227 of later versions: maps are equal
        in size. The sizes in the comments are the paper's.
        """
        height, width = images.shape[-2:]
        act = self.normed
        x = F.pad(images, (0, self._overhang(width), 0, self._overhang(height)))  # (B, 3, 227, 227)
        x = self.norm1(act("conv1", x))  # (B, 96, 55, 55)
        x = self.norm2(act("conv2", self.pool1(x)))  # (B, 96, 27, 27) -> (B, 256, 27, 27)
        x = act("conv3", self.pool2(x))  # (B, 256, 13, 13) -> (B, 384, 13, 13)
        x = act("conv4", x)  # (B, 384, 13, 13)
        x = act("conv5", x)  # (B, 256, 13, 13)
        x = self.pool5(x).flatten(1)  # (B, 256, 6, 6) -> (B, 9216)
        x = self.drop6(act("fc6", x))  # (B, 4096)
        x = self.drop7(act("fc7", x))  # (B, 4096)
        return self.fc8(x)  # (B, 1000)
