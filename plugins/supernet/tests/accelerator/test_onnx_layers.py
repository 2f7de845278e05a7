"""A network for the accelerator, read from ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from plugins.supernet.tests.helpers import make_run, parse_spec
from unfold_supernet.accelerator.layers import DEPTH, GROUPS, INPUT, KERNELS, OUT_COLUMNS, OUT_ROWS
from unfold_supernet.accelerator.onnx_layers import read_onnx_layers
from unfold_supernet.accelerator.tile_traffic import describe_shape
from unfold_supernet.verbs.plan import plan
from unfoldkit.api import UnfoldError, Verdict


def write_graph(
    path: Path, nodes: Sequence[Any], weights: dict[str, tuple[int, ...]], shape: Sequence[Any], opset: int = 17
) -> Path:
    """Write a graph from ``x`` to ``y`` with weights of some shapes."""
    tensors = [numpy_helper.from_array(np.zeros(size, np.float32), name) for name, size in weights.items()]
    graph = helper.make_graph(
        list(nodes), "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], tensors,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


CNN = (
    helper.make_node("Conv", ["x", "w0"], ["a"], "stem", pads=[1, 1, 1, 1], strides=[2, 2]),
    helper.make_node("Relu", ["a"], ["b"]),
    helper.make_node("Conv", ["b", "w1"], ["c"], "apart", pads=[1, 1, 1, 1], group=16),
    helper.make_node("Add", ["b", "c"], ["d"]),
    helper.make_node("MaxPool", ["d"], ["e"], kernel_shape=[2, 2], strides=[2, 2]),
    helper.make_node("Identity", ["w2"], ["w2i"]),
    helper.make_node("Conv", ["e", "w2i"], ["f"], "point"),
    helper.make_node("GlobalAveragePool", ["f"], ["g"]),
    helper.make_node("Flatten", ["g"], ["h"]),
    helper.make_node("Gemm", ["h", "w3", "b3"], ["i"], "head", transB=1),
    helper.make_node("MatMul", ["i", "w4"], ["y"], "mix"),
)
WEIGHTS: dict[str, tuple[int, ...]] = {
    "w0": (16, 3, 3, 3), "w1": (16, 1, 3, 3), "w2": (24, 16, 1, 1), "w3": (10, 24), "b3": (10,), "w4": (10, 6),
}  # fmt: skip


@pytest.mark.parametrize("rows", ["n", 1, None])
def test_layers_are_those_of_the_graph(tmp_path: Path, rows: Any) -> None:
    """Strides, depthwise and pointwise convolutions, Gemm and MatMul match a count by hand; the rest is in passing."""
    family = read_onnx_layers(write_graph(tmp_path / "net.onnx", CNN, WEIGHTS, (rows, 3, 32, 32)), "mine", 70.0)
    assert family.layers == ("stem", "apart", "point", "head", "mix")
    subnet = family.subnets[0]
    assert (subnet.name, subnet.accuracy) == ("net", 70.0)
    columns = [KERNELS, DEPTH, OUT_ROWS, OUT_COLUMNS, GROUPS, INPUT]
    assert subnet.table[:, columns].tolist() == [
        [16, 3, 16, 16, 1, 3 * 1024],
        [16, 1, 16, 16, 16, 16 * 256],
        [24, 16, 8, 8, 1, 16 * 64],
        [10, 24, 1, 1, 1, 24],
        [6, 10, 1, 1, 1, 10],
    ]
    assert subnet.macs.tolist() == [16 * 27 * 256, 16 * 9 * 256, 24 * 16 * 64, 240, 60]
    assert "Add, Flatten, GlobalAveragePool, MaxPool, Relu" in family.about
    unstated = read_onnx_layers(tmp_path / "net.onnx", "mine", 100.0)
    assert ["taken as 100 %" in each.about for each in (family, unstated)] == [False, True]


@pytest.mark.parametrize("kind", ["ArgMax", "TopK"])
def test_the_choice_of_a_class_counts_as_free(tmp_path: Path, kind: str) -> None:
    """A classifier may end in the best of its scores."""
    last = helper.make_node(kind, ["a", "k"][: 2 if kind == "TopK" else 1], ["y", "i"][: 2 if kind == "TopK" else 1])
    nodes = (helper.make_node("MatMul", ["x", "w"], ["a"], "head"), last)
    family = read_onnx_layers(write_graph(tmp_path / "net.onnx", nodes, {"w": (6, 3), "k": (1,)}, (1, 6)), "mine", 70.0)
    assert family.layers == ("head",)
    assert f"counted as free: {kind}" in family.about


def test_steps_of_a_convolution_are_those_of_its_node(tmp_path: Path) -> None:
    """Strides may differ by axis; without padding, the maps of a dilated convolution suggest another stride."""
    nodes = [helper.make_node("Conv", ["x", "w0"], ["y"], "a", strides=[1, 3], dilations=[4, 2])]
    path = write_graph(tmp_path / "net.onnx", nodes, {"w0": (8, 2, 3, 3)}, ("n", 2, 12, 12))
    (row,) = read_onnx_layers(path, "mine", 70.0).subnets[0].table
    shape = describe_shape(row)
    assert (shape.out, shape.stride, shape.dilation, shape.reach) == ((4, 3), (1, 3), (4, 2), (9, 5))


@pytest.mark.parametrize(
    ("window", "stride", "parts"),
    [
        ((2, 2), (2, 2), 1),
        ((4, 4), (2, 2), 1),
        ((3, 3), (2, 2), 4),
        ((3, 3), (1, 1), 1),
        ((1, 1), (2, 2), 1),
        ((4,), (2,), 1),
        ((3, 3), (1 << 40, 1 << 40), 1),
    ],
)
@pytest.mark.parametrize("groups", [1, 4])
def test_transposed_convolutions_multiply_each_input_by_its_kernel(
    tmp_path: Path, window: tuple[int, ...], stride: tuple[int, ...], parts: int, groups: int
) -> None:
    """Their layers hold all weights once, and multiply each value of the input by the weights of its channel."""
    nodes = [helper.make_node("ConvTranspose", ["x", "w0"], ["y"], "up", strides=stride, group=groups)]
    edges = (6, 5)[: len(window)]
    path = write_graph(tmp_path / "net.onnx", nodes, {"w0": (8, 12 // groups, *window)}, ("n", 8, *edges))
    family = read_onnx_layers(path, "mine", 70.0)
    subnet = family.subnets[0]
    assert len(family.layers) == parts
    weights = 8 * 12 // groups * int(np.prod(window))
    assert int(subnet.weights.sum()) == weights
    assert int(subnet.macs.sum()) == weights * int(np.prod(edges))


def test_signals_and_tokens_are_layers(tmp_path: Path) -> None:
    """A 1-D convolution has a map of one column; a product over tokens has a position for each of them."""
    nodes = (
        helper.make_node("Conv", ["x", "w0"], ["a"], "signal", pads=[2, 2], strides=[2]),
        helper.make_node("Transpose", ["a"], ["b"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["b", "w1"], ["y"], "tokens"),
    )
    path = write_graph(tmp_path / "net.onnx", nodes, {"w0": (8, 2, 5), "w1": (8, 32)}, ("n", 2, 64))
    table = read_onnx_layers(path, "mine", 70.0).subnets[0].table
    assert table.tolist() == [
        [8, 2, 5, 1, 32, 1, 1, 128, 2, 1, 1, 1, 2, 0, 64, 1],
        [32, 8, 1, 1, 32, 1, 1, 256, 1, 1, 1, 1, 0, 0, 0, 0],
    ]


@pytest.mark.parametrize(
    ("attributes", "padding"),
    [
        ({"pads": [6, 2, 6, 4], "dilations": [6, 1]}, (6, 2)),
        ({"auto_pad": "SAME_UPPER", "strides": [2, 1]}, (0, 1)),
        ({"auto_pad": "SAME_LOWER", "strides": [2, 1]}, (1, 1)),
        ({"auto_pad": "VALID"}, (0, 0)),
    ],
)
def test_padding_before_the_map_is_read(tmp_path: Path, attributes: dict[str, Any], padding: tuple[int, int]) -> None:
    """It is stated, or follows from the maps; of several inputs it is unknown."""
    nodes = [helper.make_node("Conv", ["x", "w0"], ["y"], "a", **attributes)]
    for rows in (1, 2):
        path = write_graph(tmp_path / "net.onnx", nodes, {"w0": (8, 2, 3, 3)}, (rows, 2, 14, 12))
        shape = describe_shape(read_onnx_layers(path, "mine", 70.0).subnets[0].table[0])
        assert (shape.padding, shape.map_size) == ((padding, (14, 12)) if rows == 1 else ((0, 0), (0, 0)))


@pytest.mark.parametrize(
    ("node", "shape", "positions"),
    [
        (helper.make_node("MatMul", ["w", "x"], ["y"]), ("n", 6, 10), 10),
        (helper.make_node("MatMul", ["w", "x"], ["y"]), (6, 10), 10),
        (helper.make_node("Gemm", ["w", "x"], ["y"], transB=1), (3, 6), 3),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transA=1, transB=1), (6, 3), 3),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transB=1), (3, 6), 3),
    ],
)
def test_channels_are_counted_along_the_axis_that_is_multiplied(
    tmp_path: Path, node: Any, shape: Sequence[Any], positions: int
) -> None:
    """Weights may stand on either side, and either side may be transposed."""
    path = write_graph(tmp_path / "net.onnx", [node], {"w": (4, 6)}, shape)
    table = read_onnx_layers(path, "mine", 70.0).subnets[0].table
    assert table[:, : INPUT + 1].tolist() == [[4, 6, 1, 1, positions, 1, 1, 6 * positions]]


@pytest.mark.parametrize("transposed", [False, True])
def test_a_fixed_number_of_rows_counts_in_every_layer(tmp_path: Path, transposed: bool) -> None:
    """Eight rows have eight times the multiplications of one, in convolutions as in products, with equal weights."""
    nodes = (
        helper.make_node("ConvTranspose" if transposed else "Conv", ["x", "w0"], ["a"]),
        helper.make_node("GlobalAveragePool", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("MatMul", ["c", "w1"], ["y"]),
    )
    single, several = (
        read_onnx_layers(
            write_graph(tmp_path / "net.onnx", nodes, {"w0": (4, 4, 3, 3), "w1": (4, 2)}, (rows, 4, 9, 9)), "mine", 70.0
        ).subnets[0]
        for rows in ("n", 8)
    )
    assert several.macs.tolist() == (8 * single.macs).tolist()
    assert several.weights.tolist() == single.weights.tolist()


def write_constant(name: str, *values: int) -> Any:
    return helper.make_node("Constant", [], [name], value_ints=values)


def test_shapes_that_the_graph_computes_are_followed(tmp_path: Path) -> None:
    """Half of the channels, counted in the graph, are the input of a layer; their map is shuffled by its own shape."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        *(write_constant(name, value) for name, value in (("zero", 0), ("one", 1), ("two", 2), ("all", -1))),
        helper.make_node("Gather", ["s", "zero"], ["rows"]),
        helper.make_node("Gather", ["s", "one"], ["channels"]),
        helper.make_node("Div", ["channels", "two"], ["half"]),
        helper.make_node("Slice", ["x", "zero", "half", "one"], ["part"]),
        helper.make_node("Conv", ["part", "w0"], ["a"], "apart", pads=[1, 1, 1, 1]),
        helper.make_node("Concat", ["rows", "two", "all"], ["grouped"], axis=0),
        helper.make_node("Reshape", ["a", "grouped"], ["b"]),
        helper.make_node("Transpose", ["b"], ["c"], perm=[0, 2, 1]),
        helper.make_node("Shape", ["a"], ["back"]),
        helper.make_node("Reshape", ["c", "back"], ["d"]),
        helper.make_node("Conv", ["d", "w1"], ["y"], "mixed"),
    ]
    path = write_graph(tmp_path / "net.onnx", nodes, {"w0": (6, 4, 3, 3), "w1": (5, 6, 1, 1)}, ("n", 8, 10, 12))
    family = read_onnx_layers(path, "mine", 70.0)
    assert family.layers == ("apart", "mixed")
    assert family.subnets[0].macs.tolist() == [6 * 4 * 9 * 120, 5 * 6 * 120]


