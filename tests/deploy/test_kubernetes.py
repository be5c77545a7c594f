"""The manifests are what Kubernetes knows, and say what has to be said about shardgate."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.fixture
def manifests(deploy: Path) -> dict[str, Any]:
    """All manifests, by kind."""
    found = yaml.safe_load_all((deploy / "kubernetes/shardgate.yaml").read_text())
    return {manifest["kind"]: manifest for manifest in found}


@pytest.mark.parametrize("version", ["1.31", "1.34"])
def test_manifests_follow_the_schemas_of_kubernetes(
    deploy: Path, tool: Callable[[str], str], tmp_path: Path, version: str
) -> None:
    command = [tool("kubernetes-validate"), "--strict", "--kubernetes-version", version]
    path = deploy / "kubernetes/shardgate.yaml"
    done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(path.read_text().replace("periodSeconds: 10", "periodSecond: 10"))
    assert subprocess.run([*command, str(wrong)], capture_output=True, check=False, timeout=120).returncode != 0


def test_pod_is_probed_stopped_and_locked_up_as_it_should_be(manifests: dict[str, Any]) -> None:
    pod = manifests["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    config = manifests["ConfigMap"]["data"]["shardgate.kdl"]
    assert f'tcp-address "0.0.0.0:{ports["agents"]}"' in config
    assert f'listen "0.0.0.0:{ports["admin"]}"' in config
    assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "admin"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "admin"}
    # preStop, the ten seconds of the shards, and a margin.
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= pause + 10 + 20
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert set(mounts.values()) == set(volumes)
    assert "emptyDir" in volumes[mounts["/run/shardgate"]]
    # A file that is mounted by a subPath stays as it was when the pod began. And no folder can be made in a volume that
    # may only be read, so that none of them is in another.
    assert not [mount for mount in container["volumeMounts"] if "subPath" in mount]
    assert not [(a, b) for a in mounts for b in mounts if Path(a) in Path(b).parents]
    given = Path(container["args"][container["args"].index("--config") + 1])
    assert (volumes[mounts[str(given.parent)]], given.name in manifests["ConfigMap"]["data"]) == (
        {"name": "config", "configMap": {"name": "shardgate"}}, True,
    )  # fmt: skip
    (token_file,) = (line.split('"')[1] for line in config.splitlines() if "token-file" in line)
    assert "secret" in volumes[mounts[str(Path(token_file).parent)]]
    # An emptyDir is root's, whatever the pod's fsGroup: shardgate takes a directory of its own user only.
    (runtime_dir,) = (one["value"] for one in container["env"] if one["name"] == "SHARDGATE_RUNTIME_DIR")
    assert str(Path(runtime_dir).parent) == "/run/shardgate"
    assert "runtime-dir" not in config, "the environment stands above it"
    assert manifests["Service"]["spec"]["ports"][0]["targetPort"] in ports


def test_everything_selects_the_same_pods(manifests: dict[str, Any]) -> None:
    labels = manifests["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert manifests["Service"]["spec"]["selector"] == labels
    assert manifests["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert manifests["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
