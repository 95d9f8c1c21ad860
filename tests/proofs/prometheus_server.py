"""A real Prometheus beside a gateway: started, asked, ended. Needs `prometheus` on the PATH (Debian: apt install)."""

from __future__ import annotations

import dataclasses
import http.server
import json
import math
import os
import pathlib
import shutil
import signal
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any, Final

import yaml

from tests import process

JOB: Final = "wave-gateway"
START_WITHIN_S: Final = 60
SAMPLE_WITHIN_S: Final = 60


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One series of an answer, without the times."""

    labels: Mapping[str, str]
    values: Sequence[float]

    def is_data(self) -> bool:
        """Whether it says anything: NaN alone is what a division by nothing leaves."""
        return not all(math.isnan(value) for value in self.values)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What Prometheus said to a query. `error` empty: it could be asked so."""

    series: Sequence[Series] = ()
    error: str = ""
    warnings: Sequence[str] = ()
    took_s: float = 0.0

    def has_data(self) -> bool:
        """Whether any series says anything."""
        return any(each.is_data() for each in self.series)


class Prometheus:
    """A Prometheus process that scrapes one gateway; ended by pid."""

    def __init__(
        self,
        directory: pathlib.Path,
        target: str,
        *,
        rules: Sequence[pathlib.Path] = (),
        every_s: int = 1,
        timeout_s: int | None = None,
    ) -> None:
        """`target`: host:port; `every_s`: between scrapes, and between evaluations of the rules."""
        binary = shutil.which("prometheus")
        if binary is None:
            raise AssertionError("there is no `prometheus` on the PATH; on Debian: apt install prometheus")
        directory.mkdir(parents=True, exist_ok=True)
        self.data, self.log = directory / "data", directory / "log"
        self.every_s = every_s
        config = {
            "global": {
                "scrape_interval": f"{every_s}s",
                "scrape_timeout": f"{timeout_s or every_s}s",
                "evaluation_interval": f"{every_s}s",
            },
            "rule_files": [str(rule) for rule in rules],
            "scrape_configs": [{"job_name": JOB, "static_configs": [{"targets": [target]}]}],
        }
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config, sort_keys=False))
        port = process.free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._command = [
            *(binary, f"--config.file={directory / 'prometheus.yml'}", f"--storage.tsdb.path={self.data}"),
            *(f"--web.listen-address=127.0.0.1:{port}", "--storage.tsdb.retention.time=90d"),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it can be asked."""
        environ = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, env=environ, stdin=subprocess.DEVNULL, stderr=log)
        until = time.monotonic() + START_WITHIN_S
        while time.monotonic() < until:
            assert self._process.poll() is None, f"prometheus ended at once:\n{self.log.read_text()[-2000:]}"
            try:
                if process.fetch(f"{self.url}/-/ready")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.1)
        raise AssertionError("prometheus did not come up")

    def end(self) -> None:
        """End it, so that its data directory is whole."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(60)
            self._process = None

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process is not None
        return self._process.pid

    def complaints(self) -> list[str]:
        """The lines of its log that are worse than information."""
        lines = self.log.read_text().splitlines()
        return [line for line in lines if "level=warn" in line or "level=error" in line]

    def instant(self, expression: str, *, at: float | None = None) -> Answer:
        """Ask for one moment; by default now."""
        return self._query("query", query=expression, time=at if at is not None else time.time())

    def range(self, expression: str, *, since: float, until: float, step_s: float) -> Answer:
        """Ask for a range of moments, `step_s` apart."""
        return self._query("query_range", query=expression, start=since, end=until, step=step_s)

    def label_values(self, label: str, *, selector: str = "", since: float, until: float) -> list[str]:
        """The values that a label has."""
        match = {"match[]": selector} if selector else {}
        return sorted(self._get(f"label/{label}/values", start=since, end=until, **match)["data"])

    def number(self, expression: str, *, at: float | None = None) -> float:
        """The one number that an expression comes to."""
        answer = self.instant(expression, at=at)
        assert not answer.error and len(answer.series) == 1, (expression, answer)
        return answer.series[0].values[0]

    def await_sample_after(self, moment: float) -> float:
        """Wait until everything was scraped after a moment; returns a time at which to ask."""
        until = time.monotonic() + SAMPLE_WITHIN_S
        while time.monotonic() < until:
            answer = self.instant(f'min(timestamp(up{{job="{JOB}"}})) and on () min(up{{job="{JOB}"}}) == 1')
            if answer.series and answer.series[0].values[0] > moment:
                return time.time()
            time.sleep(self.every_s / 4)
        raise AssertionError(f"prometheus has no sample {SAMPLE_WITHIN_S} s after it was awaited")

    def _query(self, path: str, **parameters: object) -> Answer:
        began = time.monotonic()
        said = self._get(path, **parameters)
        took_s = time.monotonic() - began
        if said["status"] != "success":
            return Answer(error=f"{said['errorType']}: {said['error']}", took_s=took_s)
        return Answer(series=_series(said["data"]), warnings=said.get("warnings", ()), took_s=took_s)

    def _get(self, path: str, **parameters: object) -> Any:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        return json.loads(process.fetch(url)[2])


def _series(data: Any) -> list[Series]:
    match data["resultType"]:
        case "vector":
            return [Series(labels=each["metric"], values=[float(each["value"][1])]) for each in data["result"]]
        case "matrix":
            return [
                Series(labels=each["metric"], values=[float(value) for _, value in each["values"]])
                for each in data["result"]
            ]
        case _:
            return [Series(labels={}, values=[float(data["result"][1])])]


class PlainText:
    """A door to `/metrics` that asks for the older text format, as an old Prometheus would; closed by `close`."""

    def __init__(self, gateway_url: str) -> None:
        door = self
        self.types: set[str] = set()
        """The content types that it passed on."""

        class Passing(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, headers, body = process.fetch(gateway_url + self.path, Accept="text/plain;version=0.0.4")
                door.types.add(headers["Content-Type"])
                self.send_response(status)
                self.send_header("Content-Type", headers["Content-Type"])
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Passing)
        self.target = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()
