"""The settings of `serve`: one table, which the command line, the environment and the README read.

Rules: an option beats its environment variable, which beats the default. An empty environment variable is an unset
one, but a secret that is given and empty is refused. A message names the option and the variable, says what would be
right, and never shows a secret.

Not here: the command line itself (`cli`), and what a team may do (policy files).
"""

from __future__ import annotations

import dataclasses
import enum
import ipaddress
import re
import urllib.parse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from gateway import errors
from gateway.outbound import tunnel
from gateway.rules import units

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_SECRET_BYTES: Final = 64 * 1024


class LogFormat(enum.StrEnum):
    """How log lines look."""

    CONSOLE = "console"
    JSON = "json"


class LogLevel(enum.StrEnum):
    """The least severe lines that are logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of `serve`, parsed."""

    listen: tuple[str, int]
    """Host, an IPv6 address without brackets, and port."""
    internal_listen: tuple[str, int] | None
    """As `listen`; None: health and metrics are on `listen` only."""
    public_url: str
    """Without a slash at the end."""
    media_public_url: str
    """Without a slash at the end; `public_url` unless it was given."""
    is_media_public_url_given: bool
    upstream: str
    """Without a slash at the end."""
    upstream_idempotency: bool
    """Whether the upstream knows a repeated submit by its Idempotency-Key."""
    upstream_callbacks: bool
    """Whether the upstream is given a URL of ours to call when a task has ended."""
    policies: Path
    data: Path
    database: str
    """`sqlite`: in `data`."""
    media: Path
    workers: int
    metrics_token: str | None = dataclasses.field(repr=False)
    """None: `/metrics` answers loopback peers only."""
    submit_deadline_s: int
    max_wait_s: int
    mirror_patience_s: int
    min_free_bytes: int
    max_body_bytes: int
    allow_private: tuple[Network, ...]
    egress_proxy: tunnel.Proxy | None
    """Through which https leaves; None: directly."""
    ca_bundle: Path | None
    drain_s: int
    traces: bool
    """Whether OpenTelemetry is on; where traces go is said in its own OTEL_* variables."""
    log_format: LogFormat
    log_level: LogLevel
    log_content: bool
    """Whether prompts and the vendor's signed URLs are logged."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One row of the table."""

    name: str
    """As an option without the dashes: `public-url`."""
    kind: str
    """What to write, for the help: `URL`, `DURATION`."""
    parse: Callable[[str], object]
    """Text to value; raises ValueError that says what would be right."""
    help: str
    default: str | None = None
    """As one would write it; None: see `default_help`."""
    default_help: str = ""
    """What holds where nothing was given and there is no `default`."""
    unit: str = ""
    """Unit of the parsed value, and the end of the field's name: `s`, `bytes`."""
    choices: tuple[str, ...] = ()
    is_repeatable: bool = False
    is_switch: bool = False
    """Given as `--name` or `--no-name`."""
    is_secret: bool = False
    """A secret can also be given as a file: see `file_option`."""

    @property
    def option(self) -> str:
        """`--public-url`."""
        return f"--{self.name}"

    @property
    def variable(self) -> str:
        """`WAVE_GATEWAY_PUBLIC_URL`."""
        return f"WAVE_GATEWAY_{self.parameter.upper()}"

    @property
    def parameter(self) -> str:
        """`public_url`, the key in `parse`'s options."""
        return self.name.replace("-", "_")

    @property
    def field(self) -> str:
        """The field of `Settings`: `submit_deadline_s`."""
        return f"{self.parameter}_{self.unit}" if self.unit else self.parameter

    @property
    def file_option(self) -> str:
        """`--metrics-token-file`, for secrets."""
        return f"{self.option}-file"

    @property
    def file_variable(self) -> str:
        """`WAVE_GATEWAY_METRICS_TOKEN_FILE`, for secrets."""
        return f"{self.variable}_FILE"

    @property
    def file_parameter(self) -> str:
        """`metrics_token_file`, the key in `parse`'s options."""
        return f"{self.parameter}_file"


