"""The metrics, as Prometheus's own tool judges them."""

from __future__ import annotations

import shutil
import subprocess
import urllib.request

from conftest import Start
from harness import DEADLINE_SECONDS
from strangers import tools


def test_promtool_finds_nothing_to_say_of_the_metrics(start: Start) -> None:
    server = start(ops="127.0.0.1:0")
    with urllib.request.urlopen(f"http://{server.ops_address}/metrics", timeout=DEADLINE_SECONDS) as reply:
        assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        text = reply.read()
    promtool = shutil.which("promtool") or tools() / "promtool"
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, timeout=DEADLINE_SECONDS
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")
