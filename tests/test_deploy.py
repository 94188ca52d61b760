"""What `deploy/` and the compose file promise, as far as it can be read; `tests/e2e/test_compose.py` starts it."""

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tools.compose_processes import COMPOSE, Composition, services

ROOT = Path(__file__).parents[1]


def test_the_compose_file_has_the_form_of_one() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_container_runs_as_root_or_may_become_more() -> None:
    assert re.search(r"^USER fedlora$", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)
    for name, service in services().items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"] is True, name


def test_ports_are_published_on_loopback_alone() -> None:
    published = [port for service in services().values() for port in service.get("ports", [])]
    assert published
    assert all(str(port).startswith("127.0.0.1:") for port in published)


def test_the_same_commands_run_outside_of_containers(tmp_path: Path) -> None:
    found = Composition(tmp_path)
    said = found.environment("clinic-a")
    assert said["FEDLORA_SITE"] == str(tmp_path / "clinic-a")
    assert said["FEDLORA_TOKEN_FILE"] == str(tmp_path / "tokens" / "clinic-a.token")
    assert found.command("clinic-a") == ["sh", str(ROOT / "deploy" / "client.sh")]
    server = found.environment("server")
    assert server["FEDLORA_LINK"] == f"127.0.0.1:{found.ports['7443']}"
    assert server["FEDLORA_ADDRESS"] == f"localhost:{found.ports['7444']}"


@pytest.mark.parametrize("side", ["server", "client"])
def test_units_are_hardened_and_start_what_exists(side: str) -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(ROOT / "deploy" / f"fedlora-{side}.service")
    service = unit["Service"]
    assert service["Type"] == "notify"
    assert service["Restart"] == "always"
    assert int(service["WatchdogSec"]) > 0
    for setting in ("NoNewPrivileges", "PrivateTmp", "RestrictSUIDSGID", "LockPersonality"):
        assert service[setting] == "yes", setting
    assert service["ProtectSystem"] == "strict"
    command = service["ExecStart"].split()[1:]
    done = subprocess.run(
        [sys.executable, "-m", "fedlora.cli", *command[:2], "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert all(option in done.stdout for option in command if option.startswith("--"))


def test_the_demonstrations_policy_is_one(tmp_path: Path) -> None:
    from fedlora.client.policy_file import load_policy

    text = (ROOT / "deploy" / "demo-policy.yaml").read_text().replace("@DATA@", "questions.jsonl")
    assert yaml.safe_load(text)
    (tmp_path / "policy.yaml").write_text(text)
    assert load_policy(tmp_path / "policy.yaml").approval == "automatic"
