"""Networks of published board measurements, layer by layer, and the frame rates that were published of them.

Source of the rates: Xilinx, Vitis AI Model Zoo 1.3, ``models/AI-Model-Zoo/README.md``, sections "Performance on ZCU104"
(2 x B4096 at 300 MHz) and "Performance on ZCU102 (0432055-05)" (3 x B4096 at 281 MHz), end-to-end throughput of one
thread; the Vitis AI Library user guide (UG1354) is the manual of these tables. Layers are those of the published
architectures at the stated input size; pruned networks and detectors, which the tables do not define, are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from unfold_supernet.accelerator.layers import Layer, SubnetLayers, tabulate_subnet

Size = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardRate:
    """Published frame rates of a network.

    Attributes:
        name: Name in the published table.
        family: Architecture; networks of one family are never used to calibrate each other.
        edge: Height and width of the input.
        zcu104: Frames per second on a single thread.
        zcu102: The same on the other board.
        build: Builds the layers.
    """

    name: str
    family: str
    edge: int
    zcu104: float
    zcu102: float
    build: Callable[[], SubnetLayers]


@dataclass(slots=True)
class Builder:
    """Collects layers while it follows the shape of the feature map.

    Attributes:
        channels: Channels of the map.
        edge: Its height and width.
        layers: Layers so far.
    """

    channels: int
    edge: int
    layers: list[Layer] = field(default_factory=list)

    def conv(self, kernels: int, size: int | Size, stride: int = 1, *, groups: int = 1, valid: bool = False) -> None:
        """Append a convolution; padded so that only the stride shrinks the map, unless ``valid``."""
        high, wide = (size, size) if isinstance(size, int) else size
        values = self.channels * self.edge * self.edge
        self.edge = (self.edge - high) // stride + 1 if valid else -(-self.edge // stride)
        depth = self.channels // groups
        self.layers.append(Layer(kernels, depth, (high, wide), (self.edge, self.edge), values, groups))
        self.channels = kernels

    def pool(self, stride: int, size: int = 0, *, up: bool = False) -> None:
        """Shrink the map; with a window ``size`` there is no padding. ``up`` rounds up, as Caffe does."""
        self.edge = (self.edge - size + (stride - 1 if up else 0)) // stride + 1 if size else -(-self.edge // stride)

    def dense(self, outputs: int, *, flatten: bool = False) -> None:
        """Append a matrix product, after global pooling unless ``flatten``."""
        inputs = self.channels * (self.edge * self.edge if flatten else 1)
        self.layers.append(Layer(outputs, inputs, (1, 1), (1, 1), inputs))
        self.channels, self.edge = outputs, 1

    def branches(self, *paths: Callable[[Builder], None]) -> None:
        """Append parallel paths and concatenate their channels."""
        outputs = []
        for path in paths:
            part = Builder(self.channels, self.edge, self.layers)
            path(part)
            outputs.append(part)
        self.channels, self.edge = sum(part.channels for part in outputs), outputs[0].edge

    def finish(self, name: str) -> SubnetLayers:
        """Build the table of the network."""
        names = [str(index) for index in range(len(self.layers))]
        return tabulate_subnet(name, names, dict(zip(names, self.layers, strict=True)), 0.0)


def resnet(name: str, blocks: tuple[int, ...], *, bottleneck: bool = True, stride_first: bool = True) -> SubnetLayers:
    """Build a ResNet (He et al., CVPR 2016).

    Args:
        name: Name of the network.
        blocks: Blocks of each stage.
        bottleneck: Whether a block has three layers.
        stride_first: Whether the first 1 x 1 layer of a stage has the stride, or the 3 x 3 layer.
    """
    net = Builder(3, 224)
    net.conv(64, 7, 2)
    net.pool(2)
    for stage, count in enumerate(blocks):
        width = 64 << stage
        for block in range(count):
            stride = 2 if stage and not block else 1
            out = width * 4 if bottleneck else width
            if not block and (bottleneck or stage):
                shortcut = Builder(net.channels, net.edge, net.layers)
                shortcut.conv(out, 1, stride)
            if bottleneck:
                net.conv(width, 1, stride if stride_first else 1)
                net.conv(width, 3, 1 if stride_first else stride)
                net.conv(out, 1)
            else:
                net.conv(width, 3, stride)
                net.conv(width, 3)
    net.dense(1000)
    return net.finish(name)


def resnet_slim(name: str, blocks: tuple[int, ...]) -> SubnetLayers:
    """Build a ResNet v1 as TF-Slim does: the last block of each stage but the last has the stride, at its end."""
    net = Builder(3, 224)
    net.conv(64, 7, 2)
    net.pool(2)
    for stage, count in enumerate(blocks):
        width = 64 << stage
        for block in range(count):
            stride = 2 if block == count - 1 and stage < len(blocks) - 1 else 1
            if not block:
                shortcut = Builder(net.channels, net.edge, net.layers)
                shortcut.conv(width * 4, 1)
            net.conv(width, 1)
            net.conv(width, 3, stride)
            net.conv(width * 4, 1)
    net.dense(1000)
    return net.finish(name)


def vgg(name: str, counts: tuple[int, ...]) -> SubnetLayers:
    """Build a VGG (Simonyan and Zisserman, ICLR 2015)."""
    net = Builder(3, 224)
    for width, count in zip((64, 128, 256, 512, 512), counts, strict=True):
        for _ in range(count):
            net.conv(width, 3)
        net.pool(2)
    net.dense(4096, flatten=True)
    net.dense(4096)
    net.dense(1000)
    return net.finish(name)


def mobilenet_v1(name: str, width: float, edge: int) -> SubnetLayers:
    """Build a MobileNet (Howard et al., 2017)."""
    net = Builder(3, edge)
    net.conv(int(32 * width), 3, 2)
    for out, stride in (
        (64, 1),
        (128, 2),
        (128, 1),
        (256, 2),
        (256, 1),
        (512, 2),
        *((512, 1),) * 5,
        (1024, 2),
        (1024, 1),
    ):
        net.conv(net.channels, 3, stride, groups=net.channels)
        net.conv(int(out * width), 1)
    net.dense(1000)
    return net.finish(name)


def mobilenet_v2(name: str, width: float) -> SubnetLayers:
    """Build a MobileNetV2 (Sandler et al., CVPR 2018)."""

    def round_channels(value: float) -> int:
        rounded = max(8, int(value + 4) // 8 * 8)
        return rounded + 8 if rounded < 0.9 * value else rounded

    net = Builder(3, 224)
    net.conv(round_channels(32 * width), 3, 2)
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expand, out, count, stride in stages:
        for block in range(count):
            hidden = net.channels * expand
            if expand > 1:
                net.conv(hidden, 1)
            net.conv(hidden, 3, 1 if block else stride, groups=hidden)
            net.conv(round_channels(out * width), 1)
    net.conv(max(1280, round_channels(1280 * width)), 1)
    net.dense(1000)
    return net.finish(name)


def squeezenet(name: str) -> SubnetLayers:
    """Build a SqueezeNet 1.1 (Iandola et al., 2016), with the pooling of Caffe."""
    net = Builder(3, 227)
    net.conv(64, 3, 2, valid=True)
    net.pool(2, 3, up=True)
    for index, squeeze in enumerate((16, 16, 32, 32, 48, 48, 64, 64)):
        if index in (2, 4):
            net.pool(2, 3, up=True)
        net.conv(squeeze, 1)
        net.branches(_chain((squeeze * 4, 1)), _chain((squeeze * 4, 3)))
    net.conv(1000, 1)
    return net.finish(name)


def inception_v1(name: str, largest: int = 5) -> SubnetLayers:
    """Build an Inception v1, GoogLeNet (Szegedy et al., CVPR 2015); TF-Slim's has 3 as ``largest`` window."""
    net = Builder(3, 224)
    net.conv(64, 7, 2)
    net.pool(2)
    net.conv(64, 1)
    net.conv(192, 3)
    net.pool(2)
    modules = (
        (64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64), (), (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64), (128, 128, 256, 24, 64, 64), (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128), (), (256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128),
    )  # fmt: skip
    for module in modules:
        if not module:
            net.pool(2)
            continue
        one, reduce3, three, reduce5, five, pooled = module
        net.branches(
            _chain((one, 1)),
            _chain((reduce3, 1), (three, 3)),
            _chain((reduce5, 1), (five, largest)),
            _chain((pooled, 1)),
        )
    net.dense(1000)
    return net.finish(name)


