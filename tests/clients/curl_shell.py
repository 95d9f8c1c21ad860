"""curl, as in the vendor's examples."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any


def main() -> None:
    """Submit, poll to the end, and meet two refusals."""
    url = os.environ["WAVE_BASE_URL"] + "/tasks"
    key, poor = os.environ["WAVE_KEY"], os.environ["WAVE_POOR_KEY"]
    body = {"model": "gemini-2.5-flash-image-preview", "prompt": "一只狐狸", "n": 2}
    status, task = curl(url, key, body)
    while task["status"] not in ("completed", "succeeded", "success", "done", "failed", "error", "cancelled"):
        time.sleep(0.2)
        status, task = curl(f"{url}/{task['task_id']}", key)
    assert status == 200, task
    shapes = [image["url"] for image in task["result"]["images"]]
    impossible, refused = curl(url, key, body | {"action": "search_grounded"})
    capped, full = curl(url, poor, body)
    said = {
        "version": run("--version").split()[1],
        "task_id": task["task_id"],
        "status": task["status"],
        "pictures": [url for shape in shapes for url in ([shape] if isinstance(shape, str) else shape)],
        "impossible": {"status": impossible, "code": refused["error"]["code"], "param": refused["error"]["param"]},
        "cap": {"status": capped, "code": full["error"]["code"]},
    }
    sys.stdout.write(json.dumps(said) + "\n")


def curl(url: str, key: str, body: object = None) -> tuple[int, Any]:
    """One request; the status and the JSON of its answer."""
    sent = [] if body is None else ["--json", json.dumps(body, ensure_ascii=False), "-H", "Expect: 100-continue"]
    said = run(url, "-H", f"Authorization: Bearer {key}", *sent, "--write-out", "\\n%{http_code}")
    document, _, status = said.rpartition("\n")
    return int(status), json.loads(document)


def run(*arguments: str) -> str:
    """What curl wrote."""
    command = ["curl", "--silent", "--show-error", "--noproxy", "*", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout


main()
