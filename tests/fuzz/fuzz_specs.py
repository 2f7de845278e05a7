"""Spoil every spec of the house at random and see that nothing but a clear refusal, or a valid spec, comes back.

``python -m tests.fuzz.fuzz_specs [--count 10000] [--seed 0]``; what fails is printed with the seed that makes it again.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from unfoldkit.errors import ExitCode, UnfoldError
from unfoldkit.io.yaml12 import to_yaml
from unfoldkit.registry import Registry, load_registry
from unfoldkit.spec.resolve import dump, load_spec
from unfoldkit.spec.yaml_reader import decode_text

ROOT = Path(__file__).parents[2]
LIMIT_S = 2.0
NASTY = (
    b"", b"null", b"~", b"true", b"no", b"0", b"-1", b"1e400", b".nan", b"-.inf", b"9" * 310, b"0x" + b"f" * 250,
    b"0o777", b"1_000", b"12:30:45", b"2024-01-01", b"'", b'"', b"[", b"]", b"{", b"}", b"[]", b"{}", b"[[[]]]",
    b"{a: 1}", b"{? {a: 1} : 2}", b"&a [*a]", b"*a", b"!!python/name:os.system", b"!x y", b"|\n  text", b">-\n  text",
    b"%", b"@", b"`", b"---", b"...", b"# gone", b": ", b" :", b"- ", b"\t", b"\xff", b"\x00", b"\x1b[31m", b"\xc2\x85",
    b"\xe2\x80\xa8", b"\xef\xbb\xbf", b'"\\ud800"', b'"\\x00"', b'"\\n"', "é\U0001f600".encode(), b"a" * 5000, b"<<",
    b"5 parsecs", b"-3 ms", b"1e300 d", b"$-1", b"$1e17", b"100000000 TiB", b"1e18 TiB", b"101%", b"1e-400%",
    b"1e99999999999999999999%", b"0.0000001 us", b"1e-320/d", b"../../etc/passwd", b"os:system", b"__class__",
)  # fmt: skip
PATHS = ("kind", "name", "version", "message", "voices[0].name", "voices", "a.b.c", "stages[0].name", "stages", "goal")


def _flip(data: bytearray, dice: random.Random) -> None:
    for _ in range(dice.randint(1, 4)):
        data[dice.randrange(len(data))] = dice.randrange(256)


def _insert(data: bytearray, dice: random.Random) -> None:
    place = dice.randint(0, len(data))
    data[place:place] = dice.choice(NASTY)


def _truncate(data: bytearray, dice: random.Random) -> None:
    del data[dice.randint(0, len(data)) :]


def _lines(data: bytearray, dice: random.Random) -> None:
    lines = bytes(data).split(b"\n")
    first, second = dice.randrange(len(lines)), dice.randrange(len(lines))
    action = dice.randrange(4)
    if action == 0:
        del lines[first]
    elif action == 1:
        lines.insert(second, lines[first])
    elif action == 2:
        lines[first], lines[second] = lines[second], lines[first]
    else:
        lines[first] = b" " * dice.randint(1, 5) + lines[first] if dice.random() < 0.5 else lines[first].lstrip()
    data[:] = b"\n".join(lines)


def _token(data: bytearray, dice: random.Random) -> None:
    words = bytes(data).split(b" ")
    words[dice.randrange(len(words))] = dice.choice(NASTY)
    data[:] = b" ".join(words)


def _value(data: bytearray, dice: random.Random) -> None:
    lines = bytes(data).split(b"\n")
    index = dice.randrange(len(lines))
    key, colon, _ = lines[index].partition(b": ")
    lines[index] = key + colon + dice.choice(NASTY)
    data[:] = b"\n".join(lines)


def _units(data: bytearray, dice: random.Random) -> None:
    for unit in dice.sample([b"$", b"%", b" ms", b" h", b"/h", b"/s", b" GiB", b" min"], 3):
        data[:] = bytes(data).replace(unit, dice.choice([b"", b" ", b" lightyears"]))


def _deep(data: bytearray, dice: random.Random) -> None:
    depth, (left, right) = dice.choice([5, 50, 59, 60, 61, 500, 20000]), dice.choice([(b"[", b"]"), (b"{a: ", b"}")])
    place = bytes(data).find(b": ", dice.randint(0, len(data))) + 2
    data[place:place] = left * depth + b"x" + right * depth + b"\n"


MUTATORS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip, _insert, _truncate, _lines, _lines, _token, _token, _value, _value, _units, _deep,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """One spoilt spec and the settings of ``--set`` that came with it; ``number`` and the seed make it again."""

    number: int
    file: Path
    data: bytes
    settings: tuple[str, ...]


def case(files: Sequence[Path], seed: int, number: int) -> Case:
    """Return the case of this number, the same for the same seed and files."""
    dice = random.Random(f"{seed}:{number}")  # noqa: S311 - tests, not secrets
    file = files[number % len(files)]
    data = bytearray(file.read_bytes())
    for _ in range(dice.choice((0, 1, 1, 1, 2, 3)) if number % 3 else 1):
        if data:
            dice.choice(MUTATORS)(data, dice)
    count = dice.choice((0, 0, 1, 2))
    return Case(number, file, bytes(data), tuple(_setting(dice) for _ in range(count)))


def _setting(dice: random.Random) -> str:
    path = dice.choice(PATHS)
    if dice.random() < 0.3:
        path = "".join(dice.choice("ab.[]0=9- \u00e9") for _ in range(dice.randint(0, 12)))
    value = dice.choice(NASTY).decode("utf-8", "surrogateescape")
    return path + dice.choice(("=", "=", "=", "")) + value


def attempt(registry: Registry, item: Case) -> str:
    """Return ``valid`` or ``refused``.

    Raises:
        AssertionError: it was refused as a fault of ours, without a message, or took too long.
        Exception: whatever else went wrong; this is what the fuzz looks for.
    """
    began, refusal = time.process_time(), None
    try:
        text = decode_text(item.data, "<stdin>")
        loaded = load_spec("-", registry.kinds, settings=item.settings, stdin=text, find_kind=registry.kind)
        to_yaml(dump(loaded.spec))
    except UnfoldError as error:
        refusal = error
    took = time.process_time() - began
    assert took < LIMIT_S, f"took {took:.1f} s of work"
    return "valid" if refusal is None else _refused(refusal)


def _refused(error: UnfoldError) -> str:
    assert error.code is ExitCode.USAGE, f"exit code {error.code}: {error}"
    assert error.diagnostics, "refused without a message"
    for diagnostic in error.diagnostics:
        assert str(diagnostic).isprintable(), f"not one line: {str(diagnostic)!r}"
    return "refused"


def specs() -> list[Path]:
    """Return every spec of the house that the fuzz starts from."""
    return sorted([*(ROOT / "configs").rglob("*.yaml"), *(ROOT / "plugins").glob("*/unfold_*/examples/*.yaml")])


def fuzz(count: int, seed: int, *, report: Callable[[str], None]) -> Counter[str]:
    """Try ``count`` cases, shared over all files, and count the outcomes; failures are reported."""
    registry, files = load_registry(), specs()
    found: Counter[str] = Counter()
    for number in range(count):
        item = case(files, seed, number)
        try:
            found[attempt(registry, item)] += 1
        except Exception:  # noqa: BLE001 - every failure is reported, with what reproduces it
            found["failed"] += 1
            place = item.file.relative_to(ROOT)
            report(f"case {number} of seed {seed}, from {place}, settings {item.settings}\n{traceback.format_exc()}")
    return found


def main(words: Sequence[str] | None = None) -> int:
    """Run the fuzz from the command line; 1 if a case failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.fuzz_specs", description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="try this case alone and print it")
    given = parser.parse_args(words)
    if given.case is not None:
        item = case(specs(), given.seed, given.case)
        sys.stdout.write(f"{item}\n{attempt(load_registry(), item)}\n")
        return 0
    began = time.perf_counter()
    found = fuzz(given.count, given.seed, report=print)
    counts = ", ".join(f"{number} {name}" for name, number in sorted(found.items()))
    sys.stdout.write(f"seed {given.seed}: {counts}, in {time.perf_counter() - began:.0f} s\n")
    return 1 if found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
