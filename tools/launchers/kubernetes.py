"""Kubernetes: a JobSet for a run, in a queue of Kueue; as many of them for the runs of a sweep."""

import dataclasses
import re
import shlex
from pathlib import Path

import yaml

from tools.launchers.base import (
    AGAIN,
    PORT,
    Ask,
    Devices,
    Job,
    Run,
    bucket_problems,
    dns_name,
    option,
    run_name,
)
from tools.launchers.shapes import Shape, find_shape, shape_problems

PROGRAM = "kubectl"
SEES_THIS_DISK = False
_CONTAINER = "albert"
_NAME = re.compile("[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_KEPT_SECONDS = 24 * 3600  # of what has ended, for its log
_SPOT = {"cloud.google.com/gke-spot": "true"}
_TPU, _GPU = "google.com/tpu", "nvidia.com/gpu"


@dataclasses.dataclass(frozen=True)
class Options:
    shape: str = option("", "Accelerator: v6e-16, v5p:2x2x4, h100-80gb-8, gpu-8 (any kind), ...")
    slices: int = option(1, "Slices of TPUs of a run.", 1)
    nodes: int = option(1, "Machines with GPUs of a run, a process for each.", 1)
    image: str = option("", "The container, with a tag: built by launch/images/Dockerfile.")
    queue: str = option("albert", "LocalQueue of Kueue; empty: started at once.")
    namespace: str = option("default", "In which the job runs.")
    service_account: str = option("default", "Of its pods; it may write to the bucket.")
    spot: bool = option(False, "On spot machines of GKE.")
    notice: int = option(120, "Seconds to save in before a pod is killed.", 1)
    restarts: int = option(50, "Started again so often at most.", 0)
    setup: bool = option(False, "What an administrator applies once (queue, account), not the job.")

    @property
    def of(self) -> Shape:
        return find_shape(self.shape)

    @property
    def hosts(self) -> int:
        """Of a slice, or all machines with GPUs."""
        return self.of.hosts * self.nodes


def problems(options: Options, workdir: Path, is_sweep: bool) -> list[str]:
    """What is wrong, one sentence each."""
    found = shape_problems(options.shape, options.slices, options.nodes)
    found += bucket_problems(workdir)
    if not options.setup:
        found += image_problems(options.image)
    for name in ("queue", "namespace", "service_account"):
        value = getattr(options, name)
        may_be_empty = name == "queue"
        if not (_NAME.fullmatch(value) or (may_be_empty and not value)):
            found.append(f"--{name} is {value!r}; Kubernetes has names of a-z, 0-9 and hyphens")
    if options.setup and not options.queue:
        found.append("--setup makes a queue, and --queue is empty; name it")
    if options.spot and not found and not options.of.label:
        found.append(f"--spot is for machines of GKE, and {options.shape} names no kind of them")
    return found


def image_problems(image: str) -> list[str]:
    """Why a container cannot be what runs twice the same."""
    if not image:
        return ["--image is missing; it is the container of the run, see launch/images/README.md"]
    name, _, digest = image.partition("@")
    tag = name.rpartition("/")[2].partition(":")[2]
    of_digest = not digest or re.fullmatch("sha256:[0-9a-f]{64}", digest)
    if not (re.fullmatch(r"[a-z0-9][\w.:/-]*", name) and of_digest):
        return [f"--image is {image!r}; it must be REGISTRY/NAME:TAG or REGISTRY/NAME@sha256:..."]
    if not digest and tag in ("", "latest"):
        return [
            f"--image is {image!r}, which may be another one after a restart; name a tag that stays"
        ]
    return []


def devices(options: Options) -> Devices:
    shape = options.of
    several = options.slices if shape.is_tpu else options.nodes
    words = f"{several} x {shape.name}, {several * shape.devices} devices"
    return Devices(several * shape.devices, options.hosts * options.slices, words, options.slices)


def manifests(job: Job) -> list[dict]:
    """A JobSet for each run; with --setup what has to be there before."""
    return setup(job.options) if job.options.setup else [jobset(job, run) for run in job.runs]


def jobset(job: Job, run: Run) -> dict:
    """The JobSet of a run: a job for each slice, a pod for each host.

    A pod that leaves with something to mend ends everything; whatever else happens to one, and a
    run that asks to go on, starts all of them anew, `restarts` times at most.
    """
    options: Options = job.options
    shape, name = options.of, run_name(job, run)
    labels = {"kueue.x-k8s.io/queue-name": options.queue} if options.queue else {}
    # Slices of several hosts are pools of nodes, and no two jobs share one.
    annotations = (
        {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
        if shape.hosts > 1
        else {}
    )
    work = {
        "parallelism": options.hosts,
        "completions": options.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": _CONTAINER,
                        "operator": "NotIn",
                        "values": list(AGAIN),
                    },
                }
            ]
        },
        "template": {"spec": _pod(options, run, name)},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": name,
            "namespace": options.namespace,
            **({"labels": labels} if labels else {}),
            **({"annotations": annotations} if annotations else {}),
        },
        "spec": {
            "ttlSecondsAfterFinished": _KEPT_SECONDS,
            "failurePolicy": {
                "maxRestarts": options.restarts,
                # None begins anew while pods of the start before still save.
                "restartStrategy": "BlockingRecreate",
                "rules": [
                    {
                        "name": "something_to_mend",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [
                {"name": _replicated(shape), "replicas": options.slices, "template": {"spec": work}}
            ],
        },
    }


def _replicated(shape: Shape) -> str:
    return "slice" if shape.is_tpu else "hosts"


def _pod(options: Options, run: Run, name: str) -> dict:
    shape = options.of
    selector = _node_labels(shape)
    resource = _TPU if shape.is_tpu else _GPU
    tolerations = [{"key": resource, "operator": "Exists", "effect": "NoSchedule"}]
    if options.spot:
        selector |= _SPOT
        tolerations.append({"key": next(iter(_SPOT)), "operator": "Exists", "effect": "NoSchedule"})
    command = list(run.commands[0])
    if len(run.commands) > 1:
        command = ["bash", "launch/stages.sh", *map(shlex.join, run.commands)]
    return {
        # A pod that is replaced by its own job would meet peers of another start.
        "restartPolicy": "Never",
        "serviceAccountName": options.service_account,
        "terminationGracePeriodSeconds": options.notice,
        **({"nodeSelector": selector} if selector else {}),
        "tolerations": tolerations,
        # Slices speak to each other over the hosts' own network.
        **({"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"} if shape.is_tpu else {}),
        "containers": [
            {
                "name": _CONTAINER,
                "image": options.image,
                "command": command,
                "env": _environment(options, name),
                "resources": {"limits": {resource: shape.chips}},
                "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
            }
        ],
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
    }


def _node_labels(shape: Shape) -> dict[str, str]:
    if shape.is_tpu:
        return {
            "cloud.google.com/gke-tpu-accelerator": shape.label,
            "cloud.google.com/gke-tpu-topology": shape.topology,
        }
    return {"cloud.google.com/gke-accelerator": shape.label} if shape.label else {}


def _environment(options: Options, name: str) -> list[dict]:
    """GKE tells hosts of TPUs about each other; hosts with GPUs are told here."""
    shape = options.of
    # Without its accelerator jax would take the CPU, for days.
    found: list[dict] = [
        {"name": "JAX_PLATFORMS", "value": "tpu,cpu" if shape.is_tpu else "cuda,cpu"}
    ]
    if not shape.is_tpu and options.nodes > 1:
        index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
        first = f"{name}-{_replicated(shape)}-0-0.{name}:{PORT}"
        found += [
            {"name": "JAX_COORDINATOR_ADDRESS", "value": first},
            {"name": "JAX_NUM_PROCESSES", "value": str(options.nodes)},
            {"name": "JAX_PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": index}}},
        ]
    return found


