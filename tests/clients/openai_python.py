"""The OpenAI Python SDK's raw calls."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from typing import Any

openai: Any = importlib.import_module("openai")  # installed where this runs, not where the types are checked


def main() -> None:
    """Submit, poll to the end, meet two refusals, and lose an answer."""
    client = openai.OpenAI(base_url=os.environ["WAVE_BASE_URL"], api_key=os.environ["WAVE_KEY"])
    body = {"model": "gemini-2.5-flash-image-preview", "prompt": "一只狐狸", "n": 2}
    task = client.post("/tasks", body=body, cast_to=object)
    while task["status"] not in ("completed", "succeeded", "success", "done", "failed", "error", "cancelled"):
        time.sleep(0.2)
        task = client.get(f"/tasks/{task['task_id']}", cast_to=object)
    shapes = [image["url"] for image in task["result"]["images"]]
    said = {
        "version": openai.__version__,
        "task_id": task["task_id"],
        "status": task["status"],
        "pictures": [url for shape in shapes for url in ([shape] if isinstance(shape, str) else shape)],
    }
    try:
        client.post("/tasks", body=body | {"action": "search_grounded"}, cast_to=object)
    except openai.BadRequestError as error:
        said["impossible"] = {"status": error.status_code, "code": error.code, "param": error.param}
    poor = openai.OpenAI(base_url=os.environ["WAVE_BASE_URL"], api_key=os.environ["WAVE_POOR_KEY"])
    try:
        poor.post("/tasks", body=body, cast_to=object)
    except openai.RateLimitError as error:
        said["cap"] = {"status": error.status_code, "code": error.code}
    lossy = openai.OpenAI(base_url=os.environ["WAVE_LOSSY_URL"], api_key=os.environ["WAVE_KEY"])
    said["retried"] = lossy.post("/tasks", body=body | {"prompt": "lost"}, cast_to=object)["task_id"]
    sys.stdout.write(json.dumps(said) + "\n")


main()
