"""Layer tables of subnets for the accelerator: from a CSV with a row for each layer, or of a trained search space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from unfold_supernet.accelerator.layers import MAX_LAYER_COUNT, Family, Layer, SubnetLayers, tabulate_subnet
from unfold_supernet.networks.space import Conv, Space, count_attention_macs, count_macs, list_convolutions
from unfoldkit.api import CsvRow, csv_rows, user_error

REQUIRED_COLUMNS = ("net", "accuracy", "layer", "kernels", "channels", "out")
MAX_COUNT = 10_000_000
RowsByLayer = Mapping[str, CsvRow]


def read_layer_table(path: Path, name: str) -> Family:
    """Read a family from a table, smallest subnet first.

    Columns: ``net``, its ``accuracy`` in percent, ``layer`` (a name is one set of weights, of which each subnet has the
    first), ``kernels``, ``channels`` (of the entire input), ``out`` (edges of the output map, 14 or 14x9). Optional, 1
    by default: ``window`` (edges), ``stride`` and ``groups``. The input map is ``stride`` times the output map.

    Raises:
        UnfoldError: A cell is invalid, a layer appears twice, or the subnets' layers have no common order.
    """
    rows: dict[str, dict[str, CsvRow]] = {}
    for row in csv_rows(path, REQUIRED_COLUMNS):
        layers = rows.setdefault(row["net"], {})
        if row["layer"] in layers:
            raise row.wrong(f"subnet {row['net']} has layer {row['layer']} twice", "layer")
        layers[row["layer"]] = row
    if not rows:
        raise user_error("the table contains no layer", file=str(path), key="layers")
    layer_names = merge_layer_order(list(rows.values()))
    subnets = [_build_subnet(subnet, layer_names, layers) for subnet, layers in rows.items()]
    subnets.sort(key=lambda subnet: int(subnet.weights.sum()))
    return Family(name, tuple(layer_names), tuple(subnets), f"{len(subnets)} subnets of {path.name}")


def merge_layer_order(subnets: Sequence[RowsByLayer]) -> list[str]:
    """Merge the layers of all subnets into one order that agrees with each of them.

    Raises:
        UnfoldError: There is no such order.
    """
    merged: list[str] = []
    for layers in sorted(subnets, key=len, reverse=True):
        position = 0
        for name, row in layers.items():
            if name not in merged:
                merged.insert(position, name)
            elif merged.index(name) < position:
                hint = "use one name for one layer, and one order of layers in all subnets"
                raise row.wrong(f"in another subnet {name} comes before {merged[position - 1]}", "layer", hint)
            position = merged.index(name) + 1
    return merged


def build_trained_family(name: str, space: Space, accuracies: Sequence[float]) -> Family:
    """Build the accelerator's view of a trained supernet, smallest subnet first.

    A layer of a table loads weights, so attention's products of activations are left out; ``about`` says so.

    Args:
        name: Name of the family.
        space: The trained space.
        accuracies: In percent, by subnet of ``space``.
    """
    layer_names = (*(conv.name for conv in list_convolutions(space, space.largest)), "head")
    subnets = []
    for subnet, accuracy in zip(space.subnets, accuracies, strict=True):
        convs = list_convolutions(space, subnet)
        layers = {conv.name: _convert_layer(conv) for conv in convs}
        width = convs[-1].out + space.extra
        layers["head"] = Layer(space.classes, width, (1, 1), (1, 1), width)
        subnets.append(tabulate_subnet(subnet.name, layer_names, layers, accuracy))
    subnets.sort(key=lambda subnet: int(subnet.weights.sum()))
    about = "the trained subnets"
    if space.attention:
        omitted = max(count_attention_macs(space, subnet) / count_macs(space, subnet) for subnet in space.subnets)
        about += (
            f"; attention's products of activations, up to {100 * omitted:.0f} % of the operations, are not included"
        )
    return Family(name, layer_names, tuple(subnets), about)


def _build_subnet(name: str, layer_names: Sequence[str], layers: RowsByLayer) -> SubnetLayers:
    rows = list(layers.values())
    accuracy = rows[0].number("accuracy", least=0.0)
    conflict = next((row for row in rows if row.number("accuracy") != accuracy), None)
    if conflict is not None:
        raise conflict.wrong(f"subnet {name} has an accuracy of {accuracy:g} % above", "accuracy")
    if accuracy > 100:
        raise rows[0].wrong(f"an accuracy cannot be {accuracy:g} %", "accuracy", "at most 100")
    return tabulate_subnet(name, layer_names, {layer: _parse_layer(row) for layer, row in layers.items()}, accuracy)


def _parse_layer(row: CsvRow) -> Layer:
    kernels, channels = (_parse_count(row, column, row[column]) for column in ("kernels", "channels"))
    groups, stride = (_parse_count(row, column, row.get(column) or "1") for column in ("groups", "stride"))
    if kernels % groups or channels % groups:
        message = f"{groups} groups do not divide {kernels} kernels and {channels} channels evenly"
        raise row.wrong(message, "groups")
    window = _parse_edges(row, "window", row.get("window") or "1")
    out = _parse_edges(row, "out", row["out"])
    input_values = channels * out[0] * stride * _scale_edge(out[1], stride)
    layer = Layer(kernels, channels // groups, window, out, input_values, groups)
    if not layer.is_countable:
        raise row.wrong(f"layer {row['layer']} has more than {MAX_LAYER_COUNT:.0e} operations or values", "layer")
    return layer


def _scale_edge(edge: int, stride: int) -> int:
    # a map with a second edge of 1 is a signal: there is nothing to stride along
    return edge if edge == 1 else edge * stride


def _parse_edges(row: CsvRow, column: str, text: str) -> tuple[int, int]:
    height, _, width = text.lower().replace("×", "x").partition("x")
    return _parse_count(row, column, height), _parse_count(row, column, width or height)


def _parse_count(row: CsvRow, column: str, text: str) -> int:
    if not text.strip().isdecimal() or not 0 < int(text) <= MAX_COUNT:
        raise row.wrong(f"{text[:40]!r} is not a positive integer", column)
    return int(text)


def _convert_layer(conv: Conv) -> Layer:
    height, width = (*conv.size, 1)[:2]
    out_height, out_width = (*conv.out_size, 1)[:2]
    window = (conv.kernel, conv.kernel if len(conv.size) == 2 else 1)
    return Layer(conv.out, conv.into, window, (out_height, out_width), conv.into * height * width)
