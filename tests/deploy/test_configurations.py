"""The configurations that deploy/ brings are good ones."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from support.product import environment, short_folder


def of_systemd(deploy: Path) -> str:
    """What is installed beside the units."""
    return (deploy / "systemd/shardgate.kdl").read_text()


def of_the_container(deploy: Path) -> str:
    """The demonstration's."""
    return (deploy / "container/shardgate.kdl").read_text()


def of_kubernetes(deploy: Path) -> str:
    """The one in the manifests."""
    manifests = yaml.safe_load_all((deploy / "kubernetes/shardgate.yaml").read_text())
    (config,) = (manifest for manifest in manifests if manifest["kind"] == "ConfigMap")
    return str(config["data"]["shardgate.kdl"])


@pytest.mark.parametrize("source", [of_systemd, of_the_container, of_kubernetes])
def test_configuration_is_good_once_there_is_a_token(deploy: Path, source: Callable[[Path], str]) -> None:
    with short_folder() as tmp_path:
        (tmp_path / "etc/shardgate/tokens").mkdir(parents=True)
        # What systemd-tmpfiles makes.
        (tmp_path / "run/shardgate-agents").mkdir(parents=True)
        text = source(deploy).replace("/etc/", f"{tmp_path}/etc/").replace("/run/", f"{tmp_path}/run/")
        text = text.replace(":9090", ":0").replace(":9180", ":0")
        tokens = tmp_path / "etc/shardgate/tokens"
        if "tokens/tokens" in text:
            tokens = tokens / "tokens"
        else:
            tokens.rmdir()
        tokens.write_text(f"waf-* sha256={'ab' * 32}\n")
        tokens.chmod(0o600)
        config = tmp_path / "shardgate.kdl"
        config.write_text(text)
        done = subprocess.run(
            [sys.executable, "-P", "-m", "shardgate", "check", str(config)],
            capture_output=True, text=True, check=False, env=environment(), timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