def setup(options: Options) -> list[dict]:
    """Kueue's flavor of such nodes, and a queue with room for one run; an account for the pods."""
    shape = options.of
    resource = _TPU if shape.is_tpu else _GPU
    room = options.hosts * options.slices * shape.chips
    flavor = dns_name(f"{shape.name}{'-spot' if options.spot else ''}")
    labels = _node_labels(shape) | (_SPOT if options.spot else {})
    kueue = "kueue.x-k8s.io/v1beta2"
    quota = {"name": flavor, "resources": [{"name": resource, "nominalQuota": room}]}
    place = {"namespace": options.namespace}
    made: list[dict] = [
        {
            "apiVersion": kueue,
            "kind": "ResourceFlavor",
            "metadata": {"name": flavor},
            "spec": {"nodeLabels": labels} if labels else {},
        },
        {
            "apiVersion": kueue,
            "kind": "ClusterQueue",
            "metadata": {"name": options.queue},
            "spec": {
                "namespaceSelector": {},
                "resourceGroups": [{"coveredResources": [resource], "flavors": [quota]}],
            },
        },
        {
            "apiVersion": kueue,
            "kind": "LocalQueue",
            "metadata": {"name": options.queue} | place,
            "spec": {"clusterQueue": options.queue},
        },
    ]
    if options.service_account != "default":
        account = {"name": options.service_account} | place
        made.append({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account})
    return made


def _file(job: Job) -> str:
    return f"kubernetes-{dns_name(job.name)}{'-setup' if job.options.setup else ''}.yaml"


def files(job: Job) -> dict[str, str]:
    return {_file(job): yaml.safe_dump_all(manifests(job), sort_keys=False, width=1000)}


def start(job: Job, ask: Ask) -> list[str]:
    options: Options = job.options
    path = str(job.folder / _file(job))
    verb = "apply" if options.setup else "create"
    ask(["kubectl", verb, "--dry-run=server", f"--filename={path}"])
    ask(["kubectl", verb, f"--filename={path}"])
    if options.setup:
        return [f"The queue {options.queue} is there. Remove it: kubectl delete --filename={path}"]
    within = f"--namespace={options.namespace}"
    name = run_name(job, job.runs[0])
    pods = f"--selector=jobset.sigs.k8s.io/jobset-name={name}"
    return [
        f"Queued. Watch: kubectl get jobsets {within}; kubectl logs {within} {pods} --follow "
        "--prefix --max-log-requests=100",
        f"Stop: kubectl delete --filename={path} saves and ends it; the same command goes on.",
    ]
