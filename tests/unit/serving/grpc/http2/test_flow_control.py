"""Windows: whatever a client grants and when, the server keeps to it, and in the end sends everything."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.serving.grpc.http2.wire import Frame, Service, Wire, data, prefixed, run
from unfoldkit.serving.grpc.http2 import frames
from unfoldkit.serving.grpc.http2.frames import (
    DATA,
    FIRST_WINDOW,
    MAX_FRAME_BYTES,
    PREFACE,
    pack_settings,
    pack_window_update,
)


@dataclass(slots=True)
class Reader:
    """What a client has granted and not received, by stream, with 0 for the connection."""

    wire: Wire
    first: int
    max_frame: int
    windows: dict[int, int] = field(default_factory=dict)
    found: list[Frame] = field(default_factory=list)

    def take(self, found: Iterable[Frame]) -> None:
        for frame in found:
            self.found.append(frame)
            if frame.kind == DATA:
                for stream in (0, frame.stream):
                    self.windows[stream] -= len(frame.payload)
                    assert self.windows[stream] >= 0 or not frame.payload
                assert len(frame.payload) <= self.max_frame

    async def grant(self, stream: int, size: int) -> None:
        self.windows[stream] += size
        self.take(await self.wire.send(pack_window_update(stream, size)))

    async def change_first(self, first: int) -> None:
        for stream in self.windows:
            if stream:
                self.windows[stream] += first - self.first
        self.first = first
        self.take(await self.wire.send(pack_settings({frames.INITIAL_WINDOW_SIZE: first})))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_the_server_keeps_to_the_windows(seed: int) -> None:
    """Unary and streamed responses of any size, windows that open late, in any order, and change their first size."""
    chooser = random.Random(seed)  # noqa: S311 - no secret

    async def scenario(service: Service) -> None:
        service.max_held = 2**30
        max_frame = chooser.choice((MAX_FRAME_BYTES, 2**18))
        wire = service.connect()
        reader = Reader(wire, chooser.choice((0, 1, 1000, FIRST_WINDOW)), max_frame, {0: FIRST_WINDOW})
        opening = pack_settings({frames.INITIAL_WINDOW_SIZE: reader.first, frames.FRAME_SIZE: max_frame})
        reader.take(await wire.send(PREFACE + opening))
        expected: dict[int, bytes] = defaultdict(bytes)
        for number in range(chooser.randrange(1, 10)):
            stream, size = 2 * number + 1, chooser.choice((0, 1, 500, 16_379, 16_380, 100_000, 400_000))
            reader.windows[stream] = reader.first
            if chooser.random() < 0.7:
                expected[stream] = prefixed(b"x" * size)
                reader.take(await wire.send(wire.call(stream, b"%d" % size, path="/test/Large")))
            else:
                messages = [b"y" * chooser.randrange(3000) for _ in range(chooser.randrange(1, 30))]
                expected[stream] = b"".join(map(prefixed, messages))
                reader.take(
                    await wire.send(wire.head(stream, path="/test/Talk") + data(stream, expected[stream], end=True))
                )
            for _ in range(chooser.randrange(3)):
                await reader.grant(chooser.choice(list(reader.windows)), chooser.choice((1, 100, 20_000, 100_000)))
            if chooser.random() < 0.3:
                await reader.change_first(chooser.choice((0, 10, 5000, FIRST_WINDOW)))
            if chooser.random() < 0.2:
                wire.connection.pause_writing()
                await reader.grant(0, 1000)
                wire.connection.resume_writing()
                reader.take(await wire.frames())
        while chooser.random() < 0.9:
            await reader.grant(chooser.choice(list(reader.windows)), chooser.choice((1, 1000, 50_000)))
        for stream in reader.windows:
            await reader.grant(stream, 2**23)
        for _ in range(20):
            reader.take(await wire.frames())
        assert wire.answers(reader.found) == {stream: (body, "0") for stream, body in expected.items()}
        assert not service.held.total()
        assert not wire.connection.calls
        wire.transport.close()
        await wire.frames()

    run(scenario)
