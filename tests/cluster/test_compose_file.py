"""docker-compose.yaml is valid, has pinned versions and limits, runs nothing as root, and is configured by .env."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from airflow.configuration import conf
from airflow.providers_manager import ProvidersManager

from tests.cluster.compose_file import FILE, Service, parse, read_services

ROOT = FILE.parent
TEXT = FILE.read_text()
ENV_EXAMPLE = (ROOT / ".env.example").read_text()
SETTINGS = dict(re.findall(r"^([A-Z_]+)=(.*)$", ENV_EXAMPLE, re.MULTILINE))
SECRETS = [name for name in SETTINGS if re.search(r"KEY|SECRET|PASSWORD", name)]
SERVICES = read_services()
AIRFLOW = [service for service in SERVICES.values() if service.name.startswith("airflow-")]

each_service = pytest.mark.parametrize("service", SERVICES.values(), ids=lambda service: service.name)


def check(file: Path) -> subprocess.CompletedProcess[str]:
    checker = Path(sys.executable).parent / "check-jsonschema"
    command = [checker, "--builtin-schema", "vendor.compose-spec", file]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_it_is_a_valid_compose_file() -> None:
    checked = check(FILE)
    assert checked.returncode == 0, checked.stdout


def test_the_schema_detects_a_mistake(tmp_path: Path) -> None:
    wrong = tmp_path / "docker-compose.yaml"
    wrong.write_text(TEXT.replace("healthcheck:", "health_check:", 1))
    assert check(wrong).returncode != 0


def test_it_runs_these_services_with_these_replicas() -> None:
    assert {service.name: service.replicas for service in SERVICES.values()} == {
        "secrets-init": 1,
        "postgres": 1,
        "redis": 1,
        "sandbox": 1,
        "airflow-init": 1,
        "airflow-apiserver": 1,
        "airflow-scheduler": 1,
        "airflow-dag-processor": 1,
        "airflow-worker": 2,
        "airflow-triggerer": 2,
    }


@each_service
def test_the_image_of_a_service_is_pinned_to_one_version(service: Service) -> None:
    name, _, tag = service.image.partition(":")
    assert re.fullmatch(r"(airflow-)?\d+\.\d+\.\d+(-\w+)?|\d+\.\d+-\w+", tag), f"{name}:{tag}"


def test_its_airflow_version_is_the_tested_one() -> None:
    tested = re.search(r"^apache-airflow==(.+)$", (ROOT / "constraints/airflow-3.3.txt").read_text(), re.MULTILINE)
    assert tested is not None
    named = re.findall(r"airflow(?:==|:|-provider-qwenimage:airflow-)(\d+\.\d+\.\d+)", TEXT)
    assert len(named) == 3
    assert set(named) == {tested[1]}


@each_service
def test_a_service_has_no_privileges_and_limited_memory_and_logs(service: Service) -> None:
    assert service.raw["user"].split(":")[0] not in ("", "0", "root")
    assert service.raw["cap_drop"] == ["ALL"]
    assert service.raw["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service.raw
    assert 128 * 2**20 <= service.memory <= 4 * 2**30
    assert set(service.raw["logging"]["options"]) == {"max-size", "max-file"}


@each_service
def test_a_long_running_service_has_a_health_check_and_is_restarted(service: Service) -> None:
    is_long_running = not service.name.endswith("-init")
    assert bool(service.health) == is_long_running
    assert service.raw["restart"] == ("unless-stopped" if is_long_running else "no")


@each_service
def test_a_service_waits_for_healthy_services_and_finished_inits(service: Service) -> None:
    for other, condition in service.conditions.items():
        assert condition == ("service_completed_successfully" if other.endswith("-init") else "service_healthy")
        assert other in SERVICES


def test_every_airflow_service_starts_after_its_dependencies() -> None:
    def needed(name: str) -> set[str]:
        found = set(SERVICES[name].conditions)
        return found.union(*(needed(other) for other in found))

    for name in ("postgres", "redis"):
        assert set(SERVICES[name].conditions) == {"secrets-init"}
    for service in AIRFLOW:
        assert "secrets-init" in needed(service.name)
        if service.name not in ("airflow-init", "airflow-apiserver"):
            assert needed(service.name) >= {"postgres", "sandbox", "airflow-init", "airflow-apiserver"}
        if service.name in ("airflow-scheduler", "airflow-worker"):
            assert "redis" in needed(service.name)


def test_only_the_api_server_is_published_and_only_on_localhost() -> None:
    published = [port for service in SERVICES.values() for port in service.raw.get("ports", [])]
    assert published == ["127.0.0.1:8080:8080"]


def test_every_volume_is_declared_and_used() -> None:
    used = {mount.source for service in SERVICES.values() for mount in service.mounts if mount.is_volume}
    assert used == set(parse()["volumes"])
    bound = [mount for service in SERVICES.values() for mount in service.mounts if not mount.is_volume]
    assert all(mount.read_only and (ROOT / mount.source).is_dir() for mount in bound)


def test_the_env_example_documents_each_setting_with_its_default() -> None:
    defaults = dict(re.findall(r"\$\{([A-Z_]+):-([^}]*)\}", TEXT))
    asked = set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", TEXT))
    assert asked == set(SETTINGS)
    # Without a key, the connection has the sandbox's key and host.
    sandbox = 'sk-sandbox", "host": "http://sandbox:8512'
    assert {name: defaults[name] for name in asked} == SETTINGS | {"QWENIMAGE_API_KEY": sandbox}
    for name in SETTINGS:
        block = next(block for block in ENV_EXAMPLE.split("\n\n") if f"\n{name}=" in block)
        assert block.startswith("# "), name


def test_a_setting_has_the_same_default_everywhere() -> None:
    found: dict[str, set[str]] = {}
    for name, default in re.findall(r"\$\{([A-Z_]+):-([^}]*)\}", TEXT):
        found.setdefault(name, set()).add(default)
    assert all(len(defaults) == 1 for defaults in found.values()), found


def test_no_secret_has_a_default_and_only_secrets_init_gets_secrets() -> None:
    assert {SETTINGS[name] for name in SECRETS} == {""}
    values = {name: f"mine{number}" for number, name in enumerate(SECRETS)}
    given = {
        name: service.name
        for service in read_services(variables=values).values()
        for name, value in values.items()
        if name != "QWENIMAGE_API_KEY" and value in str(service.raw)
    }
    assert given == dict.fromkeys(set(SECRETS) - {"QWENIMAGE_API_KEY"}, "secrets-init")
    # The file contains no value of a variable whose name contains KEY, SECRET or PASSWORD.
    written = re.findall(r"^ *(\S*(?:KEY|SECRET|PASSWORD)(?:_CMD)?): (.*)$", TEXT, re.MULTILINE)
    assert written
    for name, value in written:
        assert value in (f"${{{name}:-}}", f"cat /opt/airflow/secrets/{value.rpartition('/')[2]}"), name


@pytest.mark.parametrize(
    ("key", "base_url"), [("", "http://sandbox:8512"), ("sk-real-4711", "https://qwen-image-2512.org")]
)
def test_a_real_key_switches_from_the_sandbox_to_the_service(
    key: str, base_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_provider_qwenimage.hooks import QwenImageHook

    services = read_services(variables={"QWENIMAGE_API_KEY": key})
    for service in services.values():
        # The sandbox gets no key at all.
        if service.name in ("secrets-init", "postgres", "redis", "sandbox"):
            assert "AIRFLOW_CONN_QWENIMAGE_DEFAULT" not in service.environment
            continue
        name = "AIRFLOW_CONN_QWENIMAGE_DEFAULT"
        monkeypatch.setenv(name, service.environment[name])
        settings = QwenImageHook().settings
        assert (settings.api_key, settings.base_url) == (key or "sk-sandbox", base_url)


def test_the_parser_refuses_what_compose_refuses(tmp_path: Path) -> None:
    wrong = tmp_path / "docker-compose.yaml"
    wrong.write_text(TEXT.replace("\nservices:\n", "\nservices: [\n"))
    with pytest.raises(ValueError, match=r"\S"):
        parse(wrong)


def test_every_airflow_variable_is_an_option_of_airflow() -> None:
    ProvidersManager().initialize_providers_configuration()
    known = {
        f"AIRFLOW__{section}__{option}".upper()
        for section, description in conf.configuration_description.items()
        for option in description["options"]
    }
    used = {name for service in AIRFLOW for name in service.environment if name.startswith("AIRFLOW__")}
    commands = {name.removesuffix("_CMD") for name in used if name.endswith("_CMD")}
    assert used - {f"{name}_CMD" for name in commands} | commands <= known
    # Airflow runs a command for sensitive options only.
    assert commands <= {f"AIRFLOW__{section}__{option}".upper() for section, option in conf.sensitive_config_values}


def test_all_airflow_services_have_the_same_settings() -> None:
    first, *others = (
        {k: v for k, v in service.environment.items() if k.startswith("AIRFLOW__")} for service in AIRFLOW
    )
    assert all(other == first for other in others)


def test_the_image_can_be_built_from_what_is_copied_into_it(tmp_path: Path) -> None:
    (text,) = {service.raw["build"]["dockerfile_inline"] for service in SERVICES.values() if "build" in service.raw}
    instructions: list[str] = text.replace("\\\n", "").splitlines()
    assert [line.split()[0] for line in instructions] == ["FROM", "COPY", "COPY", "COPY", "RUN"]
    allowed = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    for line in instructions[1:4]:
        *sources, target = [word for word in line.split()[1:] if not word.startswith("--")]
        for source in sources:
            assert source in allowed
            copy = tmp_path / target.removeprefix("/opt/provider").strip("/")
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, copy, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                copy.mkdir(exist_ok=True)
                shutil.copy(ROOT / source, copy)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", tmp_path]
    subprocess.run(command, check=True, capture_output=True)
    assert len(list((tmp_path / "dist").glob("*.whl"))) == 1
    made: Any = re.search(r"mkdir -p ([^&]+)", instructions[4])
    # A new volume gets the owner of the image's folder.
    targets = {mount.target for service in SERVICES.values() for mount in service.mounts if mount.is_volume}
    ours = {target for target in targets if target.startswith("/opt/airflow/") and not target.endswith("/logs")}
    assert set(made[1].split()) == ours
