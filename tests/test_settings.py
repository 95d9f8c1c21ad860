"""The table of settings, and what each accepts."""

from __future__ import annotations

import dataclasses
import ipaddress
from pathlib import Path

import pytest

from gateway import errors, settings

WIDE = {"public_url": "https://wave.example.com"}


def refusal(options=None, environ=None) -> str:
    with pytest.raises(errors.StartError) as caught:
        settings.parse(options or {}, environ or {})
    return str(caught.value)


def test_without_options_the_defaults_of_the_interface_hold():
    assert settings.parse({}, {}) == settings.Settings(
        listen=("127.0.0.1", 8080),
        internal_listen=None,
        public_url="http://127.0.0.1:8080",
        media_public_url="http://127.0.0.1:8080",
        is_media_public_url_given=False,
        upstream="https://www.qingbo.dev",
        upstream_idempotency=True,
        upstream_callbacks=False,
        policies=Path("policies"),
        data=Path("data"),
        database="sqlite",
        media=Path("data/media"),
        workers=1,
        metrics_token=None,
        submit_deadline_s=120,
        max_wait_s=55,
        mirror_patience_s=20,
        min_free_bytes=2_147_483_648,
        max_body_bytes=1_048_576,
        allow_private=(),
        egress_proxy=None,
        ca_bundle=None,
        drain_s=20,
        traces=False,
        log_format=settings.LogFormat.CONSOLE,
        log_level=settings.LogLevel.INFO,
        log_content=False,
    )


def test_every_field_is_filled_by_a_row_and_every_row_fills_one():
    fields = {field.name for field in dataclasses.fields(settings.Settings)} - {"is_media_public_url_given"}
    assert {row.field for row in settings.TABLE} == fields
    assert len(settings.TABLE) == 26


def test_every_row_says_what_it_is_and_what_holds_without_it():
    for row in settings.TABLE:
        assert row.help.endswith("."), row.name
        assert row.kind, row.name
        assert (row.default is None) == bool(row.default_help), row.name


def test_a_row_knows_its_names():
    row = next(row for row in settings.TABLE if row.is_secret)
    assert (row.option, row.variable, row.parameter) == (
        "--metrics-token",
        "WAVE_GATEWAY_METRICS_TOKEN",
        "metrics_token",
    )
    assert (row.file_option, row.file_variable, row.file_parameter) == (
        "--metrics-token-file",
        "WAVE_GATEWAY_METRICS_TOKEN_FILE",
        "metrics_token_file",
    )


def test_an_option_beats_the_environment_which_beats_the_default():
    environ = {"WAVE_GATEWAY_MAX_WAIT": "30s", "WAVE_GATEWAY_DRAIN": "5s"}
    found = settings.parse({"max_wait": "10s", "drain": None}, environ)
    assert (found.max_wait_s, found.drain_s, found.mirror_patience_s) == (10, 5, 20)


def test_an_empty_variable_is_an_unset_one():
    assert settings.parse({}, {"WAVE_GATEWAY_MAX_WAIT": " "}).max_wait_s == 55


def test_a_parameter_that_is_no_setting_is_a_mistake_of_the_caller():
    with pytest.raises(KeyError, match="max_weight"):
        settings.parse({"max_weight": "1"}, {})


