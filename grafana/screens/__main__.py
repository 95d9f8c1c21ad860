"""`make screens`: the pictures of the dashboards in docs/images.

A month is played (`month`), Debian's Prometheus is put on it, and each panel's query is asked and drawn (`shoot.cjs`).
Needs `prometheus`, `promtool`, `chromium` and `node` on the PATH, and the npm packages of the Makefile in the folder
that is named. A month that is there already is not played again.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Final

from grafana.screens import month
from tests import process

HERE: Final = pathlib.Path(__file__).parent
IMAGES: Final = HERE.parent.parent / "docs" / "images"
PICTURES: Final = {
    "spend-dark.png": ("spend.json", "dark", "0-1"),
    "spend-light.png": ("spend.json", "light", "0-1"),
    "spend-details.png": ("spend.json", "dark", "1-3"),
    "traffic.png": ("traffic.json", "dark", "0-3"),
    "media.png": ("media.json", "dark", "0-3"),
}
"""File → dashboard, theme, and which of its headed parts."""
PROGRAMS: Final = ("prometheus", "promtool", "chromium", "node")
BLOCK: Final = "162h"
"""promtool reads the whole month again for each block."""
LOOKBACK: Final = "90s"
"""The month has no marks where a series ends; this comes near to them."""
START_WITHIN_S: Final = 60


def main(folder: pathlib.Path) -> None:
    """Play the month if need be, and make every picture."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        sys.exit(f"make screens: needs {', '.join(missing)} on the PATH")
    kept = folder / "month"
    if not kept.exists():
        _play(folder, kept)
    environ = os.environ | {"NODE_PATH": str(folder / "node" / "node_modules")}
    wanted = [
        f"{HERE.parent / board}:{mode}:{IMAGES / name}:{parts}" for name, (board, mode, parts) in PICTURES.items()
    ]
    with _prometheus(folder, kept) as url:
        options = ["--prometheus", url, "--now", f"{month.ENDS.timestamp():.0f}", "--scrape", str(month.SCRAPE_S)]
        options += ["--chromium", str(shutil.which("chromium"))]
        subprocess.run(["node", str(HERE / "shoot.cjs"), *options, *wanted], env=environ, check=True)


def _play(folder: pathlib.Path, kept: pathlib.Path) -> None:
    samples, blocks = folder / "month.prom", folder / "blocks"
    shutil.rmtree(blocks, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "grafana.screens.month", samples], check=True)
    command = ["promtool", "tsdb", "create-blocks-from", f"--max-block-duration={BLOCK}", "openmetrics", "-q"]
    subprocess.run([*command, samples, blocks], check=True)
    samples.unlink()
    blocks.rename(kept)


@contextlib.contextmanager
def _prometheus(folder: pathlib.Path, kept: pathlib.Path) -> Iterator[str]:
    """Prometheus on the month, scraping nothing; its address."""
    (folder / "prometheus.yml").write_text("global: {}\n")
    port = process.free_port()
    options = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={kept}", "--log.level=warn"]
    options += ["--storage.tsdb.retention.time=10y", f"--query.lookback-delta={LOOKBACK}"]
    running = subprocess.Popen(["prometheus", *options, f"--web.listen-address=127.0.0.1:{port}"])
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + START_WITHIN_S
        while not _is_ready(url):
            if running.poll() is not None or time.monotonic() > until:
                sys.exit("make screens: prometheus did not come up")
            time.sleep(0.2)
        yield url
    finally:
        running.terminate()
        running.wait()


def _is_ready(url: str) -> bool:
    with contextlib.suppress(OSError):
        return process.fetch(f"{url}/-/ready")[0] == 200
    return False


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]).absolute())
