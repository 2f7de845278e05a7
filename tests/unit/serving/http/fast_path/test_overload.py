"""A sweep answers what is to be refused, and hands on whatever else came."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from unfoldkit.serving.http.fast_path.overload import BulkRejection, OverloadRejecter

HEAD = b"POST / HTTP/1.1\r\n\r\n"
NO = b"no" * 10


@dataclass(slots=True)
class Line:
    """One end of a connection."""

    is_quiet: bool = True
    last_active_s: float = 0.0
    got: list[bytes] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)

    def check_quiet(self) -> bool:
        return self.is_quiet

    def data_received(self, data: bytes) -> None:
        self.got.append(data)

    def send(self, data: bytes) -> None:
        self.sent.append(data)


@dataclass(slots=True)
class Bench:
    """A sweep that refuses requests of ``HEAD`` and four bytes, over connections to ``clients``."""

    answer: bytes = NO
    refused: list[int] = field(default_factory=list)
    turns: list[Callable[[], None]] = field(default_factory=list)
    ends: list[socket.socket] = field(default_factory=list)

    def sweep(self) -> OverloadRejecter:
        return OverloadRejecter(self.judge, self.turns.append, lambda: 7.0)

    def judge(self, head: bytes) -> BulkRejection:
        return BulkRejection(len(HEAD) + 4, self.answer, self.refused.append) if head == HEAD else BulkRejection(-1)

    def pair(self) -> tuple[socket.socket, socket.socket]:
        ours, theirs = socket.socketpair()
        self.ends += [ours, theirs]
        ours.setblocking(False)
        theirs.settimeout(5)
        return ours, theirs


@pytest.fixture
def bench() -> Iterator[Bench]:
    found = Bench()
    yield found
    for end in found.ends:
        end.close()


def test_what_is_refused_is_answered_and_counted(bench: Bench) -> None:
    """Every connection with a request that finds no room gets its refusal, and the gate receives their number."""
    sweep, lines, clients = bench.sweep(), [Line(), Line(), Line()], []
    for line in lines:
        ours, theirs = bench.pair()
        sweep.watch(line, ours.fileno())
        clients.append(theirs)
    for client in clients[:2]:
        client.sendall(HEAD + b"body")
    bench.turns.pop()()
    assert [client.recv(99) for client in clients[:2]] == [NO, NO]
    assert (bench.refused, [line.got for line in lines]) == ([2], [[], [], []])
    assert [line.last_active_s for line in lines] == [7.0, 7.0, 0.0]
    # and it comes again, as long as there is somebody to refuse
    bench.turns.pop()()
    assert not bench.turns


@pytest.mark.parametrize("came", [HEAD + b"bod", HEAD + b"body and", HEAD, b"POST", b"GET / HTTP/1.1\r\n\r\nbody"])
def test_all_else_is_handed_on(bench: Bench, came: bytes) -> None:
    """Of a request in pieces, two at once or any other, not a byte is lost or answered."""
    sweep, line = bench.sweep(), Line()
    ours, theirs = bench.pair()
    sweep.watch(line, ours.fileno())
    theirs.sendall(came)
    sweep.run()
    assert (line.got, bench.refused) == ([came], [])
    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        theirs.recv(1)


def test_a_connection_with_something_under_way_is_left_to_the_loop(bench: Bench) -> None:
    """What comes while an answer is due stays where it is."""
    sweep, line = bench.sweep(), Line(is_quiet=False)
    ours, theirs = bench.pair()
    sweep.watch(line, ours.fileno())
    theirs.sendall(HEAD + b"body")
    sweep.run()
    assert (line.got, ours.recv(99)) == ([], HEAD + b"body")


def test_who_leaves_is_left_to_the_loop(bench: Bench) -> None:
    """A client that is gone, before or after its request, causes no error and gets no bytes."""
    sweep, line = bench.sweep(), Line()
    for asks in (b"", HEAD + b"body"):
        ours, theirs = bench.pair()
        sweep.watch(line, ours.fileno())
        theirs.sendall(asks)
        theirs.close()
        sweep.run()
        sweep.unwatch(line, ours.fileno())
    assert (line.got, line.sent) == ([], [])


def test_an_answer_that_does_not_fit_goes_on_through_the_loop(bench: Bench) -> None:
    """Where the client takes nothing more, what is left of its refusal is written behind the rest, byte for byte."""
    bench.answer = bytes(range(256)) * 8192
    sweep, line = bench.sweep(), Line()
    ours, theirs = bench.pair()
    sweep.watch(line, ours.fileno())
    theirs.sendall(HEAD + b"body")
    sweep.run()
    (rest,) = line.sent
    took = b""
    while len(took) + len(rest) < len(bench.answer):
        took += theirs.recv(65536)
    assert took + rest == bench.answer


def test_a_number_belongs_to_who_has_it_now(bench: Bench) -> None:
    """To forget one connection does not take a newer one with the same number out."""
    sweep, old, new = bench.sweep(), Line(), Line()
    ours, _ = bench.pair()
    number = ours.fileno()
    sweep.watch(old, number)
    ours.close()
    ours, theirs = bench.pair()
    assert ours.fileno() == number
    sweep.watch(new, number)
    sweep.unwatch(old, number)
    theirs.sendall(b"hello")
    sweep.run()
    assert (old.got, new.got) == ([], [b"hello"])