@pytest.mark.parametrize(
    ("text", "listen", "public_url"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080), "http://127.0.0.1:8080"),
        ("[::1]:8080", ("::1", 8080), "http://[::1]:8080"),
        ("localhost:0", ("localhost", 0), "http://localhost:0"),
        ("10.0.0.5:65535", ("10.0.0.5", 65535), "http://10.0.0.5:65535"),
        ("gateway.internal:80", ("gateway.internal", 80), "http://gateway.internal:80"),
    ],
)
def test_a_local_address_is_its_own_public_url(text, listen, public_url):
    found = settings.parse({"listen": text}, {})
    assert (found.listen, found.public_url, found.media_public_url) == (listen, public_url, public_url)


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "[::ffff:0.0.0.0]", "[::ffff:8.8.8.8]", "8.8.8.8", "[2600::1]"])
def test_a_wildcard_or_public_address_needs_a_public_url(host):
    message = refusal({"listen": f"{host}:8080"})
    assert message.startswith("--listen (WAVE_GATEWAY_LISTEN): ")
    assert "give --public-url (WAVE_GATEWAY_PUBLIC_URL) too" in message
    found = settings.parse({"listen": f"{host}:8080"} | WIDE, {})
    assert found.public_url == "https://wave.example.com"


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("", "is not an address and port"),
        ("8080", "is not an address and port"),
        (":8080", "is not an address and port"),
        ("*:8080", "is not an address and port"),
        ("::1:8080", "is not an address and port"),
        ("127.0.0.1:65536", "is not an address and port"),
        ("127.0.0.1:http", "is not an address and port"),
        ("0:8080", "is not an IP address"),
        ("127.1:8080", "is not an IP address"),
        ("127.0.0.256:8080", "is not an IP address"),
        ("[1::2::3]:8080", "is not an IP address"),
    ],
)
def test_anything_else_is_no_address_to_listen_on(text, fragment):
    message = refusal({"listen": text} | WIDE)
    assert message.startswith("--listen (WAVE_GATEWAY_LISTEN): ")
    assert fragment in message


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://wave.example.com", "https://wave.example.com"),
        ("https://wave.example.com/", "https://wave.example.com"),
        ("HTTPS://Wave.Example.com:8443//", "https://wave.example.com:8443"),
        ("http://[::1]:9000", "http://[::1]:9000"),
    ],
)
def test_a_url_is_kept_without_a_slash_at_its_end(text, url):
    found = settings.parse({"public_url": text, "upstream": text}, {})
    assert (found.public_url, found.upstream, found.media_public_url) == (url, url, url)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("", "is not a URL"),
        ("wave.example.com", "is not a URL that can be used here"),
        ("ftp://wave.example.com", "is not a URL that can be used here"),
        ("https://", "is not a URL that can be used here"),
        ("https://:8080", "is not a URL that can be used here"),
        ("https://user@wave.example.com", "is not a URL that can be used here"),
        ("https://wave.example.com\\x", "is not a URL that can be used here"),
        ("https://wave.example.com:99999", "is not a URL"),
        ("https://[::1", "is not a URL"),
        ("https://wave example.com", "is not a URL"),
        ("https://bücher.example", "is not a URL"),
        ("https://wave.example.com/v1", "has a path, a query or a fragment"),
        ("https://wave.example.com/?", "has a path, a query or a fragment"),
        ("https://wave.example.com#top", "has a path, a query or a fragment"),
    ],
)
@pytest.mark.parametrize("name", ["public-url", "media-public-url", "upstream"])
def test_anything_else_is_no_url(name, text, fragment):
    message = refusal({name.replace("-", "_"): text})
    assert message.startswith(f"--{name} (WAVE_GATEWAY_{name.upper().replace('-', '_')}): ")
    assert fragment in message
    assert "write http:// or https:// and a host" in message


@pytest.mark.parametrize(
    "text",
    [
        "https://name:canary@wave.example.com",
        "https://canary@wave.example.com:99999",
        "https://wave.example.com/?key=canary",
        "https://wave.example.com/#canary",
        "https://wave.example.com/?key=canary two",
    ],
)
def test_a_url_that_is_refused_and_may_hold_a_secret_is_not_shown(text):
    message = refusal({"upstream": text})
    assert "the text that was given (not shown here)" in message
    assert "canary" not in message


def test_media_have_a_url_of_their_own_if_it_is_given():
    found = settings.parse(WIDE, {"WAVE_GATEWAY_MEDIA_PUBLIC_URL": "https://media.example.com/"})
    assert found.media_public_url == "https://media.example.com"
    assert found.is_media_public_url_given


def test_media_lie_in_the_data_directory_unless_said_otherwise():
    assert settings.parse({"data": "/srv/wave"}, {}).media == Path("/srv/wave/media")
    assert settings.parse({"data": "/srv/wave", "media": "/mnt/pictures"}, {}).media == Path("/mnt/pictures")


@pytest.mark.parametrize(
    ("name", "text", "fragment"),
    [
        ("media", "s3://bucket/wave", "s3:// is not available yet; write the path of a directory"),
        ("media", "", "is not a path"),
        ("data", "a\0b", "is not a path"),
        ("database", "postgresql://db/wave", "PostgreSQL is not available yet; write sqlite"),
        ("database", "postgres://u:secret@db/wave", "PostgreSQL is not available yet; write sqlite"),
        ("database", "mysql", "'mysql' is no database; write sqlite"),
        ("workers", "2", "write 1, since several processes need PostgreSQL"),
        ("submit_deadline", "0s", "is out of range; write 1s to 1d"),
        ("submit_deadline", "2d", "is out of range; write 1s to 1d"),
        ("submit_deadline", "120", "is not a duration"),
        ("max_wait", "1 minute", "is not a duration"),
        ("drain", "-1s", "is not a duration"),
        ("min_free", "2", "is not a size"),
        ("max_body", "0B", "is out of range; write 1KiB to 64MiB"),
        ("max_body", "65MiB", "is out of range; write 1KiB to 64MiB"),
        ("allow_private", ["10.0.0.1/8"], "is not a network; write one such as 10.1.0.0/16"),
        ("allow_private", ["10.0.0.0/8", "home"], "'home' is not a network"),
        ("allow_private", ("::/0",), "is every address"),
        ("ca_bundle", "nowhere.pem", "'nowhere.pem' is not a file"),
        ("log_format", "xml", "'xml' is unknown; write one of console, json"),
        ("log_level", "loud", "'loud' is unknown; write one of debug, info, warning, error"),
    ],
)
def test_a_wrong_value_is_refused_under_its_names(name, text, fragment):
    message = refusal({name: text})
    assert message.startswith(f"--{name.replace('_', '-')} (WAVE_GATEWAY_{name.upper()}): ")
    assert fragment in message
    assert "secret" not in message


