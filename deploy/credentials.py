"""Secrets of the stack that nobody has to think of, written once, before anything else starts.

`metrics-token` is what Prometheus shows the gateway; `admin-password` is Grafana's first one. `anonymous` says whether
Grafana shows the dashboards without a login: only in the demonstration, where the spend is the simulator's. A secret
that is there already is kept: one that changes under running services would lock Prometheus out.

Each file lies in a volume that only the services that need it see. It is readable for every user there, since the
three services run as different ones.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

DEMONSTRATION: Final = "demo.env"
TOKEN_BYTES: Final = 32


def write(directory: Path, environ: Mapping[str, str]) -> None:
    """Write what is missing into `metrics/` and `grafana/` of the directory."""
    _write(directory / "metrics" / "metrics-token", secrets.token_urlsafe(TOKEN_BYTES))
    _write(directory / "grafana" / "admin-password", secrets.token_urlsafe(TOKEN_BYTES))
    is_demonstration = environ.get("GATEWAY_ENV") == DEMONSTRATION
    _write(directory / "grafana" / "anonymous", "true" if is_demonstration else "false", is_kept=False)


def _write(path: Path, text: str, *, is_kept: bool = True) -> None:
    """Whole or not at all: a service may read it as soon as it is there."""
    if is_kept and path.exists():
        return
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    partial.write_text(text, encoding="utf-8")
    partial.chmod(0o444)
    partial.replace(path)


if __name__ == "__main__":
    write(Path(sys.argv[1]), os.environ)
