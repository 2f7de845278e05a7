"""Serves the models of the tests: ``python server.py NAME [WORD=VALUE ...]``; its first line on stdout is the port."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from models import Diary, Total

from unfoldkit.serving.app import application, paths
from unfoldkit.serving.batcher import Limits
from unfoldkit.serving.host import Address, host, listen
from unfoldkit.serving.remember import Remembering
from unfoldkit.serving.service import Service
from unfoldkit.serving.state import open_store


def main(name: str, *words: str) -> None:
    given = dict(word.split("=", 1) for word in words)
    limits = Limits(queue_rows=int(given.get("queue", 1024)), body_bytes=int(given.get("body", 100_000)))
    close = lambda: None  # noqa: E731 - replaced by the store's
    if name == "total":
        model = Total(delay_s=float(given.get("delay", 0)))
    else:
        store = open_store(Path(given["store"]), made_from="diary")
        model, close = Remembering(Diary(), store), store.close
    app = application([model], limits=limits, close=close)
    bound = listen(Address(port=0, token=given.get("token", "")))
    print(bound.getsockname()[1], os.getpid(), flush=True)
    service = Service(name, app, paths([model]), app.answers, app.body_bytes)
    host(service, bound, token=given.get("token", ""))


main(*sys.argv[1:])
