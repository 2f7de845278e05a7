"""ONNX files of a list: what is accepted, and how each unsuitable file is named."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from plugins.supernet.tests.helpers import make_run, parse_spec
from plugins.supernet.tests.members.builders import write_model
from unfold_supernet.family.onnx_session import open_session
from unfold_supernet.members.files import MemberFile, check_file, check_files
from unfold_supernet.members.isolated_measurement import measure_model, probe_file
from unfold_supernet.members.profile import PROFILE_FILE, PROFILE_VERSION, MemberList, read_members
from unfold_supernet.members.runtime import MemberSource, compute_shares
from unfold_supernet.verbs.check_inputs import check_inputs
from unfold_supernet.verbs.plan import plan
from unfold_supernet.verbs.profile import profile
from unfold_supernet.verbs.train import train
from unfoldkit.api import UnfoldError

SPEC = """
version: 1
kind: supernet
name: list
members: [{path: good.onnx, accuracy: 90%}, {path: other.onnx, accuracy: 95%}]
serving: {slo: 100 ms}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a good model; its run measures that model once."""
    path = tmp_path_factory.mktemp("list")
    write_model(path / "good.onnx")
    return path


def make_member(path: Path) -> MemberFile:
    return MemberFile(name=path.stem, path=path, accuracy=90.0, key="members[0]")


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE])
@pytest.mark.parametrize("rows", ["n", None, 1, 8])
@pytest.mark.parametrize("external", [None, "weights.bin"])
def test_suitable_files_are_accepted(tmp_path: Path, kind: int, rows: Any, external: str | None) -> None:
    """All float types, any number of rows or a fixed one, and external data in the same folder are accepted."""
    path = write_model(tmp_path / "a.onnx", kind=kind, rows=rows, external=external, size=(2, 3))
    checked = check_file(make_member(path))
    assert (checked.size, checked.fixed_rows) == ((2, 3), rows if isinstance(rows, int) else 0)
    assert checked.bytes > path.stat().st_size or external is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an ONNX model"),
        (b"hello world", "not an ONNX model"),
        (b"\x80\x04\x95" + bytes(40), "not an ONNX model"),
        (b"\x08\x08", "it has no graph"),
    ],
)
def test_other_content_is_no_onnx_model(tmp_path: Path, content: bytes, message: str) -> None:
    """Empty files, text, pickles and messages without a graph are named."""
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(UnfoldError, match=message):
        check_file(make_member(tmp_path / "a.onnx"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": TensorProto.INT64}, "input x is int64"),
        ({"size": ("w",)}, r"axis 1 of input x is dynamic \(w\)"),
        ({"size": (3, None)}, r"axis 2 of input x is dynamic \(no size\)"),
        ({"size": ()}, "input x has 1 axis"),
        ({"rows": 2000}, "takes exactly 2000 rows"),
        ({"extra_input": True}, r"2 inputs \(x, z\)"),
    ],
)
def test_unsuitable_inputs_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """Number types, dynamic axes, fixed batches and several inputs are named with file and key."""
    path = write_model(tmp_path / "a.onnx", **change)
    with pytest.raises(UnfoldError, match=message) as caught:
        check_file(make_member(path))
    diagnostic = caught.value.diagnostics[0]
    assert (caught.value.code, diagnostic.file, diagnostic.key) == (2, str(path), "members[0].path")
    assert diagnostic.hint


def test_an_input_without_a_shape_is_named(tmp_path: Path) -> None:
    """ONNX allows an input of any rank; the message does not call that no axes."""
    path = write_model(tmp_path / "a.onnx")
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UnfoldError, match="input x states no shape"):
        check_file(make_member(path))


@pytest.mark.parametrize("location", ["../secret.bin", "link.bin", "/etc/hostname"])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    """Neither a relative path, an absolute one nor a link leads out of the model's folder."""
    import onnx

    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(4096))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    path = write_model(folder / "a.onnx", external="weights.bin")
    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UnfoldError, match="lies outside its folder"):
        check_file(make_member(path))
    (folder / "weights.bin").unlink()
    path = write_model(folder / "b.onnx", external="weights.bin")
    (folder / "weights.bin").unlink()
    with pytest.raises(UnfoldError, match=r"weights.bin' is missing"):
        check_file(make_member(path))


def test_external_data_of_a_function_is_refused_too(tmp_path: Path) -> None:
    """A constant in the body of a function leads out of the folder no more than one of the graph."""
    import onnx

    model = onnx.load(str(write_model(tmp_path / "a.onnx")))
    constant = onnx.numpy_helper.from_array(np.zeros(4, np.float32), "c")
    constant.ClearField("raw_data")
    constant.data_location = TensorProto.EXTERNAL
    constant.external_data.add(key="location", value="../secret.bin")
    node = onnx.helper.make_node("Constant", [], ["c"], value=constant)
    opsets = [onnx.helper.make_opsetid("", 17)]
    model.functions.append(onnx.helper.make_function("com.mine", "Hidden", [], ["c"], [node], opsets))
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UnfoldError, match="lies outside its folder"):
        check_file(make_member(tmp_path / "a.onnx"))