def parse(options: Mapping[str, object], environ: Mapping[str, str]) -> Settings:
    """Parse the settings of `serve`.

    `options` holds what the command line said, by `Setting.parameter` (and `file_parameter`): text, a list or tuple
    of text for a repeatable one; None or an empty list is: not said.

    Raises StartError that names the option and says what would be right.
    """
    unknown = options.keys() - {name for row in TABLE for name in (row.parameter, row.file_parameter)}
    if unknown:
        raise KeyError(f"no such setting: {', '.join(sorted(unknown))}")
    values: dict[str, Any] = {row.field: _value(row, options, environ) for row in TABLE}
    values["public_url"] = values["public_url"] or _default_public_url(*values["listen"])
    values["is_media_public_url_given"] = values["media_public_url"] is not None
    values["media_public_url"] = values["media_public_url"] or values["public_url"]
    values["media"] = values["media"] or values["data"] / "media"
    return Settings(**values)


def _value(row: Setting, options: Mapping[str, object], environ: Mapping[str, str]) -> object:
    texts = _texts(row, options, environ)
    try:
        if row.is_repeatable:
            return tuple(row.parse(text) for text in texts)
        return row.parse(texts[0]) if texts else None
    except ValueError as error:
        raise errors.StartError(f"{_named(row)}: {error}.") from None


def _texts(row: Setting, options: Mapping[str, object], environ: Mapping[str, str]) -> tuple[str, ...]:
    """What was given, by the first that said something: option, environment, default."""
    if row.is_secret:
        return _secret_texts(row, options, environ)
    said = options.get(row.parameter)
    if isinstance(said, (list, tuple)):
        said = tuple(map(str, said)) or None
    elif said is not None:
        said = (str(said),)
    if said is not None:
        return said
    text = environ.get(row.variable, "")
    if text.strip():
        return tuple(re.split(r"[\s,]+", text.strip(" ,\t\n"))) if row.is_repeatable else (text.strip(),)
    return () if row.default is None else (row.default,)


def _secret_texts(row: Setting, options: Mapping[str, object], environ: Mapping[str, str]) -> tuple[str, ...]:
    for value, path in (
        (options.get(row.parameter), options.get(row.file_parameter)),
        (environ.get(row.variable), environ.get(row.file_variable)),
    ):
        if value is not None and path is not None:
            raise errors.StartError(f"{_named(row)}: given both as a value and as a file; give one of them.")
        if path is not None:
            return (_read_secret(row, Path(str(path))),)
        if value is not None:
            return (str(value),)
    return ()


def _read_secret(row: Setting, path: Path) -> str:
    where = f"{row.file_option} ({row.file_variable})"
    try:
        with path.open("rb") as file:
            content = file.read(MAX_SECRET_BYTES)
        return content.decode().strip()
    except OSError as error:
        raise errors.StartError(f"{where}: {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise errors.StartError(f"{where}: {path} does not hold text.") from None


def _named(row: Setting) -> str:
    return f"{row.option} ({row.variable})"


def _listen(text: str) -> tuple[str, int]:
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9.-]+)):(\d{1,5})", text, re.ASCII)
    if match is None or int(match.group(3)) > 65_535:
        raise ValueError(f"{text!r} is not an address and port; write one such as 127.0.0.1:8080 or [::1]:8080")
    host = match.group(1) or match.group(2)
    if (match.group(1) or re.search(r"(^|\.)\d+\.?$", host)) and _address(host) is None:
        raise ValueError(f"{host!r} is not an IP address; write one such as 127.0.0.1 or [::1], or a host name")
    return host, int(match.group(3))


