"""What is written for Kubernetes, SkyPilot and Cloud TPU VMs, and what their programs say of it.

xpk and SkyPilot ask for versions of their own of what this project needs: they are asked where
they are on the PATH, installed in environments of their own.
"""

import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from albert.runtime import RunError
from albert.runtime.paths import LiteralPath
from runs import ROOT
from scripts import check_shell
from tools.launchers import TARGETS, kubernetes, skypilot, tpu_vm
from tools.launchers.base import AGAIN, Job, Run, bucket_problems, dns_name
from tools.launchers.shapes import SHAPES, find_shape

CRD = ROOT.parent / "shared" / "data" / "launch" / "jobset_crd.yaml"
TRAIN = ("python", "train.py", "--config.data.train_sources=('gs://mine/a b',)", "--distributed")
SLICES = [name for name, shape in SHAPES.items() if shape.is_tpu]
PLACE = LiteralPath("gs://mine/run")


def job_of(engine, *runs, **options):
    asked = engine.Options(**options)
    return Job("run", PLACE, runs or (Run("", (TRAIN,)),), len(runs) > 1, asked, "20260131-235959")


def every_kubernetes_job():
    """A job of each shape: by itself, as several, on spot machines."""
    for name, shape in SHAPES.items():
        several = {"slices": 3} if shape.is_tpu else {"nodes": 3}
        yield name, job_of(kubernetes, shape=name, image="r/albert:1")
        yield name, job_of(kubernetes, shape=name, image="r/albert:1", **several)
        if shape.label:
            spot = {"spot": True, "queue": "", "service_account": "mine", **several}
            yield name, job_of(kubernetes, shape=name, image="r/albert:1", **spot)


def work_of(manifest):
    """Of a JobSet's only job."""
    (replicated,) = manifest["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


# Name -> topology, hosts, chips of a host, devices: as GKE's and Cloud TPU's pages have them.
KNOWN = {
    "v6e-16": ("4x4", 4, 4, 16),
    "v6e-8": ("2x4", 2, 4, 8),
    "v6e-1": ("1x1", 1, 1, 1),
    "v5litepod-16": ("4x4", 4, 4, 16),
    "v5p-32": ("2x2x4", 4, 4, 16),
    "v4-8": ("2x2x1", 1, 4, 4),
    "tpu7x-16": ("2x2x2", 2, 4, 16),
    "h100-80gb-8": ("", 1, 8, 8),
}


@pytest.mark.parametrize("name", KNOWN)
def test_shapes_are_those_of_the_clouds(name):
    shape = find_shape(name)
    assert (shape.topology, shape.hosts, shape.chips, shape.devices) == KNOWN[name]
    if shape.is_tpu:
        assert find_shape(f"{shape.kind}:{shape.topology}") is shape
    assert find_shape("v5e:4x4") is find_shape("v5litepod-16")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v6e-12", r"there is no v6e-12; of v6e there is v6e-1 \(1x1\), v6e-4 \(2x2\), "),
        ("v6e:3x4", r"there is no v6e:3x4; of v6e there is"),
        ("v5p-2", r"there is no v5p-2; of v5p there is v5p-8 \(2x2x1\)"),
        ("h100-80gb-4", "there is no h100-80gb-4; of h100-80gb there is h100-80gb-8$"),
        ("v9-8", "no accelerator of the kind in 'v9-8'; write KIND-SIZE.* Kinds: v4, v5litepod"),
        ("v6e", "no accelerator of the kind in 'v6e'; write KIND-SIZE, such as v6e-16"),
    ],
)
def test_shapes_that_do_not_exist_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        find_shape(text)