def inception_v3(name: str) -> SubnetLayers:
    """Build an Inception v3 (Szegedy et al., CVPR 2016)."""
    net = Builder(3, 299)
    net.conv(32, 3, 2, valid=True)
    net.conv(32, 3, valid=True)
    net.conv(64, 3)
    net.pool(2, 3)
    net.conv(80, 1)
    net.conv(192, 3, valid=True)
    net.pool(2, 3)
    for pooled in (32, 64, 64):
        net.branches(_chain((64, 1)), _chain((48, 1), (64, 5)), _chain((64, 1), (96, 3), (96, 3)), _chain((pooled, 1)))
    net.branches(_reduce((384, 3)), _reduce((64, 1), (96, 3), (96, 3)), lambda part: part.pool(2, 3))
    for width in (128, 160, 160, 192):
        net.branches(
            _chain((192, 1)),
            _chain((width, 1), (width, (1, 7)), (192, (7, 1))),
            _chain((width, 1), (width, (7, 1)), (width, (1, 7)), (width, (7, 1)), (192, (1, 7))),
            _chain((192, 1)),
        )
    net.branches(
        _reduce((192, 1), (320, 3)),
        _reduce((192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3)),
        lambda part: part.pool(2, 3),
    )

    def split(part: Builder) -> None:
        part.branches(_chain((384, (1, 3))), _chain((384, (3, 1))))

    def split_after(*layers: tuple[int, int | Size]) -> Callable[[Builder], None]:
        def path(part: Builder) -> None:
            _chain(*layers)(part)
            split(part)

        return path

    for _ in range(2):
        net.branches(_chain((320, 1)), split_after((384, 1)), split_after((448, 1), (384, 3)), _chain((192, 1)))
    net.dense(1000)
    return net.finish(name)


