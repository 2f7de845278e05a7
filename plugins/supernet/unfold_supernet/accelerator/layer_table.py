"""Nets of one's own for the accelerator: a table with a row for each layer of each net."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from unfold_supernet.accelerator.layers import Family, Layer, Net, net
from unfoldkit.api import CsvRow, csv_rows, fail

WANTED = ("net", "accuracy", "layer", "kernels", "channels", "out")
Named = Mapping[str, Mapping[str, CsvRow]]


def tabled(path: Path, name: str) -> Family:
    """Return the family of a table, smallest net first.

    Columns: ``net``, its ``accuracy`` in percent, ``layer`` (one name is one set of weights, of which each net has the
    first), ``kernels``, ``channels`` (of the whole input), ``out`` (edges of the output map, 14 or 14x9); and if they
    are not 1, ``window`` (edges), ``stride`` and ``groups``. The input map is ``stride`` times the output's.

    Raises:
        UnfoldError: a cell is no such thing, a layer comes twice, or the nets' layers have no common order.
    """
    rows: dict[str, dict[str, CsvRow]] = {}
    for row in csv_rows(path, WANTED):
        layers = rows.setdefault(row["net"], {})
        if row["layer"] in layers:
            raise row.wrong(f"net {row['net']} has layer {row['layer']} twice", "layer")
        layers[row["layer"]] = row
    if not rows:
        raise fail("the table has no layer", file=str(path), key="layers")
    places = ordered(rows)
    nets = sorted((_net(one, places, layers) for one, layers in rows.items()), key=lambda made: int(made.weights.sum()))
    return Family(name, tuple(places), tuple(nets), f"{len(nets)} nets of {path.name}")


def ordered(rows: Named) -> list[str]:
    """Return the layers of all nets in an order that is that of each of them.

    Raises:
        UnfoldError: there is none.
    """
    found: list[str] = []
    for layers in sorted(rows.values(), key=len, reverse=True):
        at = 0
        for name, row in layers.items():
            if name not in found:
                found.insert(at, name)
            elif found.index(name) < at:
                hint = "one name is one layer, and nets have their layers in one order"
                raise row.wrong(f"in another net {name} comes before {found[at - 1]}", "layer", hint)
            at = found.index(name) + 1
    return found


def _net(name: str, places: Sequence[str], layers: Mapping[str, CsvRow]) -> Net:
    rows = list(layers.values())
    accuracy = rows[0].number("accuracy", least=0.0)
    other = next((row for row in rows if row.number("accuracy") != accuracy), None)
    if other is not None:
        raise other.wrong(f"net {name} has an accuracy of {accuracy:g} % above", "accuracy")
    if accuracy > 100:
        raise rows[0].wrong(f"{accuracy:g} % cannot be accurate", "accuracy", "at most 100")
    return net(name, places, {place: _layer(row) for place, row in layers.items()}, accuracy)


def _layer(row: CsvRow) -> Layer:
    kernels, channels = (_whole(row, column, row[column]) for column in ("kernels", "channels"))
    groups, stride = (_whole(row, column, row.get(column) or "1") for column in ("groups", "stride"))
    if kernels % groups or channels % groups:
        raise row.wrong(f"{groups} groups do not part {kernels} kernels and {channels} channels evenly", "groups")
    out = _edges(row, "out", row["out"])
    inside = channels * out[0] * stride * _strided(out[1], stride)
    return Layer(kernels, channels // groups, _edges(row, "window", row.get("window") or "1"), out, inside, groups)


def _strided(edge: int, stride: int) -> int:
    # a map of one row or column is a signal, or one place: it has no second edge to stride along
    return edge if edge == 1 else edge * stride


def _edges(row: CsvRow, column: str, text: str) -> tuple[int, int]:
    first, _, second = text.lower().replace("×", "x").partition("x")
    return _whole(row, column, first), _whole(row, column, second or first)


def _whole(row: CsvRow, column: str, text: str) -> int:
    if not text.strip().isdecimal() or not 0 < int(text) <= 10_000_000:
        raise row.wrong(f"{text[:40]!r} is no whole number above 0", column)
    return int(text)