def test_every_bad_file_of_a_list_is_named(tmp_path: Path) -> None:
    """One check names all bad files, and a differing input against the first good one."""
    paths = [
        write_model(tmp_path / "a.onnx"),
        write_model(tmp_path / "b.onnx", kind=TensorProto.INT64),
        write_model(tmp_path / "c.onnx", size=(5,)),
    ]
    with pytest.raises(UnfoldError) as caught:
        check_files([make_member(path) for path in paths])
    messages = [diagnostic.message for diagnostic in caught.value.diagnostics]
    assert [Path(diagnostic.file).name for diagnostic in caught.value.diagnostics] == ["b.onnx", "c.onnx"]
    assert "input x has rows of 5, a.onnx has 4" in messages[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": float("nan")}, "output y is not finite for an input of zeros"),
        ({"scale": 1e30, "depth": 3}, "output y is not finite for an input of normal numbers"),
        ({"classes": 1}, "no output is a float score for each row and class: y float32 4x1"),
        ({"classes": 5}, "output y has 5 classes, good.onnx has 3"),
        ({"softmax": True, "factor": 100.0}, "sum to 100 in every row: neither probabilities nor logits"),
        ({"centred": True}, "output y of a row depends on chance or on the other rows of its batch"),
        ({"centred": True, "rows": 8}, "output y of a row depends on chance or on the other rows of its batch"),
    ],
)
def test_outputs_are_checked_by_running_the_model(folder: Path, change: dict[str, Any], message: str) -> None:
    """NaN, infinity, a single column and other classes are found when the model is measured."""
    write_model(folder / "other.onnx", **change)
    with pytest.raises(UnfoldError) as caught:
        profile(parse_spec(SPEC), make_run(folder / "run", base=folder))
    text = " ".join(diagnostic.message for diagnostic in caught.value.diagnostics)
    assert re.search(message, text), text
    assert caught.value.code == 2


@pytest.mark.parametrize("fixed", [1, 3, 8])
def test_batches_are_padded_to_a_fixed_number_of_rows(tmp_path: Path, fixed: int) -> None:
    """A model of exactly so many rows answers batches of any size as one of any number of rows does."""
    free, full = (write_model(tmp_path / f"{rows}.onnx", rows=rows, size=(2, 3)) for rows in ("n", fixed))
    result = measure_model(full, "x", "float32", (2, 3), fixed_rows=fixed)
    assert [*result["seconds"]] == [*dict.fromkeys((1, fixed))]
    for count in (1, 2, 8, 9, 20):
        rows = np.random.default_rng(count).normal(size=(count, 2, 3))
        answers = [
            compute_shares(open_session(path), MemberSource(file=file, output_name="y", is_probability=False), rows)
            for path in (free, full)
            for file in [check_file(make_member(path))]
        ]
        assert len(answers[1]) == count
        np.testing.assert_allclose(*answers, atol=1e-6)


@pytest.mark.parametrize("softmax", [False, True])
def test_models_of_16_bits_answer_as_those_of_32(tmp_path: Path, softmax: bool) -> None:
    """Logits and shares of float16 are measured, and become shares that sum to 1 also for many classes."""
    rows = np.random.default_rng(0).normal(size=(3, 4))
    shares = []
    for kind in (TensorProto.FLOAT16, TensorProto.FLOAT):
        path = write_model(tmp_path / "a.onnx", kind=kind, classes=1500, softmax=softmax, scale=0.5)
        checked = check_file(make_member(path))
        result = measure_model(path, "x", checked.dtype, (4,), fixed_rows=0)
        assert "error" not in result
        source = MemberSource(file=checked, output_name="y", is_probability=result["is_probability"])
        shares.append(compute_shares(open_session(path), source, rows))
    np.testing.assert_allclose(shares[0], shares[1], atol=1e-5, rtol=2e-2)
    np.testing.assert_allclose(shares[0].sum(1), 1, atol=2e-3 if softmax else 1e-5)


@pytest.mark.parametrize(("operator", "message"), [("Identity", None), ("Neg", "largest for another class")])
def test_the_largest_score_is_that_of_the_stated_label(tmp_path: Path, operator: str, message: str | None) -> None:
    """Converted support vector machines of two classes have their scores in reverse order, and would answer wrongly."""
    weights = {"coefficients": [1.0, 0, 0, 0, 0, 1, 0, 0], "intercepts": [0.0, 9], "classlabels_strings": ["a", "b"]}
    nodes = [
        helper.make_node("LinearClassifier", ["x"], ["label", "raw"], domain="ai.onnx.ml", **weights),
        helper.make_node(operator, ["raw"], ["y"]),
    ]
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.STRING, ["n"]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    graph = helper.make_graph(nodes, "net", inputs, outputs)
    path = tmp_path / "a.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())
    checked = check_file(make_member(path))
    if message is None:
        assert probe_file(checked).classes == 2
    else:
        with pytest.raises(UnfoldError, match=message):
            probe_file(checked)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_that_reading_a_file_needed_is_not_counted(tmp_path: Path) -> None:
    """A model is planned with what remains once it is loaded: its weights, and feature maps."""
    path = write_model(tmp_path / "a.onnx", size=(3000,), width=4000)
    assert probe_file(check_file(make_member(path))).bytes < 1.6 * path.stat().st_size


