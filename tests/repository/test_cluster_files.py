"""The files in cluster/, checked without a cluster: by schemas and against the code they run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml
from ray.autoscaler._private.aws import config as ray_on_aws

from pipelines.config.eval_config import EvalConfig, parse
from pipelines.inference.cluster import ClusterShare, plan_resources
from tests.support import ROOT
from tests.support.kustomize import Object, render

CLUSTER = ROOT / "cluster"
SIZES = ("one-gpu", "eight-gpus", "many-nodes")
VARIANTS = [f"{kind}/{size}" for kind in ("clusters", "jobs") for size in SIZES]
KUBERNETES = "1.31"
DOCKERFILE = (CLUSTER / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((CLUSTER / "compose.yaml").read_text())["services"]
RAY_UP_FILES = ("ray-aws.yaml", "ray-gcp.yaml")
PINS = dict(
    line.split(" ;")[0].split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if "==" in line
)
SPOT_TAINTS = {
    "cloud.google.com/gke-spot",
    "kubernetes.azure.com/scalesetpriority",
    "spot",
}
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
OPTIONS_WITH_VALUES = {
    "--constraint",
    "--requirements",
    "--extra",
    "--wheel-dir",
    "--editable",
}  # of pip

# Fields of KubeRay 1.6's resources that are used here: no package has their schema.
RAYJOB = {
    *("entrypoint", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"),
    *("submissionMode", "submitterPodTemplate", "rayClusterSpec"),
}
RAYCLUSTER = {
    *("rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions"),
    *("headGroupSpec", "workerGroupSpecs"),
}
AUTOSCALER = {"version", "upscalingMode", "idleTimeoutSeconds", "resources", "securityContext"}
HEAD = {"serviceType", "enableIngress", "rayStartParams", "template"}
WORKER = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}


def mappings(value: Any) -> Iterator[Object]:
    """All mappings in a document, at any depth."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    for inner in value if isinstance(value, list) else ():
        yield from mappings(inner)


@pytest.fixture(scope="module", params=VARIANTS)
def objects(request: pytest.FixtureRequest) -> list[Object]:
    return render(CLUSTER / "kuberay" / request.param)


def cluster_of(objects: list[Object]) -> Object:
    """The spec of the Ray cluster, which may be part of a RayJob."""
    [ray_object] = [item for item in objects if item["kind"] in ("RayCluster", "RayJob")]
    spec: Object = ray_object["spec"]
    return spec if ray_object["kind"] == "RayCluster" else spec["rayClusterSpec"]


def pods(objects: list[Object]) -> list[Object]:
    """The specs of all pods."""
    return [item["template"]["spec"] for item in mappings(objects) if "template" in item] + [
        item["submitterPodTemplate"]["spec"]
        for item in mappings(objects)
        if "submitterPodTemplate" in item
    ]


def volumes(pod: Object) -> dict[str, Object]:
    return {item["name"]: item for item in pod.get("volumes", [])}


def quantity(text: str) -> float:
    """The value of a Kubernetes quantity: 500m, 2, 16Gi."""
    units = {"m": 1e-3, "Mi": 2**20, "Gi": 2**30}
    [(number, unit)] = re.findall(r"([0-9.]+)([A-Za-z]*)", text)
    return float(number) * (units[unit] if unit else 1)


@pytest.mark.usefixtures("subprocesses")
@pytest.mark.parametrize("variant", VARIANTS)
def test_kustomize_renders_the_same_objects(variant: str) -> None:
    program = shutil.which("kustomize") or shutil.which("kubectl")
    if program is None:
        pytest.skip("needs kustomize or kubectl")
    command = [
        program,
        "build" if program.endswith("kustomize") else "kustomize",
        str(CLUSTER / "kuberay" / variant),
    ]
    documents = yaml.safe_load_all(subprocess.run(command, capture_output=True, check=True).stdout)
    expected = {(item["kind"], item["metadata"]["name"]): item for item in documents}
    assert expected == {
        (item["kind"], item["metadata"]["name"]): item
        for item in render(CLUSTER / "kuberay" / variant)
    }


