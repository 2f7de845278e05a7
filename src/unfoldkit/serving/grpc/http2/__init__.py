"""gRPC without grpcio: unary calls go from the socket to the batcher and back without a task.

An empty servicer of ``grpc.aio`` costs more per call than a whole inference here. :mod:`~.connection` reads HTTP/2 as
RFC 9113 has it, :mod:`~.sending` writes it, :mod:`~.headers` is HPACK, :mod:`~.calls` is gRPC on top of a stream, and
:mod:`~.server` listens. ``unfold serve --no-fast-path``, and OpenTelemetry's instrumentation, use ``grpc.aio`` instead.

Threat model. Clients are untrusted; they control every byte and its timing.

* Work without end (rapid reset, CVE-2023-44487; floods of PING, SETTINGS, empty DATA, WINDOW_UPDATE, PRIORITY or
  RST_STREAM): every frame that carries no message is paid from an allowance that calls and time refill; a connection
  without any left ends with ENHANCE_YOUR_CALM.
* Header blocks (CONTINUATION floods, HPACK bombs): bounded in bytes, in frames, and in the size of the decoded list.
* Memory: a message is rejected by the length before it; what is held of requests, and of responses for which a client
  opens no window, counts toward the bounds of bodies. Reading stops while a client does not read.
* Slow clients: whatever is incomplete (preface, frame, header block, request, unread response) has a time limit.
* Ambiguous requests behind a proxy: malformed fields, as RFC 9113, section 8.2, lists them, end their stream.
"""
