"""Read a ``config.pbtxt`` with the message type that Triton's client ships."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from typing import Any

READ = """import importlib.util, sys
from pathlib import Path
from google.protobuf import json_format, text_format
# the package around the message type imports gRPC, which the message type does not need
folder = Path(importlib.util.find_spec("tritonclient").submodule_search_locations[0])
spec = importlib.util.spec_from_file_location("model_config_pb2", folder / "grpc" / "model_config_pb2.py")
messages = importlib.util.module_from_spec(spec)
spec.loader.exec_module(messages)
read = text_format.Parse(sys.stdin.read(), messages.ModelConfig())
print(json_format.MessageToJson(read, preserving_proto_field_name=True))
"""
REQUIRED = ("name", "backend", "max_batch_size", "input", "output", "instance_group")
"""What Triton needs in a configuration that it does not complete."""


class ClientMissingError(RuntimeError):
    """Triton's client is not installed."""


def parse_model_config(text: str) -> dict[str, Any]:
    """Return a configuration as plain data.

    Raises:
        ClientMissingError: there is no client on this machine.
        ValueError: the text is no ``ModelConfig``.
    """
    if importlib.util.find_spec("tritonclient") is None:
        raise ClientMissingError("tritonclient is not installed")
    # a process of its own: KServe's client registers message types of the same name
    command = [sys.executable, "-c", READ]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise ValueError(done.stderr.strip()[-500:])
    return dict(json.loads(done.stdout))


def list_absent_fields(config: dict[str, Any]) -> list[str]:
    """Return the required fields that a configuration does not have."""
    absent = [name for name in REQUIRED if not config.get(name)]
    tensors = [*config.get("input", []), *config.get("output", [])]
    return absent + [
        f"{item.get('name')}.{key}" for item in tensors for key in ("data_type", "dims") if not item.get(key)
    ]