K8S = {"shape": "v6e-16", "image": "r/albert:1"}
VM = {"shape": "v6e-16", "image": "r/albert:1", "zone": "us-east5-b"}
HERE = Path("/home/me/run")
BAD = [
    (kubernetes, {"image": "r/a:1"}, PLACE, "--shape is missing; it is the accelerator, such as"),
    (kubernetes, K8S | {"shape": "v6e-9"}, PLACE, "--shape: there is no v6e-9; of v6e there is"),
    (
        kubernetes,
        K8S | {"nodes": 2},
        PLACE,
        "v6e-16 is a slice of TPUs, which has 4 hosts; several",
    ),
    (kubernetes, K8S | {"shape": "l4-8", "slices": 2}, PLACE, "--slices is 2, and l4-8 are GPUs"),
    (kubernetes, K8S, HERE, "--workdir=/home/me/run is a folder of this machine, which the job's"),
    (kubernetes, K8S, LiteralPath("gs://mine"), "it must be gs://BUCKET/FOLDER, a folder in a"),
    (
        kubernetes,
        K8S,
        LiteralPath("gs://My_Bucket!/run"),
        "it must be gs://BUCKET/FOLDER, a folder",
    ),
    (kubernetes, K8S | {"image": ""}, PLACE, "--image is missing; it is the container of the run"),
    (kubernetes, K8S | {"image": "r/albert"}, PLACE, "which may be another one after a restart"),
    (kubernetes, K8S | {"image": "r:5000/a:latest"}, PLACE, "name a tag that stays"),
    (kubernetes, K8S | {"image": "r/a b:1"}, PLACE, "it must be REGISTRY/NAME:TAG or"),
    (kubernetes, K8S | {"image": "r/a@sha256:1"}, PLACE, "it must be REGISTRY/NAME:TAG or"),
    (kubernetes, K8S | {"queue": "My_Queue"}, PLACE, "--queue is 'My_Queue'; Kubernetes has names"),
    (
        kubernetes,
        K8S | {"queue": "", "setup": True},
        PLACE,
        "--setup makes a queue, and --queue is",
    ),
    (kubernetes, K8S | {"shape": "gpu-8", "spot": True}, PLACE, "gpu-8 names no kind of them"),
    (skypilot, {"shape": "v6e-16"}, HERE, "is a folder of this machine"),
    (skypilot, {"shape": "tpu7x-16"}, PLACE, "SkyPilot knows no tpu7x-16; it asks for TPUs by the"),
    (skypilot, {"shape": "gpu-8"}, PLACE, "SkyPilot knows no gpu-8"),
    (skypilot, {"shape": "v6e-16", "infra": "aws"}, PLACE, "--infra is 'aws', and TPUs are on gcp"),
    (skypilot, {"shape": "v6e-16", "infra": "GCP!"}, PLACE, "it must be CLOUD/REGION/ZONE"),
    (
        skypilot,
        {"shape": "v6e-16", "infra": "gcp/us-east5/us-central1-a"},
        PLACE,
        "us-central1-a is no zone of us-east5",
    ),
    (tpu_vm, VM | {"zone": "us-east5"}, PLACE, "--zone is 'us-east5'; it must be a zone, such as"),
    (tpu_vm, VM | {"shape": "tpu7x-16"}, PLACE, "tpu7x-16 is not in the Cloud TPU API, which ends"),
    (tpu_vm, VM | {"shape": "l4-8"}, PLACE, "l4-8 is not in the Cloud TPU API"),
    (tpu_vm, VM | {"spot": True, "reserved": True}, PLACE, "two kinds of capacity; choose one"),
    (
        tpu_vm,
        VM | {"valid": "soon"},
        PLACE,
        "--valid is 'soon'; it must be a duration, such as 12h",
    ),
    (
        tpu_vm,
        VM | {"slices": 2, "delete_when_done": True},
        PLACE,
        "is for one slice; delete several",
    ),
]


@pytest.mark.parametrize(("engine", "options", "place", "message"), BAD, ids=[b[-1] for b in BAD])
def test_what_cannot_be_started_is_told(engine, options, place, message):
    found = engine.problems(engine.Options(**options), place, False)
    assert len(found) == 1
    assert message in found[0]


