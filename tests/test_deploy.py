"""The stack of deploy/: what its files name exists, nothing is open that need not be, and the demonstration is one."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from deploy import credentials, traffic
from gateway import cli, errors, policy_files, settings, simulator, wire
from gateway.edge import admin
from gateway.rules import policy

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PROMETHEUS = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))
SCRAPE = PROMETHEUS["scrape_configs"][0]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
DASHBOARDS = {path.name: json.loads(path.read_bytes()) for path in (ROOT / "grafana").glob("**/*.json")}
OURS = {"credentials", "gateway", "simulator", "traffic"}
ONCE = {"credentials"}

VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")


def filled(text: str, **given: str) -> str:
    """A text of compose.yaml as Compose fills it in."""
    return VARIABLE.sub(lambda match: given.get(match[1]) or match[2], text)


def env_file(name: str) -> dict[str, str]:
    lines = (DEPLOY / name).read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def image_environ() -> dict[str, str]:
    block = re.search(r"^ENV (PATH=.*?[^\\])$", DOCKERFILE, flags=re.DOTALL | re.MULTILINE)
    assert block is not None
    return dict(word.split("=", 1) for word in block[1].replace("\\\n", " ").split())


def mounts(service: str) -> dict[str, str]:
    """Path in the container -> what is mounted there: a volume's name, or a path from deploy/."""
    pairs = [filled(each).split(":") for each in SERVICES[service].get("volumes", [])]
    return {pair[1]: pair[0] for pair in pairs}


# The services


