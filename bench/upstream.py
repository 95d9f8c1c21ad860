"""The upstream of the measurements, and nginx as the measure: both are nginx, with these servers.

The upstream answers without work, so it is never what is waited for. It runs on the load's core. Which task it shows
depends on the team's key, since it keeps nothing.
"""

from __future__ import annotations

import pathlib
from typing import Final

KB: Final = 1000
PICTURES: Final = {"small": 10 * KB, "middle": 1000 * KB, "large": 20_000 * KB}
"""Name → size in bytes."""
TEAMS: Final = ("kept", "miss", "live", "middle", "large")
"""What becomes of a team's tasks: completed with a small picture, failed at the first poll, open for ever, completed
with a picture of 1 or of 20 MB."""

_JPEG_HEAD: Final = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
_JPEG_TAIL: Final = b"\xff\xd9"

_TASK: Final = (
    '{"task_id":"%s","model":"gemini-2.5-flash-image-preview","action":"generate","status":"%s",'
    '"created_at":1790000000000,"progress":%d,"pre_consumed_cost":6641%s}'
)
_RESULT: Final = (
    ',"cost":6641,"completed_at":1790000009000,'
    '"result":{"images":[{"url":["http://127.0.0.1:%d/files/%s.jpg?%s"],"expires_at":4102444800}]}'
)
_FAILED: Final = ',"cost":0,"error":{"message":"the bench ends it","code":"task_failed"}'
_CHAT: Final = (
    '{"id":"chatcmpl-$request_id","object":"chat.completion","created":1790000000,"model":"fake","choices":[{"index":0,'
    '"message":{"role":"assistant","content":"a fox"},"finish_reason":"stop"}],'
    '"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}'
)


def write_pictures(folder: pathlib.Path) -> None:
    """Files that begin and end as a JPEG does; nobody looks at what is between."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, size_bytes in PICTURES.items():
        between = size_bytes - len(_JPEG_HEAD) - len(_JPEG_TAIL)
        (folder / f"{name}.jpg").write_bytes(_JPEG_HEAD + b"\x00" * between + _JPEG_TAIL)


def config(port: int, files: pathlib.Path) -> str:
    """The upstream: the task API, an OpenAI-shaped completion, and pictures."""

    def completed(picture: str, task_id: str) -> str:
        return _TASK % (task_id, "completed", 100, _RESULT % (port, picture, task_id))

    shown = {
        "kept": completed("small", "$task"),
        "middle": completed("middle", "$task"),
        "large": completed("large", "$task"),
        "miss": _TASK % ("$task", "failed", 100, _FAILED),
        "live": _TASK % ("$task", "processing", 40, ""),
    }
    polls = "\n".join(f"        \"Bearer vendor-{team}\" '{text}';" for team, text in shown.items())
    queued = _TASK % ("task-wave$request_id", "queued", 0, "")
    at_once = completed("small", "task-wave$request_id")
    return f"""
    map $http_authorization $shown {{
{polls}
        default '{completed("small", "$task")}';
    }}
    map $http_authorization $taken {{
        "Bearer at-once" '{at_once}';
        default '{queued}';
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        default_type application/json;
        location = /ready {{ return 200; }}
        location = /status {{ access_log off; stub_status; }}
        location = /v1/tasks {{ return 200 '$taken'; }}
        location ~ ^/v1/tasks/(?<task>[^/]+)$ {{ return 200 '$shown'; }}
        location = /v1/chat/completions {{ return 200 '{_CHAT}'; }}
        location /files/ {{ alias {files}/; }}
    }}
    """


def measure(*, port: int, cached_port: int, upstream: str, files: pathlib.Path, cache: pathlib.Path) -> str:
    """nginx as the measure: passes everything on at one port, caches POST by its body at another, serves files."""
    origin = upstream.removeprefix("http://")
    passing = 'proxy_pass http://behind; proxy_http_version 1.1; proxy_set_header Connection "";'
    return f"""
    upstream behind {{ server {origin}; keepalive 256; keepalive_requests 100000000; }}
    proxy_cache_path {cache} levels=1:2 keys_zone=posts:64m max_size=2g inactive=1d;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location = /ready {{ return 200; }}
        location = /status {{ access_log off; stub_status; }}
        location /v1/ {{ {passing} }}
        location /media/ {{ alias {files}/; }}
    }}
    server {{
        listen 127.0.0.1:{cached_port} backlog=4096;
        location /v1/ {{
            {passing}
            proxy_cache posts;
            proxy_cache_methods POST;
            proxy_cache_key "$request_method $uri $request_body";
            proxy_cache_valid 200 1d;
            add_header X-Cache $upstream_cache_status;
        }}
    }}
    """