def test_what_can_be_started_is_not_refused():
    assert not kubernetes.problems(kubernetes.Options(**K8S), PLACE, True)
    digest = "r/albert@sha256:" + "0" * 64
    assert not kubernetes.problems(kubernetes.Options(**K8S | {"image": digest}), PLACE, False)
    assert not skypilot.problems(skypilot.Options(shape="h100-80gb-8", infra="aws"), PLACE, True)
    zone = skypilot.Options(shape="v6e-16", infra="gcp/us-east5/us-east5-b")
    assert not skypilot.problems(zone, PLACE, False)
    assert not tpu_vm.problems(tpu_vm.Options(**VM, slices=2), PLACE, False)
    assert "for a sweep use" in tpu_vm.problems(tpu_vm.Options(**VM), PLACE, True)[0]
    assert not bucket_problems(LiteralPath("gs://mine/deep/run,seed=0/"))


def test_names_are_what_engines_take_and_differ_where_texts_do():
    texts = ["base", "Base", "base_1", "base-1", "7", "", "ü", "sharing=all,seed=0", "x" * 41]
    names = [dns_name(text) for text in texts]
    assert names[0] == "base"
    assert len({*names}) == len(texts)
    for name in names:
        assert re.fullmatch("[a-z]([a-z0-9-]*[a-z0-9])?", name), name
        assert len(name) <= 40


