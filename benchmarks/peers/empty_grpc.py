"""A gRPC server in Python that does nothing, as a bound of all others: `python -m benchmarks.peers.empty_grpc PORT`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


async def serve(port: int, answer: bytes) -> None:
    """Answer every inference call with the same bytes, which were encoded elsewhere."""
    import grpc

    async def infer(_request: bytes, _context: Any) -> bytes:
        return answer

    server = grpc.aio.server()
    handlers = {"ModelInfer": grpc.unary_unary_rpc_method_handler(infer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve(int(sys.argv[1]), Path(sys.argv[2]).read_bytes()))
