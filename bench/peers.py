"""Two other gateways, from environments of their own under `.peers/` (`make bench PEERS=all` makes them).

Neither has the task API, so what each is asked is the nearest thing that it does; BENCH.md says what is not comparable.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import secrets
from typing import Final

from bench import asks, servers

NAMES: Final = ("litellm", "portkey")
HIT_KEYS: Final = 100
"""LiteLLM's cache in memory forgets all but the last 200 answers by default."""

_LITELLM: Final = """
model_list:
  - model_name: fake
    litellm_params: {{model: openai/fake, api_base: "{upstream}/v1", api_key: sk-fake}}
litellm_settings:
  cache: true
  cache_params: {{type: local}}
general_settings:
  pass_through_endpoints:
    - {{path: /v1/tasks, target: "{upstream}/v1/tasks", include_subpath: true,
        headers: {{Authorization: "Bearer vendor-kept"}}}}
"""
_CHAT: Final = (
    f'{{"model":"fake","messages":[{{"role":"user","content":"a red fox in the snow, at dawn, {asks.NUMBER}"}}]}}'
)


class Litellm:
    """LiteLLM's proxy with one worker, its cache in memory, and its pass-through endpoints for the task API."""

    def __init__(self, environment: pathlib.Path, upstream: str) -> None:
        """`environment`: a venv with litellm[proxy]."""
        self._program = environment / "bin" / "litellm"
        self._upstream = upstream
        self._key = f"sk-{secrets.token_hex(24)}"
        self.headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}

    def running(self, *, core: int, folder: pathlib.Path) -> contextlib.AbstractContextManager[servers.Server]:
        """The proxy, until the block ends."""
        folder.mkdir(parents=True, exist_ok=True)
        config, port = folder / "litellm.yaml", servers.free_port()
        config.write_text(_LITELLM.format(upstream=self._upstream))
        # Without the second it asks the network for a list of prices, three times, before it starts.
        environ = {"LITELLM_MASTER_KEY": self._key, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        options = ["--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
        return servers.running(
            "litellm",
            [str(self._program), *options],
            f"http://127.0.0.1:{port}",
            core=core,
            folder=folder,
            ready_at="/health/liveliness",
            environ=environ,
        )

    def hit(self) -> asks.Ask:
        """A chat completion that its cache knows."""
        return asks.Ask(
            method="POST",
            path="/v1/chat/completions",
            body=_CHAT,
            headers=self.headers,
            keys=HIT_KEYS,
            header=("x-litellm-cache-key", ""),
            contains="a fox",
        )


class Portkey:
    """Portkey's open-source gateway; its caches are not part of it."""

    def __init__(self, environment: pathlib.Path, upstream: str) -> None:
        """`environment`: a node prefix with @portkey-ai/gateway."""
        self._program = environment / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
        config = {"provider": "openai", "api_key": "sk-fake", "custom_host": f"{upstream}/v1"}
        self.headers = {"x-portkey-config": json.dumps(config), "Content-Type": "application/json"}

    def running(self, *, core: int, folder: pathlib.Path) -> contextlib.AbstractContextManager[servers.Server]:
        """The gateway, until the block ends."""
        port = servers.free_port()
        command = ["node", str(self._program), f"--port={port}", "--headless"]
        return servers.running("portkey", command, f"http://127.0.0.1:{port}", core=core, folder=folder, ready_at="/")

    def miss(self) -> asks.Ask:
        """A chat completion that is passed on."""
        return asks.Ask(
            method="POST",
            path="/v1/chat/completions",
            body=_CHAT,
            headers=self.headers,
            keys=0,
            contains="a fox",
        )