def _default_public_url(host: str, port: int) -> str:
    address = _address(host)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address is not None and (address.is_unspecified or address.is_global):
        raise errors.StartError(
            f"--listen (WAVE_GATEWAY_LISTEN): {host} is reachable from elsewhere, so clients need an address; "
            "give --public-url (WAVE_GATEWAY_PUBLIC_URL) too, such as https://wave.example.com."
        )
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _url(text: str) -> str:
    right = "write http:// or https:// and a host, and a port if need be, such as https://wave.example.com"
    # What stands before an @ or behind a ? may be a password or a token.
    said = "the text that was given (not shown here)" if re.search(r"[@?#]", text) else repr(text)
    if re.fullmatch(r"[!-~]+", text) is None:
        raise ValueError(f"{said} is not a URL; {right}")
    try:
        parts = urllib.parse.urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError(f"{said} is not a URL; {right}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or "\\" in text:
        raise ValueError(f"{said} is not a URL that can be used here; {right}")
    if parts.path.strip("/") or "?" in text or "#" in text:
        raise ValueError(f"{said} has a path, a query or a fragment; {right}")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" if port is None else f"{parts.scheme}://{host}:{port}"


def _path(text: str) -> Path:
    if not text or not text.isprintable():
        raise ValueError(f"{text!r} is not a path; write one")
    return Path(text)


def _media(text: str) -> Path:
    if "://" in text:
        raise ValueError(f"{text.partition('://')[0]}:// is not available yet; write the path of a directory")
    return _path(text)


def _database(text: str) -> str:
    if text.startswith(("postgresql:", "postgres:")):
        raise ValueError("PostgreSQL is not available yet; write sqlite, which lies in --data")
    if text != "sqlite":
        raise ValueError(f"{text!r} is no database; write sqlite, which lies in --data")
    return text


def _workers(text: str) -> int:
    if text != "1":
        raise ValueError(f"{text!r} will not do; write 1, since several processes need PostgreSQL: not available yet")
    return 1


def _token(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty; give a long random text, or leave it out")
    if re.fullmatch(r"[!-~]+", text) is None:
        raise ValueError("holds a space or a character outside ASCII (not shown here); give a long random text")
    return text


def _network(text: str) -> Network:
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is not a network; write one such as 10.1.0.0/16, with zeros after the prefix"
        ) from None
    if network.prefixlen == 0:
        raise ValueError(f"{text!r} is every address; write the private networks that are meant")
    return network


def _ca_bundle(text: str) -> Path:
    path = _path(text)
    if not path.is_file():
        raise ValueError(f"{text!r} is not a file; write the path of a PEM file")
    return path


def _duration(least_s: int) -> Callable[[str], int]:
    def parse_duration(text: str) -> int:
        seconds = units.parse_duration(text)
        if not least_s <= seconds <= 86_400:
            raise ValueError(f"{text} is out of range; write {least_s}s to 1d")
        return seconds

    return parse_duration


def _body_size(text: str) -> int:
    size = units.parse_size(text)
    if not 1 << 10 <= size <= 64 << 20:
        raise ValueError(f"{text} is out of range; write 1KiB to 64MiB")
    return size


def _switch(text: str) -> bool:
    if text.lower() in ("on", "true", "yes", "1"):
        return True
    if text.lower() in ("off", "false", "no", "0"):
        return False
    raise ValueError(f"{text!r} is neither; write on or off")


def _choice(kind: type[LogFormat] | type[LogLevel]) -> Callable[[str], object]:
    def parse_choice(text: str) -> object:
        try:
            return kind(text.lower())
        except ValueError:
            raise ValueError(f"{text!r} is unknown; write one of {', '.join(kind)}") from None

    return parse_choice


TABLE: Final = (
    Setting(
        name="listen",
        kind="HOST:PORT",
        parse=_listen,
        default="127.0.0.1:8080",
        help="Address and port to serve on. A wildcard or public address needs --public-url.",
    ),
    Setting(
        name="internal-listen",
        kind="HOST:PORT",
        parse=_listen,
        default_help="none",
        help="A second address, for health and metrics only; they stay on --listen too.",
    ),
    Setting(
        name="public-url",
        kind="URL",
        parse=_url,
        default_help="http:// and --listen",
        help="Where clients reach the gateway.",
    ),
    Setting(
        name="media-public-url",
        kind="URL",
        parse=_url,
        default_help="--public-url",
        help="Where clients reach media. This host is burnt into their databases: choose one that stays.",
    ),
    Setting(
        name="upstream",
        kind="URL",
        parse=_url,
        default="https://www.qingbo.dev",
        help="The Wave task API, without a path.",
    ),
    Setting(
        name="upstream-idempotency",
        kind="on|off",
        parse=_switch,
        default="on",
        help="Whether the upstream knows a repeated submit by its Idempotency-Key; if not, a lost answer is never "
        "asked for again and waits for `tasks resolve`.",
        is_switch=True,
    ),
    Setting(
        name="upstream-callbacks",
        kind="on|off",
        parse=_switch,
        default="off",
        help="Give the upstream a URL under --public-url to call when a task has ended, so that it is polled at once; "
        "without it tasks are polled on a schedule only.",
        is_switch=True,
    ),
    Setting(name="policies", kind="DIR", parse=_path, default="./policies", help="Directory of the policy files."),
    Setting(
        name="data",
        kind="DIR",
        parse=_path,
        default="./data",
        help="Database, result cache and media: the only place written to.",
    ),
    Setting(
        name="database",
        kind="sqlite",
        parse=_database,
        default="sqlite",
        help="Where the ledger is kept: sqlite, in --data.",
    ),
    Setting(
        name="media", kind="DIR", parse=_media, default_help="media/ in --data", help="Directory of the kept media."
    ),
    Setting(name="workers", kind="1", parse=_workers, default="1", help="Processes; more than 1 is not available yet."),
    Setting(
        name="metrics-token",
        kind="TOKEN",
        parse=_token,
        default_help="none: /metrics answers loopback peers without forwarding headers only",
        help="Bearer token for /metrics.",
        is_secret=True,
    ),
    Setting(
        name="submit-deadline",
        kind="DURATION",
        parse=_duration(1),
        default="2m",
        unit="s",
        help="How long a submit is kept for an unavailable upstream.",
    ),
    Setting(
        name="max-wait",
        kind="DURATION",
        parse=_duration(0),
        default="55s",
        unit="s",
        help="The longest `Prefer: wait`; keep it below the timeout of a proxy in front, often 60s.",
    ),
    Setting(
        name="mirror-patience",
        kind="DURATION",
        parse=_duration(0),
        default="20s",
        unit="s",
        help="How long a finished task waits for its media to be stored before it shows the upstream's URL.",
    ),
    Setting(
        name="min-free",
        kind="SIZE",
        parse=units.parse_size,
        default="2GiB",
        unit="bytes",
        help="Free disk below which mirroring stops, before the ledger starves.",
    ),
    Setting(
        name="max-body",
        kind="SIZE",
        parse=_body_size,
        default="1MiB",
        unit="bytes",
        help="The largest request body.",
    ),
    Setting(
        name="allow-private",
        kind="CIDR",
        parse=_network,
        default_help="none",
        help="A private network that media downloads may reach, plain http and any port included. "
        "Repeatable; in the environment separated by commas or spaces.",
        is_repeatable=True,
    ),
    Setting(
        name="egress-proxy",
        kind="URL",
        parse=tunnel.parse,
        default_help="none: https leaves directly",
        help="Proxy through which https to the upstream, to media and to webhooks leaves, by CONNECT. May hold "
        "user:password@, which are sent as Basic; --allow-private networks and plain http are reached directly.",
        is_secret=True,
    ),
    Setting(
        name="ca-bundle",
        kind="FILE",
        parse=_ca_bundle,
        default_help="the system's",
        help="PEM file of the certificate authorities to trust.",
    ),
    Setting(
        name="drain",
        kind="DURATION",
        parse=_duration(0),
        default="20s",
        unit="s",
        help="How long a stop waits for what is in flight.",
    ),
    Setting(
        name="traces",
        kind="on|off",
        parse=_switch,
        default="off",
        help="Export OpenTelemetry traces, as the OTEL_* variables say; needs the extra `otel`.",
        is_switch=True,
    ),
    Setting(
        name="log-format",
        kind="FORMAT",
        parse=_choice(LogFormat),
        default="console",
        help="How log lines look.",
        choices=tuple(LogFormat),
    ),
    Setting(
        name="log-level",
        kind="LEVEL",
        parse=_choice(LogLevel),
        default="info",
        help="The least severe lines that are logged.",
        choices=tuple(LogLevel),
    ),
    Setting(
        name="log-content",
        kind="on|off",
        parse=_switch,
        default="off",
        help="Log prompts and the upstream's signed URLs too, which no level does; never keys.",
        is_switch=True,
    ),
)
"""Every setting of `serve`, in the order of the help."""