def test_every_file_is_used() -> None:
    used = set()
    for file in (CLUSTER / "kuberay").rglob("kustomization.yaml"):
        document = yaml.safe_load(file.read_text())
        used |= {
            (file.parent / name).resolve()
            for name in document.get("resources", []) + document.get("components", [])
        }
    variants = {CLUSTER / "kuberay" / variant for variant in VARIANTS}
    for path in (CLUSTER / "kuberay").rglob("*.yaml"):
        unit = path.parent if path.name == "kustomization.yaml" else path
        assert unit in used | variants, f"{path} is in no variant"


def test_objects_match_the_kubernetes_schema(objects: list[Object]) -> None:
    for item in objects:
        if not item["apiVersion"].startswith("ray.io/"):
            kubernetes_validate.validate(item, KUBERNETES, strict=True)
    for spec in pods(objects):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_objects_match_the_kuberay_schema(objects: list[Object]) -> None:
    from ray.scripts.scripts import start

    options = {option.removeprefix("--") for param in start.params for option in param.opts}
    for job in (item["spec"] for item in objects if item["kind"] == "RayJob"):
        assert job.keys() == RAYJOB
        assert job["submissionMode"] == "K8sJobMode"
        assert job["shutdownAfterJobFinishes"] is True
    cluster = cluster_of(objects)
    autoscaling = cluster["enableInTreeAutoscaling"]
    assert cluster.keys() == (RAYCLUSTER if autoscaling else RAYCLUSTER - {"autoscalerOptions"})
    assert cluster.get("autoscalerOptions", {}).keys() == (AUTOSCALER if autoscaling else set())
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"].keys() == HEAD
    for group in cluster["workerGroupSpecs"]:
        assert group.keys() == WORKER
        assert group["minReplicas"] == group["replicas"] <= group["maxReplicas"]
        assert autoscaling or group["replicas"] == group["maxReplicas"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        assert group["rayStartParams"].keys() <= options
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        assert len(group["template"]["spec"]["containers"]) == 1


def test_referenced_objects_exist(objects: list[Object]) -> None:
    """Volumes, claims, accounts, services, and the pods that services and policies select."""
    names = {
        kind: {item["metadata"]["name"] for item in objects if item["kind"] == kind}
        for kind in ("PersistentVolumeClaim", "ServiceAccount", "Service")
    }
    labels = [{"ray.io/node-type": "head"}]  # KubeRay's
    labels += [
        item["spec"]["template"]["metadata"]["labels"]
        for item in objects
        if "selector" in item.get("spec", {}) and "template" in item["spec"]
    ]
    for item in objects:
        if item["kind"] in ("Service", "NetworkPolicy"):
            selected = item["spec"].get(
                "selector", item["spec"].get("podSelector", {}).get("matchLabels", {})
            )
            assert any(selected.items() <= label.items() for label in labels), item["metadata"][
                "name"
            ]
    claimed = {
        item["metadata"]["name"]
        for item in chain.from_iterable(
            item["spec"].get("volumeClaimTemplates", [])
            for item in objects
            if item["kind"] == "StatefulSet"
        )
    }
    for pod in pods(objects):
        assert pod.get("serviceAccountName", "apet") in names["ServiceAccount"]
        for container in pod["containers"]:
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes(
                pod
            ).keys() | claimed
        for volume in volumes(pod).values():
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            assert claim is None or claim in names["PersistentVolumeClaim"]
    text = yaml.safe_dump(objects)
    assert (
        set(re.findall(r"(?:http://|@)([a-z]+):[0-9]{4}", text))
        == names["Service"]
        == {"mlflow", "postgres"}
    )


def test_entry_point_takes_its_flags(objects: list[Object]) -> None:
    """The script is in the image, takes these flags, and uses storage that outlives the pods."""
    for job in (item for item in objects if item["kind"] == "RayJob"):
        python, script_name, *flags = shlex.split(job["spec"]["entrypoint"])
        assert python == "python"
        script = Path(script_name).relative_to("/opt/apet")
        assert (ROOT / script).is_file()
        config = parse("video" if "video" in script.name else "image", flags)
        assert not config.attn.startswith("flash") or "flash-attn" in DOCKERFILE
        [mount] = {
            mount["mountPath"]
            for pod in pods([cluster_of(objects)])
            for container in pod["containers"]
            for mount in container["volumeMounts"]
            if mount["name"] == "data"
        }
        for path in (config.model, config.data, config.output):
            assert path is not None
            assert path.startswith((f"{mount}/", "s3://", "gs://")), f"{path} is lost with the pods"


def cluster_share(
    monkeypatch: pytest.MonkeyPatch, machines: list[tuple[float, float]], config: EvalConfig
) -> ClusterShare:
    """The job's share of a cluster whose machines have these (CPUs, GPUs)."""
    nodes = [{"Alive": True, "Resources": {"CPU": cpus, "GPU": gpus}} for cpus, gpus in machines]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    return plan_resources(config.actors, config.gpus_per_actor, config.cpus_per_actor)


def test_cpus_suffice_for_all_actors(
    objects: list[Object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the job's own arithmetic, with the first machines and with all of them."""
    cluster = cluster_of(objects)
    jobs = [item["spec"]["entrypoint"] for item in objects if item["kind"] == "RayJob"]
    config = parse("image", shlex.split(jobs[0])[2:]) if jobs else parse("image", [])
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for count in ("minReplicas", "maxReplicas"):
        machines, gpus = [(0.0, 0.0)], 0.0
        for group in cluster["workerGroupSpecs"]:
            [container] = group["template"]["spec"]["containers"]
            limits = container["resources"]["limits"]
            item = (quantity(limits["cpu"]), quantity(limits.get("nvidia.com/gpu", "0")))
            machines += [item] * group[count]
            gpus += item[1] * group[count]
        share = cluster_share(monkeypatch, machines, config)
        assert share.gpus == 1
        assert share.min_actors <= gpus
        assert share.max_actors == (config.actors[1] if config.actors else gpus)
        assert share.min_actors * share.cpus + share.prepare_cpus <= sum(
            cpus for cpus, _ in machines
        )
    assert share.max_actors == gpus, "some GPUs would stay without an actor"


def test_memory_covers_the_object_store(objects: list[Object]) -> None:
    """/dev/shm counts towards the container's memory; half of it must remain for processes."""
    cluster = cluster_of(objects)
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        [container] = pod["containers"]
        [shm] = [
            mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == "/dev/shm"
        ]
        volume = volumes(pod)[shm]["emptyDir"]
        assert volume["medium"] == "Memory"
        assert float(group["rayStartParams"]["object-store-memory"]) <= quantity(
            volume["sizeLimit"]
        )
        limits, requests = container["resources"]["limits"], container["resources"]["requests"]
        assert quantity(volume["sizeLimit"]) <= quantity(limits["memory"]) / 2
        assert requests["memory"] == limits["memory"], "the node may not have the memory"


def test_pods_tolerate_the_right_nodes(objects: list[Object]) -> None:
    """The head avoids spot nodes, workers accept them, and CPU workers avoid GPU nodes."""
    cluster = cluster_of(objects)
    head = cluster["headGroupSpec"]["template"]["spec"]
    assert "tolerations" not in head
    [term] = head["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    excluded = {
        (item["key"], item["operator"], *item.get("values", []))
        for item in term["matchExpressions"]
    }
    assert excluded == {
        ("cloud.google.com/gke-spot", "DoesNotExist"),
        ("kubernetes.azure.com/scalesetpriority", "DoesNotExist"),
        ("eks.amazonaws.com/capacityType", "NotIn", "SPOT"),
        ("karpenter.sh/capacity-type", "NotIn", "spot"),
    }
    for group in cluster["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        gpus = "nvidia.com/gpu" in pod["containers"][0]["resources"]["limits"]
        assert {item["key"] for item in pod["tolerations"]} == SPOT_TAINTS | (
            {"nvidia.com/gpu"} if gpus else set()
        )


@pytest.mark.usefixtures("subprocesses")
def test_command_of_the_guide_changes_every_bucket(tmp_path: Path) -> None:
    [line] = re.findall("^sed -i .*$", (ROOT / "docs" / "cluster.md").read_text(), re.MULTILINE)
    shutil.copytree(CLUSTER, tmp_path / "cluster")
    for command in (
        line,
        line.replace("s3://apet", "s3://BUCKET").replace("#s3://BUCKET#g", "#gs://mine#g"),
    ):
        subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
        text = "".join(
            yaml.safe_dump(render(tmp_path / "cluster" / "kuberay" / variant))
            for variant in VARIANTS
        )
        assert "s3://apet" not in text
    assert set(re.findall(r"(\w+://\w+)/(?:mlflow|questions|images|results)", text)) == {
        "gs://mine"
    }


def test_credentials_come_from_secrets(objects: list[Object]) -> None:
    assert not [item for item in objects if item["kind"] == "Secret"], (
        "a Secret must not be in a file"
    )
    for variable in (item for item in mappings(objects) if {"name", "value"} <= item.keys()):
        assert not re.search("PASSWORD|TOKEN|SECRET|KEY", variable["name"]), (
            f"{variable['name']} is in the file"
        )
    for service in COMPOSE.values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|TOKEN|SECRET|KEY", name):
                assert value is None or value.startswith("${"), f"{name} is in the file"
    for path in (path for path in CLUSTER.rglob("*") if path.is_file()):
        assert not re.search(r"://[^/\s@]*:[^/\s@]+@", path.read_text()), (
            f"{path} has a password in a URI"
        )
        assert not re.search(r"AKIA|-----BEGIN|hf_[A-Za-z0-9]{20}", path.read_text()), path


def test_no_port_is_open_to_the_world(objects: list[Object]) -> None:
    kinds = {item["kind"] for item in objects}
    assert not kinds & {"Ingress", "HTTPRoute", "Gateway"}
    for service in (item for item in objects if item["kind"] == "Service"):
        assert service["spec"]["type"] == "ClusterIP"
    head = cluster_of(objects)["headGroupSpec"]
    assert (head["serviceType"], head["enableIngress"]) == ("ClusterIP", False)
    for pod in pods(objects):
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert not [
            port
            for container in pod["containers"]
            for port in container.get("ports", [])
            if "hostPort" in port
        ]
    for name in RAY_UP_FILES:
        [start] = [
            item
            for item in yaml.safe_load((CLUSTER / name).read_text())["head_start_ray_commands"]
            if "--head" in item
        ]
        assert re.findall("--dashboard-host=([^ ]*)", start) == ["127.0.0.1"]
    policies = [item["spec"] for item in objects if item["kind"] == "NetworkPolicy"]
    assert all(
        sender for policy in policies for rule in policy["ingress"] for sender in rule["from"]
    )
    for service in COMPOSE.values():
        assert "network_mode" not in service
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert "--include-dashboard=false" in (CLUSTER / "slurm.sh").read_text()


def test_ray_creates_no_security_group_on_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own group, for node types that name none, opens port 22 to the world."""
    created = []
    monkeypatch.setattr(
        ray_on_aws, "_upsert_security_groups", lambda config, types: created.append(types)
    )
    config = yaml.safe_load((CLUSTER / "ray-aws.yaml").read_text())
    assert ray_on_aws._configure_security_group(config) is config
    assert not created
    assert not config["provider"].get("security_group")


def test_prometheus_reaches_the_port_of_the_guide(objects: list[Object]) -> None:
    """In Kubernetes, the commented rule allows it once it is uncommented."""
    for name in RAY_UP_FILES:
        config = yaml.safe_load((CLUSTER / name).read_text())
        commands = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
        assert all("--metrics-export-port=8080" in item for item in commands if "ray start" in item)
    for group in [cluster_of(objects)["headGroupSpec"], *cluster_of(objects)["workerGroupSpecs"]]:
        assert (
            group["rayStartParams"].get("metrics-export-port", "8080") == "8080"
        )  # KubeRay's default
    text = (CLUSTER / "kuberay" / "base" / "network.yaml").read_text()
    policies = list(yaml.safe_load_all(re.sub("^    # ", "    ", text, flags=re.MULTILINE)))
    for policy in policies:
        kubernetes_validate.validate(policy, KUBERNETES, strict=True)
    [_, rule] = policies[0]["spec"]["ingress"]
    assert rule["ports"] == [{"port": 8080}]
    assert all(sender["namespaceSelector"]["matchLabels"] for sender in rule["from"])


@pytest.mark.usefixtures("subprocesses")
def test_generated_files_stay_out_of_git_and_the_image(tmp_path: Path) -> None:
    """Only its owner may read the file with the password."""
    if (ROOT / ".git").exists():
        generated = ["cluster/.env", ".env", "apet-70001.log", "ray-70001-n1.log"]
        ignored = subprocess.run(
            ["git", "-C", ROOT, "check-ignore", *generated],
            capture_output=True,
            text=True,
            check=False,
        )
        assert ignored.stdout.split() == generated
        tracked_but_ignored = [
            "git",
            "-C",
            ROOT,
            "ls-files",
            "--cached",
            "--ignored",
            "--exclude-standard",
        ]
        assert subprocess.run(tracked_but_ignored, capture_output=True, check=True).stdout == b""
    patterns = [
        line
        for line in (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert patterns[0] == "*"
    assert (
        "**/.env" in patterns[max(i for i, line in enumerate(patterns) if line.startswith("!")) :]
    )
    [command] = re.findall(
        "^# +(cd cluster && .*POSTGRES_PASSWORD.*)$",
        (CLUSTER / "compose.yaml").read_text(),
        re.MULTILINE,
    )
    (tmp_path / "cluster").mkdir()
    (tmp_path / "openssl").write_text("#!/bin/sh\necho secret\n")
    (tmp_path / "openssl").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run(
        ["sh", "-c", f"umask 022; {command}"], cwd=tmp_path, env={"PATH": path}, check=True
    )
    env_file = tmp_path / "cluster" / ".env"
    assert env_file.read_text() == "POSTGRES_PASSWORD=secret\n"
    assert env_file.stat().st_mode & 0o777 == 0o600


def test_no_container_runs_as_root(objects: list[Object]) -> None:
    unprivileged = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    for pod in pods(objects):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == unprivileged
            ours = container["image"].startswith("apet")
            assert pod["securityContext"]["runAsUser"] == (1000 if ours else 999)
    assert (
        cluster_of(objects).get("autoscalerOptions", {}).get("securityContext", unprivileged)
        == unprivileged
    )


def test_images_do_not_run_as_root() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    users = {
        stage.split(" AS ")[1].split()[0]: re.findall(r"^USER (.*)$", stage, re.MULTILINE)
        for stage in stages
    }
    assert users == {"flash": [], "mlflow": ["1000"], "apet": ["1000"]}
    for name, service in COMPOSE.items():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "build" in service or service["user"] != "0", name
    for name in RAY_UP_FILES:
        docker = yaml.safe_load((CLUSTER / name).read_text())["docker"]
        assert {"--cap-drop=ALL", "--security-opt=no-new-privileges"} <= set(docker["run_options"])


def test_versions_agree_in_all_files(objects: list[Object]) -> None:
    assert cluster_of(objects)["rayVersion"] == PINS["ray"] == ray.__version__
    images = {item["image"] for item in mappings(objects) if isinstance(item.get("image"), str)}
    images |= {service["image"] for service in COMPOSE.values()}
    assert images == {f"apet:{VERSION}", f"apet-mlflow:{VERSION}", COMPOSE["postgres"]["image"]}
    for name in RAY_UP_FILES:
        image = yaml.safe_load((CLUSTER / name).read_text())["docker"]["image"]
        assert image.rpartition("/")[2] == f"apet:{VERSION}"
    assert all(f":{VERSION}" in tag for tag in re.findall("--tag (.*?) ", DOCKERFILE))


def test_image_has_the_pinned_versions() -> None:
    """Every named package is pinned there or in constraints.txt; one Python, one CUDA."""
    commands = re.findall(
        r"(?:uv pip|/pip|& pip|RUN pip) (?:install|wheel)((?:\\\n|.)*?)(?:$|&&)",
        DOCKERFILE,
        re.MULTILINE,
    )
    assert len(commands) >= 7
    for command in commands:
        words = command.replace("\\\n", " ").split()
        values = {words[i + 1] for i, word in enumerate(words) if word in OPTIONS_WITH_VALUES}
        names = [
            word for word in words if re.fullmatch(r"[a-z][a-z0-9-]*", word) and word not in values
        ]
        assert all(name in PINS for name in names), f"{names}: pin all of them"
        assert not names or "--constraint" in words
        assert not [word for word in words if re.search("[<>~]", word)]
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    [python] = set(re.findall(r"python:?(3\.[0-9]+)", DOCKERFILE))
    assert tuple(map(int, python.split("."))) >= tuple(
        map(int, required.removeprefix(">=").split("."))
    )
    [cuda] = re.findall(r"ARG CUDA=([0-9.]+)", DOCKERFILE)
    assert cuda.rpartition(".")[0] == PINS["cuda-toolkit"].rpartition(".")[0], (
        "flash-attn needs the CUDA of PyTorch"
    )
    patterns = (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines()
    assert all(
        (ROOT / name.removeprefix("!")).exists() for name in patterns if name.startswith("!")
    )


def test_image_can_compile_kernels() -> None:
    """Triton's launcher includes Python.h of the Python that made the environment."""
    stage = DOCKERFILE.split(" AS apet\n")[1]
    [installed] = re.findall(r"apt-get install((?:.*\\\n)*)", stage)
    [python] = re.findall(r"RUN (python3\.[0-9]+) -m venv", stage)
    assert {"gcc", "g++", "libc6-dev", f"{python}-dev", f"{python}-venv"} <= set(installed.split())


def test_image_records_its_commit() -> None:
    for file in ("Dockerfile", "compose.yaml"):
        assert "GIT_COMMIT=$(git rev-parse HEAD)" in (CLUSTER / file).read_text(), file
    assert COMPOSE["job"]["build"]["args"] == {"GIT_COMMIT": "${GIT_COMMIT:-}"}
    stage = DOCKERFILE.split(" AS apet\n")[1]
    assert re.findall("WORKDIR (.*)", stage) == ["/opt/apet"]
    commit = 'ARG GIT_COMMIT\nRUN echo "${GIT_COMMIT}" > COMMIT\n'
    assert stage.index("COPY . .") < stage.index(commit), (
        "later layers are built again for each commit"
    )


@pytest.mark.parametrize("name", RAY_UP_FILES)
def test_ray_up_config_matches_its_schema(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = yaml.safe_load((CLUSTER / name).read_text())
    jsonschema.validate(
        config,
        json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text()),
    )
    types = config["available_node_types"]
    assert config["head_node_type"] in types
    assert config["max_workers"] >= sum(item.get("max_workers", 0) for item in types.values())
    assert types["head"]["resources"] == {"CPU": 0}
    [line] = re.findall(r"(--actors.*?) --output", (CLUSTER / name).read_text())
    job_config = parse("image", line.split())
    for count in ("min_workers", "max_workers"):
        machines = [
            (item["resources"].get("CPU", 0), item["resources"].get("GPU", 0))
            for item in types.values()
            for _ in range(item.get(count, 1))
        ]
        share = cluster_share(monkeypatch, machines, job_config)
        assert share.min_actors * share.cpus + share.prepare_cpus <= sum(
            cpus for cpus, _ in machines
        )
    assert share.max_actors == sum(gpus for _, gpus in machines)
    for command in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        assert command == "ray stop" or command.startswith("RAY_AUTH_MODE=token ray start")
        assert "0.0.0.0" not in command
