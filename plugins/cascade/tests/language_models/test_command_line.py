"""``unfold plan`` and ``unfold serve`` on the shipped example, as a user runs them, with the openai client."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plugins.cascade.tests.language_models.scripted_upstream import always, serve_upstream

openai = pytest.importorskip("openai")
ROOT = Path(__file__).parents[4]
UNFOLD = (sys.executable, "-m", "unfoldkit")


@pytest.mark.e2e
def test_the_example_is_planned_and_served(tmp_path: Path) -> None:
    """The run is planned from its log, served by its endpoints, and a streamed answer names its model."""
    sure = always(text="cheap answer", logprob=-0.0001)
    with serve_upstream(sure) as small, serve_upstream(always(text="dear answer")) as large:
        settings = [
            argument
            for m, url in enumerate((small.url, small.url, large.url))
            for argument in ("--set", f"stages[0].models[{m}].endpoint.url={url}")
        ]
        spec, run = str(ROOT / "configs/cascade/llm.yaml"), str(tmp_path / "run")
        subprocess.run([*UNFOLD, "plan", spec, "--run", run, *settings], check=True, capture_output=True, timeout=120)
        serving = [*UNFOLD, "serve", run, "--port", "0"]
        with subprocess.Popen(
            serving, stderr=subprocess.PIPE, text=True, env={**os.environ, "NO_COLOR": "1"}
        ) as process:
            try:
                assert process.stderr is not None
                line = process.stderr.readline()
                url = line.split(" on ")[1].split()[0]
                client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=5)
                _wait_until_ready(client)
                raw = client.chat.completions.with_raw_response.create(
                    model="auto", messages=[{"role": "user", "content": "hi"}], stream=True
                )
                text = "".join(chunk.choices[0].delta.content or "" for chunk in raw.parse() if chunk.choices)
                assert text.split() == ["cheap", "answer"]
                assert raw.headers["x-unfold-promise"] == "2pt@95"
                assert raw.headers["x-unfold-model"] in ("small", "medium")
            finally:
                process.terminate()
                process.wait(30)


def _wait_until_ready(client: object) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            client.models.list()  # type: ignore[attr-defined]
        except openai.APIConnectionError:
            assert time.monotonic() < end
            time.sleep(0.2)
        else:
            return
