"""Python `requests`, as in the vendor's examples."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from typing import Any

requests: Any = importlib.import_module("requests")  # installed where this runs, not where the types are checked


def main() -> None:
    """Submit, poll to the end, and meet two refusals."""
    url = os.environ["WAVE_BASE_URL"] + "/tasks"
    headers = {"Authorization": "Bearer " + os.environ["WAVE_KEY"], "Content-Type": "application/json"}
    body = {"model": "gemini-2.5-flash-image-preview", "prompt": "一只狐狸", "n": 2}
    answer = requests.post(url, headers=headers, json=body, timeout=30)
    answer.raise_for_status()
    task = answer.json()
    while task["status"] not in ("completed", "succeeded", "success", "done", "failed", "error", "cancelled"):
        time.sleep(0.2)
        task = requests.get(f"{url}/{task['task_id']}", headers=headers, timeout=30).json()
    shapes = [image["url"] for image in task["result"]["images"]]
    impossible = requests.post(url, headers=headers, json=body | {"action": "search_grounded"}, timeout=30)
    error = impossible.json()["error"]
    poor = headers | {"Authorization": "Bearer " + os.environ["WAVE_POOR_KEY"]}
    capped = requests.post(url, headers=poor, json=body, timeout=30)
    said = {
        "version": requests.__version__,
        "task_id": task["task_id"],
        "status": task["status"],
        "pictures": [url for shape in shapes for url in ([shape] if isinstance(shape, str) else shape)],
        "impossible": {"status": impossible.status_code, "code": error["code"], "param": error["param"]},
        "cap": {"status": capped.status_code, "code": capped.json()["error"]["code"]},
    }
    sys.stdout.write(json.dumps(said) + "\n")


main()
