"""docker-compose.yml: valid, and in step with the settings and the modules it names."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.config import Settings

ROOT = Path(__file__).resolve().parent.parent.parent
COMPOSE = ROOT / "docker-compose.yml"
FOREIGN = {"postgres", "redis", "seaweedfs", "prometheus"}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded = yaml.safe_load(COMPOSE.read_text())
    assert isinstance(loaded, dict)
    return loaded


def interpolated(value: str, environment: dict[str, str]) -> str:
    """Compose's own rules for ``${NAME}``, ``${NAME:-default}`` and ``${NAME:?}``, as far as the file uses them."""

    def one(match: re.Match[str]) -> str:
        name, operator, rest = match.group(1), match.group(2), match.group(3)
        if environment.get(name):
            return environment[name]
        assert operator != ":?", f"{name} must be set"
        return rest or ""

    return re.sub(r"\$\{(\w+)(?:(:-|:\?)([^}]*))?\}", one, value)


def example_environment() -> dict[str, str]:
    lines = (ROOT / "deploy" / "example.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_it_keeps_to_the_compose_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_service_is_there(compose: dict[str, Any]) -> None:
    ours = {"migrate", "api", "worker-prepare", "worker-train", "worker-train-gpu", "reconciler"}
    assert set(compose["services"]) == FOREIGN | ours


def test_every_attune_variable_is_a_setting(compose: dict[str, Any]) -> None:
    """The bug behind it: a misspelt variable is ignored, and the service runs with a default nobody chose."""
    known = {f"ATTUNE_{field.upper()}" for field in Settings.model_fields}
    for name, service in compose["services"].items():
        used = {key for key in service.get("environment", {}) if key.startswith("ATTUNE_")}
        assert used <= known, f"{name}: {sorted(used - known)}"
    for path in (ROOT / "deploy").glob("*.Dockerfile"):
        used = set(re.findall(r"\bATTUNE_[A-Z0-9_]+", path.read_text()))
        assert used <= known, f"{path.name}: {sorted(used - known)}"


def test_the_settings_accept_what_it_sets(compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, service in compose["services"].items():
        if name in FOREIGN:
            continue
        with monkeypatch.context() as patch:
            for key, value in service["environment"].items():
                patch.setenv(key, interpolated(str(value), example_environment()))
            settings = Settings()
        assert settings.s3_endpoint_url == "http://seaweedfs:8333"
        # Clients are outside: a URL signed for the service's own name would be of no use to them.
        assert settings.s3_public_url == "http://localhost:8333"


def test_every_variable_it_asks_for_is_in_the_example(compose: dict[str, Any]) -> None:
    text = "\n".join(line for line in COMPOSE.read_text().splitlines() if not line.lstrip().startswith("#"))
    assert set(re.findall(r"\$\{(\w+)", text)) == set(example_environment())


def test_a_secret_left_out_stops_it(compose: dict[str, Any]) -> None:
    for secret in ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "S3_SECRET_KEY", "ADMIN_KEY"):
        assert re.findall(rf"\$\{{{secret}\b([^}}]*)\}}", COMPOSE.read_text()), secret
        assert set(re.findall(rf"\$\{{{secret}\b([^}}]*)\}}", COMPOSE.read_text())) == {":?"}


def test_every_command_is_a_module_that_exists(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        if name in FOREIGN:
            continue
        python, dash_m, module = service["command"][:3]
        assert (python, dash_m) == ("python", "-m")
        spec = importlib.util.find_spec(module)
        assert spec is not None, f"{name}: {module}"
        if spec.submodule_search_locations:
            assert importlib.util.find_spec(f"{module}.__main__"), f"{name}: {module} can't be run"


def test_every_lasting_service_has_a_health_check(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        if name == "migrate":
            continue  # It ends; the others wait for its success.
        test = service["healthcheck"]["test"]
        assert test[0] in {"CMD", "CMD-SHELL"}, name
        if name not in FOREIGN:
            assert test[1:3] == ["python", "/usr/local/lib/attune/health.py"]
            assert test[3] in {"api", "worker", "database"}


def test_who_waits_for_whom(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        if name in FOREIGN:
            continue
        for other, how in service["depends_on"].items():
            lasting = "healthcheck" in compose["services"][other]
            assert how["condition"] == ("service_healthy" if lasting else "service_completed_successfully")
        if name != "migrate":
            assert "migrate" in service["depends_on"], f"{name} must not meet an old schema"


def test_a_train_worker_runs_only_in_a_profile(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert services["worker-train"]["profiles"] == ["cpu"]
    assert services["worker-train-gpu"]["profiles"] == ["gpu"]
    (device,) = services["worker-train-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert [name for name, service in services.items() if "profiles" in service] == [
        "worker-train",
        "worker-train-gpu",
        "prometheus",
    ]
    assert services["prometheus"]["profiles"] == ["monitoring"]


def test_images_are_pinned(compose: dict[str, Any]) -> None:
    for name in FOREIGN:
        assert re.search(r":v?\d+\.\d+", compose["services"][name]["image"]), name


def test_only_the_api_and_the_store_are_published(compose: dict[str, Any]) -> None:
    published = {name for name, service in compose["services"].items() if "ports" in service}
    assert published == {"api", "seaweedfs", "prometheus"}
    # Not beyond this machine.
    assert compose["services"]["prometheus"]["ports"] == ["127.0.0.1:9090:9090"]
    assert compose["services"]["seaweedfs"]["ports"] == ["${S3_PORT:-8333}:8333"]


def test_every_worker_has_a_home_of_its_own(compose: dict[str, Any]) -> None:
    """The bug behind it: two workers of one name in one home would take each other for a restart of themselves."""
    homes = [
        volume for name, service in compose["services"].items() if "worker" in name for volume in service["volumes"]
    ]
    assert len(homes) == len(set(homes)) == 3
    assert all(home.partition(":")[0] in compose["volumes"] for home in homes)


def test_the_stores_identity_has_the_services_key(compose: dict[str, Any]) -> None:
    text = interpolated(compose["configs"]["s3-identities"]["content"], {"S3_SECRET_KEY": "from-the-environment"})
    (identity,) = json.loads(text)["identities"]
    (credential,) = identity["credentials"]
    environment = compose["services"]["api"]["environment"]
    assert credential["accessKey"] == environment["ATTUNE_S3_ACCESS_KEY"]
    assert credential["secretKey"] == "from-the-environment"