def test_there_are_these_services_and_the_simulator_comes_with_the_demonstration_only():
    assert {name: each.get("profiles", []) for name, each in SERVICES.items()} == {
        "credentials": [],
        "gateway": [],
        "prometheus": [],
        "grafana": [],
        "simulator": ["demo"],
        "traffic": ["demo"],
    }


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_can_write_to_its_volumes_only_and_gains_nothing(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges"]
    assert service["pids_limit"] and service["mem_limit"]
    assert not {"privileged", "cap_add", "devices", "pid", "ipc"} & service.keys()
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert service["restart"] == ("no" if name in ONCE else "unless-stopped")
    assert ("user" in service) == (name in ONCE)


def test_ports_are_open_to_this_machine_only():
    ports = {name: [filled(port) for port in each.get("ports", [])] for name, each in SERVICES.items()}
    assert {name: found for name, found in ports.items() if found} == {
        "gateway": ["127.0.0.1:8080:8080"],
        "prometheus": ["127.0.0.1:9090:9090"],
        "grafana": ["127.0.0.1:3000:3000"],
    }


def test_images_of_others_are_pinned_and_ours_is_built_once_before_whoever_needs_it():
    for name in SERVICES.keys() - OURS:
        assert re.fullmatch(r"docker\.io/(prom/prometheus:v|grafana/grafana:)\d+\.\d+\.\d+", SERVICES[name]["image"])
        assert "build" not in SERVICES[name]
    for name in OURS:
        assert SERVICES[name]["image"] == "wave-gateway"
        assert ("build" in SERVICES[name]) == (name == "credentials")
        assert SERVICES[name].get("pull_policy") == (None if name == "credentials" else "never")
    assert (DEPLOY / SERVICES["credentials"]["build"]["context"] / "Dockerfile").is_file()
    waits = {name: each.get("depends_on", []) for name, each in SERVICES.items()}
    finished = {"credentials": {"condition": "service_completed_successfully"}}
    assert waits == {
        "credentials": [],
        "gateway": finished,
        "prometheus": finished,
        "grafana": finished,
        "simulator": finished,
        "traffic": ["gateway", "simulator"],
    }


def test_what_serves_is_asked_whether_it_is_well_and_the_rest_is_not():
    asked = {name for name, each in SERVICES.items() if each["healthcheck"].get("disable") is not True}
    assert asked == {"gateway", "prometheus", "grafana", "simulator"}
    for name in asked:
        assert SERVICES[name]["healthcheck"].keys() == {"test", "interval", "timeout", "start_period", "retries"}


def test_the_gateway_has_longer_to_stop_than_its_drain():
    assert settings.parse({}, {}).drain_s == 20
    assert SERVICES["gateway"]["stop_grace_period"] == "30s"


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_mounted_exists_and_is_not_written_to(name):
    for each in SERVICES[name].get("volumes", []):
        source, _, mode = (*filled(each).split(":"), "rw")[:3]
        if source.startswith("."):
            assert (DEPLOY / source).exists(), source
            assert mode == "ro", each
        else:
            assert source in COMPOSE["volumes"], source


def test_every_volume_is_used():
    used = {source for name in SERVICES for source in mounts(name).values()}
    assert {source for source in used if not source.startswith(".")} == set(COMPOSE["volumes"])


def test_the_secrets_lie_where_they_are_looked_for_and_only_those_who_need_them_see_them():
    seen = {name: {source for source in mounts(name).values() if source.endswith("-credentials")} for name in SERVICES}
    assert {name: found for name, found in seen.items() if found} == {
        "credentials": {"metrics-credentials", "grafana-credentials"},
        "gateway": {"metrics-credentials"},
        "prometheus": {"metrics-credentials"},
        "grafana": {"grafana-credentials"},
    }
    for name, place in (("gateway", "/run/metrics"), ("prometheus", "/run/metrics"), ("grafana", "/run/grafana")):
        assert mounts(name)[place] == mounts("credentials")[place]
    assert SERVICES["gateway"]["environment"]["WAVE_GATEWAY_METRICS_TOKEN_FILE"] == "/run/metrics/metrics-token"
    assert SCRAPE["authorization"] == {"credentials_file": "/run/metrics/metrics-token"}
    shown = SERVICES["grafana"]["environment"]
    assert shown["GF_SECURITY_ADMIN_PASSWORD__FILE"] == "/run/grafana/admin-password"
    assert shown["GF_AUTH_ANONYMOUS_ENABLED__FILE"] == "/run/grafana/anonymous"
    assert shown["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert not {"GF_SECURITY_ADMIN_PASSWORD", "GF_AUTH_ANONYMOUS_ENABLED"} & shown.keys()


# What our own programs are told


def environ_of_gateway(name: str) -> dict[str, str]:
    return image_environ() | env_file(name) | SERVICES["gateway"]["environment"]


@pytest.mark.parametrize("name", ["demo.env", "wave.env.example"])
def test_the_gateway_takes_the_settings_it_is_given(name, tmp_path):
    environ = environ_of_gateway(name)
    known = {variable for row in settings.TABLE for variable in (row.variable, row.file_variable)}
    assert {each for each in environ if each.startswith("WAVE_GATEWAY_")} <= known
    (tmp_path / "token").write_text("a-token")
    found = settings.parse({}, environ | {"WAVE_GATEWAY_METRICS_TOKEN_FILE": str(tmp_path / "token")})
    assert (found.listen, found.internal_listen) == (("0.0.0.0", 8080), ("0.0.0.0", 8081))
    assert (found.data, found.policies) == (Path("/data"), Path("/policies"))
    assert found.metrics_token == "a-token"
    assert {"/data", "/policies"} <= mounts("gateway").keys()


def test_only_the_demonstration_has_the_simulator_for_its_upstream():
    demonstration, earnest = env_file("demo.env"), env_file("wave.env.example")
    assert demonstration["WAVE_GATEWAY_UPSTREAM"] == "http://simulator:9000"
    assert "WAVE_GATEWAY_UPSTREAM" not in earnest and "WAVE_GATEWAY_ALLOW_PRIVATE" not in earnest
    assert settings.parse({}, {}).upstream == "https://www.qingbo.dev"
    assert "WAVE_GATEWAY_UPSTREAM" not in SERVICES["gateway"]["environment"]
    assert "WAVE_GATEWAY_PUBLIC_URL" not in SERVICES["gateway"]["environment"]  # without one it refuses to start


def test_the_env_file_for_earnest_names_what_compose_asks_for_and_keeps_its_ledger_apart():
    asked = dict(VARIABLE.findall((DEPLOY / "compose.yaml").read_text(encoding="utf-8")))
    earnest = env_file("wave.env.example")
    others = {name for name in earnest if not name.startswith("WAVE_")}
    assert others == asked.keys() | {"COMPOSE_PROJECT_NAME"}
    assert earnest["COMPOSE_PROJECT_NAME"] != DEPLOY.name  # a project without a name is called after its directory
    assert earnest["GATEWAY_ENV"] == "wave.env"
    assert asked["GATEWAY_ENV"] == credentials.DEMONSTRATION == "demo.env"
    assert "wave.env\n" in (ROOT / ".gitignore").read_text(encoding="utf-8")


def test_the_simulator_is_started_by_a_command_that_exists():
    words = SERVICES["simulator"]["command"]
    command = cli.cli.commands[words[0]]
    assert isinstance(command, click.Command)
    parsed = command.make_context("simulate", words[1:]).params
    assert (parsed["host"], parsed["port"]) == ("0.0.0.0", 9000)


def test_the_traffic_is_started_by_words_that_it_takes_and_asks_services_that_exist():
    words = traffic.parse(SERVICES["traffic"]["command"])
    assert (words.gateway, words.simulator, words.per_second) == ("http://gateway:8080", "http://simulator:9000", 1.0)


# Prometheus and Grafana


def test_prometheus_scrapes_the_internal_address_under_the_name_that_the_alerts_look_for():
    (target,) = SCRAPE["static_configs"][0]["targets"]
    assert (SCRAPE["job_name"], target) == ("wave-gateway", "gateway:8081")
    assert SERVICES["gateway"]["environment"]["WAVE_GATEWAY_INTERNAL_LISTEN"] == "0.0.0.0:8081"
    assert SCRAPE["metrics_path"] in served_internally()


def served_internally() -> set[str]:
    async def nothing(*_: object) -> Any:
        raise AssertionError("nobody asks")

    return {route.path for route in admin.routes(scrape=nothing, is_ready=nothing, metrics_token=None)}


def test_prometheus_reads_the_configuration_and_the_rules_that_are_mounted_and_keeps_a_year():
    places = mounts("prometheus")
    options = dict(word.removeprefix("--").split("=", 1) for word in SERVICES["prometheus"]["command"])
    assert places[options["config.file"]] == "./prometheus.yml"
    assert places[options["storage.tsdb.path"]] == "prometheus-data"
    assert options["storage.tsdb.retention.time"] == "400d"
    (pattern,) = PROMETHEUS["rule_files"]
    directory, _, glob = pattern.rpartition("/")
    rules = sorted((DEPLOY / places[directory]).glob(glob))
    assert [path.name for path in rules] == ["alerts.yaml", "recording.yaml"]


def test_grafana_finds_its_datasource_and_knows_how_often_it_is_scraped():
    (path,) = (DEPLOY / mounts("grafana")["/etc/grafana/provisioning/datasources"]).iterdir()
    (datasource,) = yaml.safe_load(path.read_text(encoding="utf-8"))["datasources"]
    assert (datasource["type"], datasource["url"], datasource["isDefault"]) == (
        "prometheus",
        "http://prometheus:9090",
        True,
    )
    assert datasource["jsonData"]["timeInterval"] == PROMETHEUS["global"]["scrape_interval"] == "15s"


def test_grafana_finds_the_dashboards_and_begins_with_the_spend():
    (path,) = (DEPLOY / mounts("grafana")["/etc/grafana/provisioning/dashboards"]).iterdir()
    (provider,) = yaml.safe_load(path.read_text(encoding="utf-8"))["providers"]
    directory = provider["options"]["path"]
    assert (DEPLOY / mounts("grafana")[directory]).resolve() == ROOT / "grafana"
    home = Path(SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert home.parent == Path(directory)
    assert DASHBOARDS[home.name]["uid"] == "wave-spend"


def test_every_json_file_that_grafana_reads_is_a_dashboard_for_any_prometheus():
    assert {each["uid"] for each in DASHBOARDS.values()} == {"wave-spend", "wave-traffic", "wave-media"}
    for each in DASHBOARDS.values():
        (variable,) = [found for found in each["templating"]["list"] if found["type"] == "datasource"]
        assert (variable["name"], variable["query"]) == ("datasource", "prometheus")


# The demonstration's policies and traffic


def test_the_demonstrations_policies_load_and_its_prices_are_those_of_init():
    policies = policy_files.load(DEPLOY / "policies")
    assert set(policies.teams) == {"brand", "growth", "intern", "research"}
    assert (DEPLOY / "policies" / "models.yaml").read_bytes() == (ROOT / "gateway/starter/models.yaml").read_bytes()


def test_the_keys_of_the_traffic_are_those_that_the_policies_list():
    policies = policy_files.load(DEPLOY / "policies")
    listed = {digest for team in policies.teams.values() for key in team.keys for digest in key.sha256}
    assert {hashlib.sha256(key.encode()).digest() for key in traffic.KEYS.values()} == listed


def test_the_demonstrations_upstream_key_is_the_one_its_gateway_is_given():
    texts = [path.read_text(encoding="utf-8") for path in (DEPLOY / "policies" / "teams").iterdir()]
    assert all("\nupstream_key: env:WAVE_DEMO_KEY\n" in text for text in texts)
    assert "WAVE_DEMO_KEY" in env_file("demo.env")


def decision(who: str, **change: Any) -> str:
    """`allow`, or the code of the refusal, of what somebody of the traffic asks for."""
    policies = policy_files.load(DEPLOY / "policies")
    body = {"model": traffic.MODELS[who][0], "prompt": "a fox", "seed": 7} | change
    try:
        request = wire.parse_submit(json.dumps(body).encode())
    except errors.CallerError as error:
        return error.code
    decided = policy.decide(policies, policies.teams[who.split("/")[0]], request, fullness=Fraction(0))
    return "allow" if isinstance(decided, policy.Allow) else decided.code


def test_what_the_traffic_asks_for_is_allowed():
    asked = [(who, model) for who, models in traffic.MODELS.items() for model in models]
    asked += [("brand", "gemini-3-pro-image-preview-official")]
    assert {(who, model): decision(who, model=model) for who, model in asked} == dict.fromkeys(asked, "allow")
    assert decision("research", model="gemini-3.1-flash-image-preview", official_fallback=True) == "allow"


def test_what_the_traffic_wants_denied_is_denied_each_for_another_reason_or_team():
    assert [decision(who, **change) for who, change in traffic.DENIALS] == [
        "model_not_allowed",
        "model_not_allowed",
        "limit_exceeded",
        "capability_violation",
        "action_not_allowed",
        "official_fallback_denied",
        "model_not_allowed",
        "invalid_request",
    ]


def test_the_simulator_takes_the_faults_that_the_traffic_wants():
    assert len(simulator.parse_script([traffic.OUTAGE, *traffic.FAULTS])) == 8


@pytest.mark.parametrize(
    ("elapsed_s", "is_out"),
    [(0, False), (179, False), (180, True), (209, True), (210, False), (1079, False), (1080, True), (1111, False)],
)
def test_the_vendor_is_down_for_half_a_minute_now_and_then(elapsed_s, is_out):
    assert traffic.is_outage(elapsed_s) is is_out


@pytest.mark.parametrize("rate", ["0", "21", "-1"])
def test_a_rate_out_of_bounds_is_refused(rate, capsys):
    with pytest.raises(SystemExit) as ended:
        traffic.parse(["--per-second", rate])
    assert ended.value.code == 2
    assert "write 0.01 to 20" in capsys.readouterr().err


# The secrets


def written(directory: Path, **environ: str) -> dict[str, str]:
    for name in ("metrics", "grafana"):
        (directory / name).mkdir(exist_ok=True)
    credentials.write(directory, environ)
    return {str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*") if path.is_file()}


def test_the_secrets_are_random_readable_by_every_user_and_stay_what_they_are(tmp_path):
    first = written(tmp_path, GATEWAY_ENV="demo.env")
    assert first.keys() == {"metrics/metrics-token", "grafana/admin-password", "grafana/anonymous"}
    assert re.fullmatch(r"[\w-]{43}", first["metrics/metrics-token"])
    assert re.fullmatch(r"[\w-]{43}", first["grafana/admin-password"])
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in first} == {0o444}
    assert written(tmp_path, GATEWAY_ENV="demo.env") == first
    (tmp_path / "metrics" / "metrics-token").unlink()
    again = written(tmp_path, GATEWAY_ENV="demo.env")
    assert again["metrics/metrics-token"] != first["metrics/metrics-token"]
    assert again["grafana/admin-password"] == first["grafana/admin-password"]


def test_dashboards_are_shown_without_a_login_in_the_demonstration_only(tmp_path):
    assert written(tmp_path, GATEWAY_ENV="demo.env")["grafana/anonymous"] == "true"
    assert written(tmp_path, GATEWAY_ENV="wave.env")["grafana/anonymous"] == "false"
    assert written(tmp_path)["grafana/anonymous"] == "false"


# The image's own check


class _Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == self.server.healthy_path else 503)  # type: ignore[attr-defined]
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.mark.parametrize(("healthy_path", "code"), [("/healthz", 0), ("/nowhere", 1)])
def test_the_images_health_check_asks_the_address_that_the_gateway_was_told(healthy_path, code):
    check = re.search(r"^HEALTHCHECK .*? CMD (\[.*?\])$", DOCKERFILE, flags=re.DOTALL | re.MULTILINE)
    assert check is not None
    words = json.loads(check[1].replace("\\\n", ""))
    with http.server.HTTPServer(("127.0.0.1", 0), _Health) as server:
        server.healthy_path = healthy_path  # type: ignore[attr-defined]
        threading.Thread(target=server.handle_request, daemon=True).start()
        environ = os.environ | {"WAVE_GATEWAY_LISTEN": f"0.0.0.0:{server.server_port}"}
        done = subprocess.run([sys.executable, *words[1:]], env=environ, timeout=60, check=False)
    assert (words[0], done.returncode) == ("python", code)


def test_the_image_is_built_of_what_is_there_and_nothing_else_is_sent_to_the_builder():
    lines = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, flags=re.MULTILINE)
    copied = {name for line in lines for name in line.split()}
    let_through = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), flags=re.MULTILINE)
    assert copied == set(let_through)
    assert [name for name in copied if not (ROOT / name).exists()] == []