def _chain(*layers: tuple[int, int | Size]) -> Callable[[Builder], None]:
    def path(part: Builder) -> None:
        for kernels, size in layers:
            part.conv(kernels, size)

    return path


def _reduce(*layers: tuple[int, int | Size]) -> Callable[[Builder], None]:
    """Make a path with a stride of two and no padding in its last layer."""

    def path(part: Builder) -> None:
        _chain(*layers[:-1])(part)
        part.conv(layers[-1][0], layers[-1][1], 2, valid=True)

    return path


def list_board_rates() -> tuple[BoardRate, ...]:
    """List the published frame rates of all networks that can be built."""
    rates: Mapping[str, tuple[str, int, float, float, Callable[[str], SubnetLayers]]] = {
        "cf_resnet50": ("resnet", 224, 75.1, 70.8, lambda name: resnet(name, (3, 4, 6, 3))),
        "cf_resnet18": ("resnet", 224, 189.7, 180.2, lambda name: resnet(name, (2, 2, 2, 2), bottleneck=False)),
        "cf_inceptionv1": ("inception", 224, 172.0, 163.2, inception_v1),
        "cf_inceptionv3": ("inception", 299, 60.7, 57.2, inception_v3),
        "cf_mobilenetv2": ("mobilenet", 224, 255.2, 245.1, lambda name: mobilenet_v2(name, 1.0)),
        "cf_squeeze": ("squeezenet", 227, 260.2, 256.1, squeezenet),
        "tf_inceptionv1": ("inception", 224, 175.8, 166.7, lambda name: inception_v1(name, 3)),
        "tf_inceptionv3": ("inception", 299, 60.2, 56.8, inception_v3),
        "tf_mobilenetv1_0.25_128": ("mobilenet", 128, 1082.9, 1062.6, lambda name: mobilenet_v1(name, 0.25, 128)),
        "tf_mobilenetv1_0.5_160": ("mobilenet", 160, 708.8, 689.5, lambda name: mobilenet_v1(name, 0.5, 160)),
        "tf_mobilenetv1_1.0_224": ("mobilenet", 224, 299.0, 287.4, lambda name: mobilenet_v1(name, 1.0, 224)),
        "tf_mobilenetv2_1.0": ("mobilenet", 224, 251.1, 240.7, lambda name: mobilenet_v2(name, 1.0)),
        "tf_mobilenetv2_1.4": ("mobilenet", 224, 184.7, 176.2, lambda name: mobilenet_v2(name, 1.4)),
        "tf_resnetv1_50": ("resnet", 224, 82.2, 77.5, lambda name: resnet_slim(name, (3, 4, 6, 3))),
        "tf_resnetv1_101": ("resnet", 224, 44.3, 41.7, lambda name: resnet_slim(name, (3, 4, 23, 3))),
        "tf_resnetv1_152": ("resnet", 224, 30.4, 28.6, lambda name: resnet_slim(name, (3, 8, 36, 3))),
        "tf_vgg16": ("vgg", 224, 21.2, 19.9, lambda name: vgg(name, (2, 2, 3, 3, 3))),
        "tf_vgg19": ("vgg", 224, 18.3, 17.2, lambda name: vgg(name, (2, 2, 4, 4, 4))),
        "tf_mlperf_resnet50": ("resnet", 224, 73.9, 69.6, lambda name: resnet(name, (3, 4, 6, 3), stride_first=False)),
        "torchvision_inception_v3": ("inception", 299, 60.9, 57.4, inception_v3),
    }
    return tuple(
        BoardRate(name=name, family=family, edge=edge, zcu104=fast, zcu102=slow, build=partial(make, name))
        for name, (family, edge, fast, slow, make) in rates.items()
    )