def test_zero_seconds_are_a_choice_where_nothing_need_be_waited_for():
    found = settings.parse({"max_wait": "0s", "mirror_patience": "0s", "drain": "0s", "min_free": "0B"}, {})
    assert (found.max_wait_s, found.mirror_patience_s, found.drain_s, found.min_free_bytes) == (0, 0, 0, 0)


def test_networks_come_as_repeated_options_or_as_one_list_in_the_environment():
    networks = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8"))
    assert settings.parse({"allow_private": ("10.0.0.0/8", "fd00::/8")}, {}).allow_private == networks
    assert settings.parse({"allow_private": "10.0.0.0/8"}, {}).allow_private == networks[:1]
    environ = {"WAVE_GATEWAY_ALLOW_PRIVATE": " 10.0.0.0/8, fd00::/8 "}
    assert settings.parse({"allow_private": ()}, environ).allow_private == networks
    environ = {"WAVE_GATEWAY_ALLOW_PRIVATE": "10.0.0.0/8 fd00::/8"}
    assert settings.parse({}, environ).allow_private == networks


def test_words_are_read_without_case(tmp_path):
    bundle = tmp_path / "ca.pem"
    bundle.write_text("-----BEGIN CERTIFICATE-----")
    found = settings.parse({"log_format": "JSON", "log_level": "Warning", "ca_bundle": str(bundle), "workers": 1}, {})
    assert (found.log_format, found.log_level) == (settings.LogFormat.JSON, settings.LogLevel.WARNING)
    assert (found.ca_bundle, found.workers) == (bundle, 1)


@pytest.mark.parametrize(("text", "value"), [("on", True), ("True", True), ("1", True), ("OFF", False), ("no", False)])
def test_a_switch_is_read_from_the_environment_and_an_option_beats_it(text, value):
    environ = {"WAVE_GATEWAY_UPSTREAM_IDEMPOTENCY": text}
    assert settings.parse({}, environ).upstream_idempotency is value
    assert settings.parse({"upstream_idempotency": not value}, environ).upstream_idempotency is not value


def test_a_switch_that_is_neither_on_nor_off_is_refused():
    with pytest.raises(errors.StartError, match="'maybe' is neither; write on or off"):
        settings.parse({}, {"WAVE_GATEWAY_UPSTREAM_IDEMPOTENCY": "maybe"})


def test_the_metrics_token_comes_from_an_option_a_variable_or_a_file(tmp_path):
    file = tmp_path / "token"
    file.write_text("from-a-file\n")
    environ = {"WAVE_GATEWAY_METRICS_TOKEN": "from-the-environment"}
    in_file = {"WAVE_GATEWAY_METRICS_TOKEN_FILE": str(file)}
    assert settings.parse({"metrics_token": "from-an-option"}, environ).metrics_token == "from-an-option"
    assert settings.parse({"metrics_token_file": file}, environ).metrics_token == "from-a-file"
    assert settings.parse({}, environ).metrics_token == "from-the-environment"
    assert settings.parse({}, in_file).metrics_token == "from-a-file"


def test_a_secret_is_in_no_representation():
    assert "hush" not in repr(settings.parse({"metrics_token": "hush"}, {}))


@pytest.mark.parametrize("given", [{"metrics_token": ""}, {"metrics_token": "  "}])
def test_an_empty_metrics_token_is_refused(given):
    assert refusal(given) == (
        "--metrics-token (WAVE_GATEWAY_METRICS_TOKEN): is empty; give a long random text, or leave it out."
    )


def test_an_empty_metrics_token_in_the_environment_is_refused_too(tmp_path):
    (tmp_path / "token").write_text("\n")
    assert "is empty" in refusal({}, {"WAVE_GATEWAY_METRICS_TOKEN": ""})
    assert "is empty" in refusal({}, {"WAVE_GATEWAY_METRICS_TOKEN_FILE": str(tmp_path / "token")})


def test_a_metrics_token_that_no_header_carries_is_refused_unseen():
    message = refusal({"metrics_token": "hush hush"})
    assert "holds a space" in message
    assert "hush" not in message


def test_a_secret_both_as_value_and_as_file_is_refused():
    assert "given both as a value and as a file" in refusal({"metrics_token": "a", "metrics_token_file": "b"})


def test_a_secret_file_that_cannot_be_read_is_named(tmp_path):
    missing = str(tmp_path / "missing")
    message = refusal({}, {"WAVE_GATEWAY_METRICS_TOKEN_FILE": missing})
    assert message == (
        f"--metrics-token-file (WAVE_GATEWAY_METRICS_TOKEN_FILE): {missing} cannot be read: No such file or directory."
    )
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert "does not hold text" in refusal({"metrics_token_file": tmp_path / "binary"})