def test_upsampling_of_early_opsets_is_followed(tmp_path: Path) -> None:
    """Until opset 9, detectors and segmentation networks enlarge maps by Upsample, which Resize replaced."""
    scales = helper.make_tensor("scales", TensorProto.FLOAT, [4], [1, 1, 2, 2])
    nodes = [
        helper.make_node("Constant", [], ["s"], value=scales),
        helper.make_node("Upsample", ["x", "s"], ["u"]),
        helper.make_node("Conv", ["u", "w"], ["y"], "point"),
    ]
    path = write_graph(tmp_path / "net.onnx", nodes, {"w": (6, 4, 1, 1)}, ("n", 4, 5, 7), opset=9)
    assert read_onnx_layers(path, "mine", 70.0).subnets[0].macs.tolist() == [6 * 4 * 10 * 14]


def quantize(name: str) -> Any:
    return helper.make_node("DynamicQuantizeLinear", [name], [f"{name}q", f"{name}s", f"{name}z"])


def test_operators_on_integers_are_layers(tmp_path: Path) -> None:
    """What dynamic quantization and the QOperator format write has the layers of the network before."""
    nodes = (
        *(quantize(name) for name in ("x", "w0", "w1", "w2")),
        helper.make_node("ConvInteger", ["xq", "w0q", "xz", "w0z"], ["a"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Cast", ["a"], ["b"], to=TensorProto.FLOAT),
        quantize("b"),
        helper.make_node("QLinearConv", ["bq", "bs", "bz", "w1q", "w1s", "w1z", "bs", "bz"], ["c"], "second", group=2),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("QLinearMatMul", ["d", "bs", "bz", "w2q", "w2s", "w2z", "bs", "bz"], ["e"], "third"),
        helper.make_node("MatMulInteger", ["e", "w2q", "bz", "w2z"], ["f"], "fourth"),
        helper.make_node("Cast", ["f"], ["y"], to=TensorProto.FLOAT),
    )
    weights = {"w0": (4, 3, 3, 3), "w1": (4, 2, 2, 2), "w2": (4, 4)}
    family = read_onnx_layers(write_graph(tmp_path / "net.onnx", nodes, weights, ("n", 3, 2, 2)), "mine", 70.0)
    assert family.layers == ("first", "second", "third", "fourth")
    assert family.subnets[0].macs.tolist() == [4 * 27 * 4, 4 * 2 * 4, 16, 16]


def make_runtime_node(kind: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(kind, inputs.split(), [output], domain="com.microsoft", **attributes)


def test_operators_of_onnx_runtime_on_integers_are_followed(tmp_path: Path) -> None:
    """The fully connected layer of the QOperator format is a layer; its sums, concatenations and pooling are free."""
    nodes = (
        quantize("x"),
        make_runtime_node("QLinearAdd", "xq xs xz xq xs xz xs xz", "a"),
        make_runtime_node("QLinearConcat", "xs xz a xs xz xq xs xz", "b", axis=1),
        make_runtime_node("QLinearGlobalAveragePool", "b xs xz xs xz", "c"),
        helper.make_node("Flatten", ["c"], ["d"]),
        quantize("w"),
        make_runtime_node("QGemm", "d xs xz wq ws wz bias xs xz", "y", name="head", transB=1),
    )
    path = write_graph(tmp_path / "net.onnx", nodes, {"w": (5, 6), "bias": (5,)}, ("n", 3, 8, 8))
    family = read_onnx_layers(path, "mine", 70.0)
    assert family.layers == ("head",)
    assert family.subnets[0].macs.tolist() == [30]


def test_layers_that_no_output_needs_are_not_counted(tmp_path: Path) -> None:
    """An auxiliary head whose output was removed costs nothing, whatever its operators are."""
    head = (helper.make_node("Conv", ["b", "w1"], ["z"], "spare"), helper.make_node("NonZero", ["z"], ["ids"]))
    path = write_graph(tmp_path / "net.onnx", (*CNN[:4], *head, *CNN[4:]), WEIGHTS, ("n", 3, 32, 32))
    assert read_onnx_layers(path, "mine", 70.0).layers == ("stem", "apart", "point", "head", "mix")


def test_layers_of_one_name_are_numbered(tmp_path: Path) -> None:
    """A layer keeps its name if it is free, and is numbered otherwise; weights that several read are mentioned."""
    names = ("a#2", "a", "a", "a")
    nodes = [
        helper.make_node("MatMul", [value, "w"], [result], name)
        for value, result, name in zip("xbcd", "bcdy", names, strict=True)
    ]
    path = write_graph(tmp_path / "net.onnx", nodes, {"w": (4, 4)}, ("n", 4))
    family = read_onnx_layers(path, "mine", 70.0)
    assert family.layers == ("a#2", "a", "a#3", "a#4")
    assert "3 times, a layer reads weights of another" in family.about


LSTM = helper.make_node("LSTM", ["x", "w", "w"], ["y"], "memory", hidden_size=2)
FOREIGN = helper.make_node("Conv", ["x", "w"], ["y"], domain="com.mine")
QMEAN = helper.make_node("QLinearReduceMean", ["x"], ["y"], domain="com.microsoft")
QLAST = helper.make_node("QLinearGlobalAveragePool", ["x"], ["y"], domain="com.microsoft", channels_last=1)
SCORES = helper.make_node("MatMul", ["x", "x"], ["y"], "scores")
CONV = helper.make_node("Conv", ["x", "w"], ["y"])
LAST_STATE = helper.make_node("LSTM", ["x", "w", "w"], ["", "y"], hidden_size=2)
UNEQUAL = helper.make_node("Conv", ["x", "w"], ["y"], group=3)


@pytest.mark.parametrize(
    ("node", "weights", "message"),
    [
        (LSTM, {"w": (1, 8, 2)}, r"unknown operators: LSTM \(memory\)"),
        (LAST_STATE, {"w": (1, 8, 2)}, r"unknown operators: LSTM \(y\)"),
        (UNEQUAL, {"w": (8, 1, 3, 3)}, r"Conv \(y\) has 8 kernels in 3 groups"),
        (FOREIGN, {"w": (8, 3, 3, 3)}, r"unknown operators: Conv \(y\)"),
        (QMEAN, {}, r"QLinearReduceMean \(y\).*in the QDQ format"),
        (QLAST, {}, r"QLinearGlobalAveragePool \(y\).*in the QDQ format"),
        (SCORES, {}, r"MatMul \(scores\) multiplies two activations"),
        (helper.make_node("Relu", ["x"], ["y"]), {}, "no layer with weights"),
        (CONV, {"w": (8, 5, 3, 3)}, r"Conv \(y\) has weights for 5 channels, its input has 3"),
        (CONV, {"w": (8, 3, 3, 3, 3)}, "shapes cannot be inferred|3 spatial axes|is dynamic"),
    ],
)
def test_what_is_not_modelled_is_named(
    tmp_path: Path, node: Any, weights: dict[str, tuple[int, ...]], message: str
) -> None:
    """Unknown operators and domains, products of activations and wrong shapes are named with the node."""
    path = write_graph(tmp_path / "net.onnx", [node], weights, ("n", 3, 16, 16))
    with pytest.raises(UnfoldError, match=message) as caught:
        read_onnx_layers(path, "mine", 70.0)
    assert (caught.value.code, caught.value.diagnostics[0].file) == (2, str(path))


def test_dynamic_axes_and_other_files_are_named(tmp_path: Path) -> None:
    """A dynamic edge and a file that is no ONNX model end with exit code 2."""
    path = write_graph(tmp_path / "net.onnx", CNN, WEIGHTS, ("n", 3, "h", 32))
    with pytest.raises(UnfoldError, match=r"axis 2 of input x is dynamic \(h\)"):
        read_onnx_layers(path, "mine", 70.0)
    path.write_bytes(b"none")
    with pytest.raises(UnfoldError, match="not an ONNX model"):
        read_onnx_layers(path, "mine", 70.0)


def test_unknown_shapes_and_counts_beyond_64_bits_are_named(tmp_path: Path) -> None:
    """An input without a shape, and weights that only a header claims, end with exit code 2."""
    path = write_graph(tmp_path / "net.onnx", [CONV], {"w": (8, 3, 3, 3)}, ("n", 3, 1 << 40, 1 << 40))
    with pytest.raises(UnfoldError, match="more than 1e\\+14 operations"):
        read_onnx_layers(path, "mine", 70.0)
    model = onnx.load_from_string(path.read_bytes())
    model.graph.input[0].type.tensor_type.ClearField("shape")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UnfoldError, match="the shape of x is dynamic"):
        read_onnx_layers(path, "mine", 70.0)


@pytest.mark.slow
def test_plan_of_a_network_names_no_shared_core(tmp_path: Path) -> None:
    """A network of a user is planned; the cache is labelled by its name, and no published claim stands beside it."""
    write_graph(tmp_path / "net.onnx", CNN, WEIGHTS, ("n", 3, 32, 32))
    spec = parse_spec(
        "version: 1\nkind: supernet\nname: chip\nlayers: {onnx: net.onnx, accuracy: 70%}\n"
        "accelerator: {persistent_buffer: 256 B}\nqueries: {count: 100}\n"
    )
    report = plan(spec, make_run(tmp_path / "run", base=tmp_path))
    assert report.verdict is Verdict.YES
    assert "subnet net" in report.headline
    assert "core" not in report.headline
    assert "published claims" not in [table.name for table in report.tables]
    assert "SUSHI's 720 dot-product engines on a ZCU104" in report.subtitle
