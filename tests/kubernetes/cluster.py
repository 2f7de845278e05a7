"""etcd, kube-apiserver and kube-scheduler as plain processes on loopback, and nodes without machines.

No node controller runs here, so a node stays Ready once it reports so; nor does a kubelet, see ``kubelet``.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.kubernetes import build, keys

ADMIN, CONTROLLER, APPLICATION, TUNER = "admin-token", "controller-token", "application-token", "tuner-token"
ACCOUNTS = {
    ADMIN: ("admin", '"system:masters"'),
    CONTROLLER: ("system:serviceaccount:unfold:unfold-placement", '"system:serviceaccounts"'),
    APPLICATION: ("application", '"applications"'),
    TUNER: ("system:serviceaccount:unfold:unfold-tuner", '"system:serviceaccounts"'),
}
"""Who may speak to the server: controller and tuner by the RBAC manifests of this project alone."""
PATIENCE = 120.0


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """A running control plane: its folder, the server's address, and a kubeconfig with a context for each account."""

    folder: Path
    server: str
    version: str

    @property
    def kubeconfig(self) -> Path:
        """The file that clients read."""
        return self.folder / "kubeconfig"


@contextlib.contextmanager
def control_plane(*, gates: str = "", runtime: str = "", claims: bool = False) -> Iterator[ControlPlane]:
    """Start a control plane and stop it again, whatever happens; killed with us, too, where the system can.

    Args:
        gates: Feature gates of both programs, as ``A=true,B=true``.
        runtime: Further API groups, as ``scheduling.k8s.io/v1alpha2=true``.
        claims: Run what frees the claims (DRA) of pods that have ended, too.

    Raises:
        RuntimeError: if a program is missing, ends, or is not ready in time; holds what it said last.
    """
    if build.missing():
        raise RuntimeError(f"not built: {', '.join(build.missing())} (python -m tests.kubernetes.build)")
    with tempfile.TemporaryDirectory(prefix="control-plane-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        client, peer, port = free_ports(3)
        made = ControlPlane(folder, f"https://127.0.0.1:{port}", build.VERSION)
        _write_files(made)
        store = stack.enter_context(running(folder, "etcd", _etcd(folder, client, peer)))
        _until_ready(folder, "etcd", store, f"http://127.0.0.1:{client}/health")
        words = _apiserver(folder, client, port, gates, runtime)
        server = stack.enter_context(running(folder, "kube-apiserver", words))
        _until_ready(folder, "kube-apiserver", server, f"{made.server}/readyz")
        words = [f"--config={folder / 'scheduler.json'}", "--secure-port=0"]
        words += [f"--feature-gates={gates}"] if gates else []
        programs = {"etcd": store, "kube-apiserver": server}
        programs["kube-scheduler"] = stack.enter_context(running(folder, "kube-scheduler", words))
        if claims:
            words = [f"--kubeconfig={made.kubeconfig}"]
            programs["claim-controller"] = stack.enter_context(running(folder, "claim-controller", words))
        yield made
        still_there(folder, programs)


def _etcd(folder: Path, client: int, peer: int) -> list[str]:
    mine, other = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
    words = ["--listen-client-urls", mine, "--advertise-client-urls", mine, "--listen-peer-urls", other]
    words += ["--initial-advertise-peer-urls", other, "--initial-cluster", f"default={other}"]
    # what a crash of the machine would lose is lost anyway: the folder is temporary
    return [*words, "--data-dir", str(folder / "etcd"), "--unsafe-no-fsync", "--log-level", "warn"]


def _apiserver(folder: Path, client: int, port: int, gates: str, runtime: str) -> list[str]:
    words = {
        "etcd-servers": f"http://127.0.0.1:{client}",
        "service-cluster-ip-range": "10.0.0.0/24",
        "bind-address": "127.0.0.1",
        "advertise-address": "127.0.0.1",
        "secure-port": str(port),
        "cert-dir": str(folder),
        "tls-cert-file": str(folder / "server.crt"),
        "tls-private-key-file": str(folder / "server.key"),
        "client-ca-file": str(folder / "ca.crt"),
        "token-auth-file": str(folder / "tokens.csv"),
        "service-account-issuer": "https://kubernetes.default.svc",
        "service-account-key-file": str(folder / "sa.pub"),
        "service-account-signing-key-file": str(folder / "sa.key"),
        "authorization-mode": "RBAC",
        # no controller makes service accounts, nor removes the taint of a new node
        "disable-admission-plugins": "ServiceAccount,TaintNodesByCondition",
        "endpoint-reconciler-type": "none",
        "max-requests-inflight": "4000",
        "max-mutating-requests-inflight": "2000",
        "profiling": "false",
        **({"feature-gates": gates} if gates else {}),
        **({"runtime-config": runtime} if runtime else {}),
    }
    return [f"--{name}={value}" for name, value in words.items()]


def _write_files(made: ControlPlane) -> None:
    """Write keys, tokens, the clients' configuration and that of the scheduler."""
    keys.write(made.folder)
    lines = [f"{token},{user},{user},{groups}" for token, (user, groups) in ACCOUNTS.items()]
    (made.folder / "tokens.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    names = {"admin": ADMIN, "controller": CONTROLLER, "application": APPLICATION, "tuner": TUNER}
    cluster = {"server": made.server, "certificate-authority": str(made.folder / "ca.crt")}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "admin",
        "clusters": [{"name": "loopback", "cluster": cluster}],
        "users": [{"name": name, "user": {"token": token}} for name, token in names.items()],
        "contexts": [{"name": name, "context": {"cluster": "loopback", "user": name}} for name in names],
    }
    made.kubeconfig.write_text(json.dumps(config), encoding="utf-8")
    scheduler = {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "leaderElection": {"leaderElect": False},
        "clientConnection": {"kubeconfig": str(made.kubeconfig), "qps": 1000, "burst": 2000},
    }
    (made.folder / "scheduler.json").write_text(json.dumps(scheduler), encoding="utf-8")


@contextlib.contextmanager
def running(
    folder: Path,
    name: str,
    words: Sequence[str],
    *,
    program: Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program, by default the one of that name, until the end of the block; its output is in a file."""
    # util-linux lets the kernel end it with us, should we be killed
    helper = shutil.which("setpriv")
    before = [helper, "--pdeathsig", "KILL"] if helper else []
    with (folder / f"{name}.log").open("wb") as log:
        command = [*before, str(program or build.found()[name]), *words]
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=variables)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until_ready(folder: Path, name: str, process: subprocess.Popen[bytes], url: str) -> None:
    """Wait until a health page answers 200."""
    trusted = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {ADMIN}"})  # noqa: S310 - loopback
    end = time.monotonic() + PATIENCE
    while True:
        still_there(folder, {name: process})
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5, context=trusted):  # noqa: S310
            return
        if time.monotonic() > end:
            raise RuntimeError(f"{name} is not ready after {PATIENCE:.0f} s: {_last_words(folder, name)}")
        # its port opens when it opens; there is nothing to wait on
        time.sleep(0.1)


def still_there(folder: Path, processes: dict[str, subprocess.Popen[bytes]]) -> None:
    """Check that programs run.

    Raises:
        RuntimeError: one has ended; holds what it printed last.
    """
    for name, process in processes.items():
        if process.poll() is not None:
            raise RuntimeError(f"{name} ended with {process.returncode}: {_last_words(folder, name)}")


def _last_words(folder: Path, name: str) -> str:
    return (folder / f"{name}.log").read_text("utf-8", errors="replace")[-3000:]


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that are free now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [int(item.getsockname()[1]) for item in sockets]
