"""The fast path: plain inference requests go from the socket to the batcher without ASGI.

A connection is uvicorn's own protocol behind :class:`~.connection.Connection`, which looks at the bytes first. While it
brings only plain requests for known paths (one at a time, a complete head at once, a Content-Length, nothing unusual),
they are answered here. With the first bytes that are anything else (another path, a chunked body, a pipelined request,
a malformed head) the connection is uvicorn's for the rest of its life. ``unfold serve --no-fast-path`` switches it off;
the limits below stay.

Threat model. Clients are untrusted; they control every byte and their timing. A reverse proxy may stand in between.

* Request smuggling: two parsers that disagree on where a request ends. Heads are parsed by ``httptools``, the parser of
  uvicorn, and accepted only in canonical form: CRLF line ends, no folded lines, exactly one Host and one decimal
  Content-Length, no Transfer-Encoding, Expect, Trailer or Content-Encoding. Bytes after the end of a request hand the
  connection to uvicorn before anything is answered. ``tests/unit/serving/http/fast_path`` compares both parsers.
* Authentication: the same constant-time comparison as the ASGI guard; heads with a token are never cached.
* DNS rebinding and cross-site requests: the Host header is checked as in the ASGI guard, and a head with Origin or
  Sec-Fetch-Site goes to uvicorn.
* Memory: bodies are bounded by the limit of the model, heads by 16 KiB, cached heads by their number, and bytes that
  run ahead of responses by :mod:`~.uvicorn_internals`, which uvicorn itself does not bound.
* Slow clients: a request that takes too long to arrive, or a response that is not read, closes the connection.
* Response splitting: request ids are repeated only if they match a strict pattern.
* Overload: :mod:`~.overload` rejects only complete requests with a known head; a partial or unusual request is passed
  on untouched.

Under TLS, which :mod:`~unfoldkit.serving.http.tls` sets up below all of this, requests take the fast path too, but not
the bulk rejection, which reads from the descriptor. Not covered: HTTP/2, rate limits per client. Use a proxy for these.
"""