def read_classes(folder: Path, classes: tuple[str, ...], *stated: Any) -> tuple[str, ...]:
    """Read the classes of a list of classifiers that state labels; their figures are made up."""
    files, probes = [], {}
    for index, labels in enumerate(stated):
        kind = "classlabels_strings" if isinstance(labels[0], str) else "classlabels_ints"
        node = helper.make_node("LinearClassifier", ["x"], ["label", "y"], domain="ai.onnx.ml", **{kind: labels})
        graph = helper.make_graph(
            [node], f"net{index}", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", len(labels)])],
        )  # fmt: skip
        (folder / f"{index}.onnx").write_bytes(helper.make_model(graph).SerializeToString())
        files.append(make_member(folder / f"{index}.onnx"))
        fields = {"output_name": "y", "classes": len(labels), "is_probability": True, "load_s": 0.1, "bytes": 9}
        probes[check_file(files[-1]).digest] = {**fields, "seconds": {"1": 1e-3}, "waiting": 0.0}
    directory = make_run(folder / "run", base=folder).directory
    directory.write(PROFILE_FILE, json.dumps({"version": PROFILE_VERSION, "probes": probes}).encode())
    problem = MemberList(name="list", files=tuple(files), classes=classes, memory_bytes=None)
    return read_members(problem, directory).classes


def test_classes_have_the_names_that_files_state(tmp_path: Path) -> None:
    """Classes of a converted model have its labels; names in the spec come first, even if they are other ones."""
    assert read_classes(tmp_path, (), [1, 2, 4]) == ("1", "2", "4")
    assert read_classes(tmp_path, (), ["a", "b"], ["a", "b"]) == ("a", "b")
    assert read_classes(tmp_path, ("low", "high"), [1, 2], ["a", "b"]) == ("low", "high")


@pytest.mark.parametrize(
    ("classes", "stated", "message"),
    [
        ((), (["a", "b"], ["b", "a"]), "its classes are b, a, not a, b"),
        ((), ([0, 1], [1, 2]), "its classes are 1, 2, not 0, 1"),
        (("b", "a"), (["a", "b"],), "its classes are a, b, not b, a"),
        (("low", "high"), (["a", "b"], ["b", "a"]), "its classes are b, a, not a, b"),
    ],
)
def test_classes_in_another_order_are_refused(
    tmp_path: Path, classes: tuple[str, ...], stated: tuple[Any, ...], message: str
) -> None:
    """Scores of one class under the name of another would be wrong answers."""
    with pytest.raises(UnfoldError, match=message):
        read_classes(tmp_path, classes, *stated)


def test_check_data_compares_the_order_of_classes(tmp_path: Path) -> None:
    """Classes in another order than those of the spec or of a file above are found before anything is measured."""
    read_classes(tmp_path, ("x", "y"), ["a", "b"])
    (tmp_path / "0.onnx").rename(tmp_path / "good.onnx")
    with pytest.raises(UnfoldError):
        read_classes(tmp_path, (), ["a", "c"], ["c", "a"])
    (tmp_path / "1.onnx").rename(tmp_path / "other.onnx")
    spec = SPEC.replace("serving:", "classes: [b, a]\nserving:")
    (problem,) = check_inputs(parse_spec(spec), make_run(tmp_path / "run", base=tmp_path))
    assert (problem.message, problem.key) == ("its classes are a, b, not b, a", "members[0].path")
    files = [make_member(tmp_path / name) for name in ("0.onnx", "other.onnx")]
    with pytest.raises(UnfoldError, match=r"other.*its classes are c, a, not a, c"):
        check_files(files)


def test_check_data_reads_the_files_without_measuring(tmp_path: Path) -> None:
    """``check --data`` names a bad file; nothing is written into the run."""
    write_model(tmp_path / "good.onnx")
    (tmp_path / "other.onnx").write_bytes(b"nothing")
    run = make_run(tmp_path / "run", base=tmp_path)
    assert ["not an ONNX model" in problem.message for problem in check_inputs(parse_spec(SPEC), run)] == [True]
    assert not run.directory.files()


def test_verbs_that_do_not_apply_name_the_one_that_does(folder: Path) -> None:
    """A list is not trained; a family is not profiled; too little memory names what the smallest member needs."""
    write_model(folder / "other.onnx", width=4)
    run = make_run(folder / "run", base=folder)
    pytest.importorskip("torch", reason="needs the extra torch: nox -s torch")
    with pytest.raises(UnfoldError, match="served as it is"):
        train(parse_spec(SPEC), run)
    with pytest.raises(UnfoldError, match="measured when it is trained"):
        profile(parse_spec("version: 1\nkind: supernet\nname: f\nfamily: ofa-resnet50\n"), run)
    with pytest.raises(UnfoldError, match="smallest member needs"):
        plan(parse_spec(SPEC.replace("slo: 100 ms", "slo: 100 ms, memory: 10 B")), run)