def outcome(manifest, code):
    """What Kubernetes makes of a pod that leaves with a code: it ends, or begins anew."""
    (rule,) = work_of(manifest)["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["operator"]) == ("FailJob", "NotIn")
    policy = manifest["spec"]["failurePolicy"]
    (ends,) = policy["rules"]
    assert (ends["action"], ends["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", ends["name"])  # the webhook's
    assert policy["maxRestarts"] == 50
    return "again" if code in rule["onExitCodes"]["values"] else "ends"


def test_a_run_begins_anew_when_that_helps():
    (manifest,) = kubernetes.manifests(job_of(kubernetes, **K8S))
    assert [outcome(manifest, code) for code in (75, 134, 137, 139, 143)] == ["again"] * 5
    # Something to mend, an exception, a command that is not there.
    assert [outcome(manifest, code) for code in (2, 1, 126, 127)] == ["ends"] * 4
    pod = work_of(manifest)["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # a podFailurePolicy needs it
    assert work_of(manifest)["backoffLimit"] == 0


@pytest.mark.parametrize("name", SHAPES)
def test_a_pod_stands_for_each_host_and_has_all_of_its_chips(name):
    shape = SHAPES[name]
    several = {"slices": 2} if shape.is_tpu else {"nodes": 2}
    job = job_of(kubernetes, shape=name, image="r/albert:1", **several)
    devices = kubernetes.devices(job.options)
    (manifest,) = kubernetes.manifests(job)
    (replicated,) = manifest["spec"]["replicatedJobs"]
    work = work_of(manifest)
    pod = work["template"]["spec"]
    (container,) = pod["containers"]
    assert work["parallelism"] == work["completions"]
    assert replicated["replicas"] * work["completions"] == devices.processes
    ((resource, chips),) = container["resources"]["limits"].items()
    assert replicated["replicas"] * work["completions"] * chips * (
        2 if shape.kind == "tpu7x" else 1
    ) == (devices.count)
    assert container["command"] == list(TRAIN)
    variables = {each["name"]: each.get("value") for each in container["env"]}
    if shape.is_tpu:
        assert resource == "google.com/tpu"
        assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == shape.topology
        assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == shape.label
        assert variables == {"JAX_PLATFORMS": "tpu,cpu"}
    else:
        assert resource == "nvidia.com/gpu"
        assert variables["JAX_COORDINATOR_ADDRESS"] == "run-hosts-0-0.run:8476"
        assert variables["JAX_NUM_PROCESSES"] == "2"
        assert {"JAX_PROCESS_ID", "JAX_PLATFORMS"} <= {*variables}
    assert {"key": resource, "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]


def test_a_sweep_is_a_jobset_for_each_run():
    evaluation = ("python", "eval.py", "--workdir=gs://mine/run/a=1,seed=0")
    runs = [Run(f"a={n},seed=0", (TRAIN, evaluation)) for n in range(3)]
    job = job_of(kubernetes, *runs, shape="v6e-4", image="r/albert:1")
    (text,) = kubernetes.files(job).values()
    written = list(yaml.safe_load_all(text))
    assert written == kubernetes.manifests(job)
    names = [manifest["metadata"]["name"] for manifest in written]
    assert len({*names}) == 3
    assert all(re.fullmatch("run-a-[0-2]-seed-0-[0-9a-f]{8}", name) for name in names)
    (container,) = work_of(written[0])["template"]["spec"]["containers"]
    assert container["command"][:2] == ["bash", "launch/stages.sh"]
    assert [tuple(shlex.split(stage)) for stage in container["command"][2:]] == [TRAIN, evaluation]
    tasks = [
        yaml.safe_load(text) for text in skypilot.files(job_of(skypilot, *runs, shape="v6e-4"))
    ]
    assert len({*tasks}) == 3


def test_what_was_handed_over_before_a_refusal_is_told(tmp_path):
    runs = [Run(f"a={n},seed=0", (TRAIN,)) for n in range(3)]
    job = job_of(skypilot, *runs, shape="v6e-4")
    asked = []

    def ask(command):
        asked.append(command)
        if len(asked) == 3:
            raise RunError("sky is refused: no room")
        return ""

    with pytest.raises(RunError, match=r"no room\. 2 jobs were handed over before it: sky jobs qu"):
        skypilot.start(job, ask)
    assert len({command[-1] for command in asked}) == 3


def test_the_queue_has_room_for_the_job_on_its_nodes():
    job = job_of(kubernetes, **K8S, slices=2, setup=True, service_account="mine", spot=True)
    made = {manifest["kind"]: manifest for manifest in kubernetes.manifests(job)}
    labels = made["ResourceFlavor"]["spec"]["nodeLabels"]
    (run,) = kubernetes.manifests(job_of(kubernetes, **K8S, slices=2, spot=True))
    assert labels == work_of(run)["template"]["spec"]["nodeSelector"]
    (group,) = made["ClusterQueue"]["spec"]["resourceGroups"]
    (flavor,) = group["flavors"]
    assert flavor["resources"] == [{"name": "google.com/tpu", "nominalQuota": 32}]
    assert flavor["name"] == made["ResourceFlavor"]["metadata"]["name"]
    queue = run["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    assert made["LocalQueue"]["metadata"]["name"] == queue
    assert made["LocalQueue"]["spec"]["clusterQueue"] == made["ClusterQueue"]["metadata"]["name"]
    assert made["ServiceAccount"]["metadata"]["name"] == "mine"


def closed(schema):
    """A CRD's schema that takes no field it does not name, as the server prunes them silently."""
    if not isinstance(schema, dict):
        return schema
    own = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes")}
    if "properties" in own:
        own["properties"] = {name: closed(inner) for name, inner in own["properties"].items()}
        own["additionalProperties"] = False
    if isinstance(own.get("additionalProperties"), dict):
        own["additionalProperties"] = closed(own["additionalProperties"])
    if "items" in own:
        own["items"] = closed(own["items"])
    if schema.get("x-kubernetes-int-or-string"):
        own.pop("type", None)
    return own


@pytest.mark.peers
def test_jobsets_of_every_shape_are_what_the_schema_says():
    jsonschema = pytest.importorskip("jsonschema", reason="needs requirements-peers.txt")
    if not CRD.is_file():
        pytest.skip("needs the CRD of JobSet, ../shared/data/launch/jobset_crd.yaml")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    (version,) = yaml.load(CRD.read_text(), loader)["spec"]["versions"]
    schema = closed(version["schema"]["openAPIV3Schema"])
    judge = jsonschema.Draft202012Validator(schema)
    for name, job in every_kubernetes_job():
        (manifest,) = kubernetes.manifests(job)
        assert manifest["apiVersion"] == f"jobset.x-k8s.io/{version['name']}"
        errors = [
            f"{name}: {error.json_path}: {error.message}" for error in judge.iter_errors(manifest)
        ]
        assert not errors, errors
    manifest["spec"]["failurePolicy"]["maxRestart"] = 1
    assert not judge.is_valid(manifest)


@pytest.mark.peers
def test_child_jobs_of_every_shape_are_what_kubernetes_takes():
    validate = pytest.importorskip("kubernetes_validate", reason="needs requirements-peers.txt")

    def job_manifest(manifest):
        metadata = {"name": manifest["metadata"]["name"]}
        return {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": metadata,
            "spec": work_of(manifest),
        }

    seen = set()
    for _, job in every_kubernetes_job():
        (manifest,) = kubernetes.manifests(job)
        child = job_manifest(manifest)
        parts = json.dumps(child, sort_keys=True)
        seen.add(parts)
        validate.validate(child, "1.32", strict=True)
    assert len(seen) > len(SHAPES)
    child["spec"]["podFailurePolicie"] = {}
    with pytest.raises(validate.ValidationError):
        validate.validate(child, "1.32", strict=True)


def python_of(program):
    """The interpreter of an installed program; skips where it is missing."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"needs {program} on the PATH, in an environment of its own")
    return Path(path).read_text().splitlines()[0].removeprefix("#!")


TABLE = """
import json
from xpk.core.system_characteristics import UserFacingNameToSystemCharacteristics as table
print(json.dumps({name: (of.topology, of.vms_per_slice, of.chips_per_vm, of.gke_accelerator)
                  for name, of in table.items()}))
"""


@pytest.mark.peers
def test_xpk_knows_the_same_shapes():
    asked = [python_of("xpk"), "-c", TABLE]
    said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    table = {name: tuple(of) for name, of in json.loads(said).items()}
    unknown = []
    for name, shape in SHAPES.items():
        if name in table:
            topology = shape.topology or "N/A"
            assert table[name] == (topology, shape.hosts, shape.chips, shape.label)
        else:
            unknown.append(name)
    # xpk has no single hosts of v5e (GKE's pages do), and no GPUs of whatever kind there are.
    assert unknown == ["v5litepod-4", "gpu-1", "gpu-2", "gpu-4", "gpu-8"]


@pytest.mark.peers
@pytest.mark.parametrize(("name", "slices"), [("v6e-16", 2), ("v5p-32", 1), ("tpu7x-16", 1)])
def test_xpk_would_start_the_same(name, slices, tmp_path):
    python_of("xpk")
    path = tmp_path / "xpk.yaml"
    command = ["xpk", "workload", "create", "--dry-run", "--skip-validation", "--workload=run"]
    command += [f"--output-manifest-file={path}", "--cluster=c", "--project=p", "--zone=us-east5-a"]
    command += ["--docker-image=r/albert:1", "--command=python train.py", f"--tpu-type={name}"]
    command += [f"--num-slices={slices}", "--max-restarts=50", "--restart-on-exit-codes=75"]
    subprocess.run(
        command, env=os.environ | {"HOME": str(tmp_path)}, check=True, capture_output=True
    )
    theirs = yaml.safe_load(path.read_text())
    job = job_of(kubernetes, shape=name, image="r/albert:1", slices=slices)
    (ours,) = kubernetes.manifests(job)
    assert theirs["apiVersion"] == ours["apiVersion"]
    assert theirs["metadata"]["annotations"] == ours["metadata"]["annotations"]
    assert theirs["spec"]["replicatedJobs"][0]["replicas"] == slices
    for field in ("parallelism", "completions", "backoffLimit"):
        assert work_of(theirs)[field] == work_of(ours)[field]
    pods = [work_of(each)["template"]["spec"] for each in (theirs, ours)]
    selectors = [pod["nodeSelector"] for pod in pods]
    placement = "cloud.google.com/placement-policy-name"  # of pools that xpk itself has made
    assert {k: v for k, v in selectors[0].items() if k != placement} == selectors[1]
    for field in ("restartPolicy", "hostNetwork", "dnsPolicy"):
        assert pods[0][field] == pods[1][field]
    limits = [pod["containers"][0]["resources"]["limits"] for pod in pods]
    assert limits[0] == limits[1]
    codes = work_of(theirs)["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"]
    assert {*AGAIN} <= {*codes}


@pytest.mark.peers
def test_xpk_takes_the_command_of_the_readme(tmp_path):
    python_of("xpk")
    (line,) = re.findall(r"^xpk .*$", (ROOT / "launch/kubernetes/README.md").read_text(), re.M)
    path = tmp_path / "xpk.yaml"
    more = ["--dry-run", "--skip-validation", f"--output-manifest-file={path}"]
    subprocess.run(
        [*shlex.split(line), *more, "--project=p", "--zone=us-east5-a"],
        env=os.environ | {"HOME": str(tmp_path)},
        check=True,
        capture_output=True,
    )
    theirs = yaml.safe_load(path.read_text())
    assert theirs["spec"]["failurePolicy"]["maxRestarts"] == 50
    (rule,) = work_of(theirs)["podFailurePolicy"]["rules"]
    assert {*AGAIN} <= {*rule["onExitCodes"]["values"]}
    assert 2 not in rule["onExitCodes"]["values"]


def every_task():
    for name, shape in SHAPES.items():
        for nodes in (1,) if shape.is_tpu else (1, 2):
            options = skypilot.Options(shape=name, nodes=nodes)
            if not skypilot.problems(options, PLACE, False):
                yield job_of(skypilot, shape=name, nodes=nodes)


def test_skypilot_gets_no_field_that_it_would_pass_over(tmp_path):
    recovery = {"strategy", "max_restarts_on_errors", "recover_on_exit_codes"}
    tasks = [skypilot.task(job, job.runs[0]) for job in every_task()]
    assert len(tasks) > 40
    scripts: set[str] = set()
    for task in tasks:
        assert {*task["resources"]["job_recovery"]} == recovery
        assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
        name = task["resources"]["accelerators"]
        assert re.fullmatch("tpu-v(4|5litepod|5p|6e)-[0-9]+|[A-Z0-9-]+:[1248]", name)
        assert ("accelerator_args" in task["resources"]) == name.startswith("tpu-")
        assert "file_mounts" not in task  # the run writes to the bucket itself
        scripts |= {f"#!/bin/bash\n{task[part]}" for part in ("setup", "run")}
    for script in scripts:
        check_shell(script, tmp_path)


PARSE = """
import sys, sky
for path in sys.argv[1:]:
    task = sky.Task.from_yaml(path)
    (resources,) = task.resources
    print(task.num_nodes, resources.accelerators, resources.use_spot, resources.job_recovery)
"""


@pytest.mark.peers
def test_skypilot_reads_the_tasks_of_every_shape(tmp_path):
    python = python_of("sky")
    jobs, paths = list(every_task()), []
    for place, job in enumerate(jobs):
        ((_, text),) = skypilot.files(job).items()
        paths.append(tmp_path / f"{place}.yaml")
        paths[-1].write_text(text)
    environment = os.environ | {"HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    done = subprocess.run(
        [python, "-c", PARSE, *paths], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stdout.splitlines() if "recover_on_exit_codes" in line]
    assert len(lines) == len(jobs)
    for line, job in zip(lines, jobs, strict=True):
        task = skypilot.task(job, job.runs[0])
        name, _, count = task["resources"]["accelerators"].partition(":")
        assert line.startswith(f"{task['num_nodes']} {{'{name}': {count or 1}")
    broken = tmp_path / "broken.yaml"
    broken.write_text(paths[0].read_text().replace("num_nodes", "num_node"))
    again = [python, "-c", PARSE, str(broken)]
    assert subprocess.run(again, env=environment, capture_output=True).returncode


def refused_by_gcloud(command, folder):
    """Why gcloud would not take a command; without an account it ends with 1 behind its check."""
    environment = os.environ | {
        "CLOUDSDK_CONFIG": str(folder),
        "CLOUDSDK_CORE_CHECK_GCE_METADATA": "0",
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
        "CLOUDSDK_CORE_PROJECT": "mine",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)
    assert done.returncode in (1, 2), done.stdout
    return done.stderr if done.returncode == 2 else ""


def commands_of(job):
    """What would be run to start a job, and what its user is told of."""
    asked: list[list[str]] = []

    def ask(command):
        asked.append(list(command))
        return "SUSPENDED\n" if "list" in command else ""

    told = tpu_vm.start(job, ask)
    shown = [line.partition("gcloud ")[2] for line in told if "gcloud " in line]
    return asked, [["gcloud", *shlex.split(line)] for line in shown]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {
            "slices": 2,
            "spot": True,
            "valid": "12h",
            "service_account": "a@b.iam",
            "project": "mine",
        },
        {"reserved": True, "delete_when_done": True},
    ],
    ids=["slices", "reserved"],
)
def test_gcloud_takes_every_command(options, tmp_path, monkeypatch):
    if shutil.which("gcloud") is None:
        pytest.skip("needs gcloud")
    monkeypatch.chdir(tmp_path)
    job = job_of(tpu_vm, **VM, **options)
    for name, text in tpu_vm.files(job).items():
        (tmp_path / name).write_text(text)
    asked, told = commands_of(job)
    assert [command[4] for command in asked] == ["list", "delete", "create"]
    assert [command[4] for command in told] == ["describe", "ssh", "ssh", "delete"]
    for command in (*asked, *told):
        assert not refused_by_gcloud(command, tmp_path)
    assert "--worker=all" in told[1]
    assert "unrecognized arguments" in refused_by_gcloud([*asked[-1], "--spots"], tmp_path)


@pytest.mark.slow
def test_gcloud_takes_the_commands_of_the_readme(tmp_path):
    if shutil.which("gcloud") is None:
        pytest.skip("needs gcloud")
    text = (ROOT / "launch/tpu_vm/README.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^gcloud .*$", text, re.M)
    assert len(commands) == 7
    (tmp_path / "startup.sh").write_text("true\n")
    for command in commands:
        assert not refused_by_gcloud(shlex.split(command), tmp_path)


HOST = """#!/bin/bash
# What docker and gcloud do on a host: the run leaves with the next of these codes.
name=$(basename "$0")
echo "$name $*" >> {folder}/calls
case "$name $1 $2" in
  "docker run "*)
    read -r code < {folder}/codes
    sed -i 1d {folder}/codes
    exit "$code" ;;
  "gcloud storage ls") [ -e {folder}/ended ] ;;
  "gcloud storage cp") cat > {folder}/ended ;;
  "gcloud storage cat") cat {folder}/ended ;;
esac
"""


@pytest.fixture
def host(tmp_path):
    """Starts a host's script with codes that the run leaves with; its log, and what it called."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("docker", "gcloud", "sleep", "curl"):
        (programs / name).write_text(HOST.format(folder=tmp_path))
        (programs / name).chmod(0o755)

    def start(codes, **options):
        job = job_of(tpu_vm, **VM, **options)
        (script,) = tpu_vm.files(job).values()
        check_shell(script, tmp_path)
        assert not re.search("@[A-Z]+@", script)
        path = tmp_path / "startup.sh"
        path.write_text(script.replace("/run/albert-stop", str(tmp_path / "stop")))
        (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
        (tmp_path / "calls").unlink(missing_ok=True)
        environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["bash", path], env=environment, capture_output=True, text=True, timeout=60
        )
        left = (tmp_path / "codes").read_text().split()
        return done.stdout, left, (tmp_path / "calls").read_text()

    return start


def test_a_host_goes_on_until_the_run_is_finished(host):
    log, left, calls = host([75, 134, 143, 0, 99])
    assert left == ["99"]
    assert "The run is finished." in log
    run = next(line for line in calls.splitlines() if line.startswith("docker run"))
    assert run.endswith(" ".join(["r/albert:1", *TRAIN]))
    assert "--network=host" in run
    assert "queued-resources delete" not in calls


def test_a_host_with_something_to_mend_ends_the_others_as_well(host, tmp_path):
    log, left, _ = host([75, 2, 99])
    assert left == ["99"]
    assert "There is something to mend: the run left with 2" in log
    log, left, calls = host([0])  # another host: it finds what the first one wrote
    assert left == ["0"]
    assert "There is something to mend" in log
    assert "docker run" not in calls


def test_a_host_starts_a_run_again_so_often(host):
    log, left, _ = host([75, 75, 75, 75], restarts=2)
    assert left == ["75"]
    assert "Started again 2 times, no more." in log


def test_a_host_that_was_told_to_rest_rests(host, tmp_path):
    (tmp_path / "stop").touch()
    log, left, _ = host([0])
    assert left == ["0"]
    assert "Stopped, as asked." in log


def test_the_slice_is_deleted_by_its_first_host_alone(host):
    assert "queued-resources delete" in tpu_vm.startup(job_of(tpu_vm, **VM, delete_when_done=True))
    _, _, calls = host([0], delete_when_done=True)  # a curl that says nothing is no host 0
    assert "queued-resources delete" not in calls


def stages(*commands):
    return ["bash", ROOT / "launch/stages.sh", *commands]


def test_stages_follow_each_other_and_end_with_the_first_that_fails(tmp_path):
    check_shell((ROOT / "launch/stages.sh").read_text(), tmp_path)
    out = tmp_path / "out"
    write = f"bash -c 'echo $0 >> {out}; exit $1'"
    assert subprocess.run(stages(f"{write} a 0", f"{write} b 0")).returncode == 0
    assert out.read_text() == "a\nb\n"
    assert subprocess.run(stages(f"{write} c 2", f"{write} d 0")).returncode == 2
    assert out.read_text() == "a\nb\nc\n"


SAVES = (
    "import signal, sys, time; "
    "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), sys.exit(75))); "
    "print('begun', flush=True); time.sleep(60)"
)


def test_a_stage_gets_the_signal_and_says_how_it_ended(tmp_path):
    second = f"touch {tmp_path / 'second'}"
    command = stages(shlex.join(["python3", "-c", SAVES]), second)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "begun\n"
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 75
        assert time.monotonic() - begun < 20
    assert not (tmp_path / "second").exists()


def test_the_image_has_what_is_pinned_and_what_exists():
    packaging = pytest.importorskip("packaging.requirements")
    folder = ROOT / "launch" / "images"
    lines = (folder / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    for name in ("inference.txt", "train.txt"):
        for line in (ROOT / "requirements" / name).read_text().splitlines():
            text = line.partition("#")[0].strip()
            if text:
                requirement = packaging.Requirement(text)
                environment = {"python_version": "3.12"}
                if requirement.marker is None or requirement.marker.evaluate(environment):
                    version = pins[requirement.name.lower()]
                    assert requirement.specifier.contains(version), f"{text}: {version}"
    assert {"gcsfs", "libtpu", "jax-cuda13-plugin"} <= {*pins}
    docker = (folder / "Dockerfile").read_text()
    assert re.search(r"^FROM python:3\.12\.\d+-slim-\w+$", docker, re.M)
    copied = [path for line in re.findall("^COPY (.*) ", docker, re.M) for path in line.split()]
    allowed = (folder / "Dockerfile.dockerignore").read_text().splitlines()
    assert allowed[0] == "*"
    for path in copied:
        assert (ROOT / path).exists(), path
        assert f"!{path}" in allowed, path


def test_the_readmes_name_flags_that_there_are():
    common = {"config", "workdir", "sweep", "print"}
    seen = set()
    for path in sorted((ROOT / "launch").glob("*/README.md")):
        text = path.read_text().replace("\\\n", " ")
        for target, line in re.findall(r"tools/launch\.py (\w+) (.*)", text):
            own = {field.name for field in dataclasses.fields(TARGETS[target].Options)}
            own |= {f"no{name}" for name in own}
            for name in re.findall(r"(?:^|\s)--(\w+)", line):
                assert name in own | common, f"{path}: --{name}"
            seen.add(target)
    assert seen == {*TARGETS}
