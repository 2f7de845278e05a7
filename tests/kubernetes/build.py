"""The programs of a Kubernetes control plane: built once from their Go modules, kept outside the checkout.

``python -m tests.kubernetes.build`` prints the folder that holds them; with ``kueue`` after it, it builds Kueue, too,
and with ``workloads`` the controllers of Jobs and JobSets.
Nothing here is shipped in the wheel.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

VERSION = "1.36.3"
STAGING = "0.36.3"
NO_GO = "there is no Go on the path (https://go.dev/dl, or Debian: apt-get install golang)"
ETCD_FROM = (3, 5)
SERVERS = {
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
    "claim-controller": ".",
}
"""Packages of programs; the last is our own ``claims.go``, one part of kube-controller-manager."""
ETCD = "go.etcd.io/etcd/server/v3"
KUEUE, KUEUE_VERSION, KUEUE_GO = "sigs.k8s.io/kueue", "0.17.0", "1.25.0"
JOBSET, JOBSET_VERSION = "sigs.k8s.io/jobset", "0.11.1"
# what is built for tests alone may run somewhat slower: without inlining Go compiles in two thirds of the time
QUICK = "-gcflags=all=-l -dwarf=false"


def place() -> Path:
    """Return the folder of the programs: below UNFOLD_KUBERNETES, or below the user's cache."""
    given = os.environ.get("UNFOLD_KUBERNETES")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (Path(given) if given else cache / "unfoldkit" / "kubernetes") / VERSION


def found() -> dict[str, Path]:
    """Return the programs that are there, by name."""
    names = {name: place() / name for name in (*SERVERS, "etcd")}
    there = {name: path for name, path in names.items() if os.access(path, os.X_OK)}
    installed = shutil.which("etcd")
    if "etcd" not in there and installed and _etcd_version(installed) >= ETCD_FROM:
        there["etcd"] = Path(installed)
    return there


def missing() -> list[str]:
    """Return the names of the programs that are not there."""
    return [name for name in (*SERVERS, "etcd") if name not in found()]


def build() -> Path:
    """Build what is missing; a build that was stopped leaves nothing half written.

    Raises:
        RuntimeError: if there is no Go, or Go fails; holds what Go said.
    """
    names = missing()
    if names:
        with tempfile.TemporaryDirectory(prefix="control-plane-") as folder:
            _write_module(Path(folder))
            for name in names:
                _build_one(Path(folder), name)
    return place()


def kueue() -> Path:
    """Return the path of Kueue's manager, whether it is there or not: its version is part of the name."""
    return place() / f"kueue-{KUEUE_VERSION}"


def kueue_module() -> Path | None:
    """Return the folder of Kueue's source in Go's module cache (its CRDs are read from there); None if absent."""
    return _module_folder(KUEUE, KUEUE_VERSION)


def jobset_module() -> Path | None:
    """Return the folder of JobSet's source in Go's module cache (its CRD is read from there); None if absent."""
    return _module_folder(JOBSET, JOBSET_VERSION)


def _module_folder(name: str, version: str) -> Path | None:
    program = shutil.which("go")
    if program is None:
        return None
    cache = subprocess.run([program, "env", "GOMODCACHE"], capture_output=True, text=True, check=False).stdout.strip()
    folder = Path(cache) / f"{name}@v{version}"
    return folder if folder.is_dir() else None


def build_kueue() -> Path:
    """Build Kueue's manager if it is missing (some 17 minutes of two cores where Go's build cache is empty).

    Raises:
        RuntimeError: if there is no Go, or Go fails; holds what Go printed.
    """
    if not os.access(kueue(), os.X_OK) or kueue_module() is None:
        with tempfile.TemporaryDirectory(prefix="kueue-") as name:
            # without a version of Go, the modules of all modules would be read: thousands
            lines = ["module unfoldkit/kueue", f"go {KUEUE_GO}", f"require {KUEUE} v{KUEUE_VERSION}"]
            (Path(name) / "go.mod").write_text("\n".join(lines) + "\n", encoding="utf-8")
            _compile(Path(name), kueue(), f"{KUEUE}/cmd/kueue", "-s -w")
    return kueue()


def workload_controllers() -> dict[str, Path]:
    """Return the paths of the controllers of Jobs and JobSets, by name, whether they are there or not."""
    return {"job-controller": place() / "job-controller", "jobset-controller": place() / f"jobset-{JOBSET_VERSION}"}


def build_workload_controllers() -> Path:
    """Build the controllers of Jobs and JobSets if they are missing.

    Raises:
        RuntimeError: if there is no Go, or Go fails; holds what Go printed.
    """
    programs = workload_controllers()
    if not os.access(programs["job-controller"], os.X_OK):
        with tempfile.TemporaryDirectory(prefix="job-controller-") as name:
            _write_module(Path(name), "controllers.go")
            _compile(Path(name), programs["job-controller"], ".", "-s -w")
    if not os.access(programs["jobset-controller"], os.X_OK) or jobset_module() is None:
        with tempfile.TemporaryDirectory(prefix="jobset-") as name:
            # with the libraries that Kueue requires, Go compiles them once for both
            lines = ["module unfoldkit/jobset", f"go {KUEUE_GO}", f"require {KUEUE} v{KUEUE_VERSION}"]
            lines += [f"require {JOBSET} v{JOBSET_VERSION}"]
            (Path(name) / "go.mod").write_text("\n".join(lines) + "\n", encoding="utf-8")
            shutil.copy(Path(__file__).with_name("jobset.go"), Path(name) / "main.go")
            _compile(Path(name), programs["jobset-controller"], ".", "-s -w")
    return place()


def _build_one(folder: Path, name: str) -> None:
    """Build one program of the control plane."""
    _compile(folder, place() / name, SERVERS.get(name, ETCD), _flags(name))


def _compile(folder: Path, program: Path, package: str, flags: str) -> None:
    """Build a package of a module and move the program, whole, into its place."""
    program.parent.mkdir(parents=True, exist_ok=True)
    partial = program.with_name(f".{program.name}.{os.getpid()}")
    words = ["build", "-mod=mod", "-trimpath", "-buildvcs=false", QUICK, "-ldflags", flags, "-o", str(partial)]
    _go(folder, *words, package)
    partial.replace(program)


def _flags(name: str) -> str:
    """Return the linker's flags: no symbols, and the version that clients see, as upstream sets it."""
    if name == "etcd":
        return "-s -w"
    major, minor, _ = VERSION.split(".")
    values = {"gitVersion": f"v{VERSION}", "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    # both packages carry the version: the servers' own, and the client's user agent
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return "-s -w " + " ".join(f"-X {package}.{key}={value}" for package in packages for key, value in values.items())


def _write_module(folder: Path, program: str = "claims.go") -> None:
    """Write a module that requires Kubernetes, with the replacements that Kubernetes keeps to itself, and a program."""
    (folder / "go.mod").write_text("module unfoldkit/controlplane\n", encoding="utf-8")
    module = json.loads(_go(folder, "mod", "download", "-json", f"k8s.io/kubernetes@v{VERSION}"))
    theirs = Path(module["GoMod"]).read_text("utf-8")
    (folder / "go.mod").write_text(_module(theirs), encoding="utf-8")
    shutil.copy(Path(__file__).with_name(program), folder / "main.go")


def _module(theirs: str) -> str:
    """Return our ``go.mod``, from that of Kubernetes: replacements in a dependency's file do not count."""
    go = re.search(r"^go (\S+)", theirs, re.MULTILINE)
    etcd = re.search(rf"^\s*{re.escape(ETCD)} (v\S+)", theirs, re.MULTILINE)
    if go is None or etcd is None:
        raise RuntimeError(f"the go.mod of k8s.io/kubernetes {VERSION} has no go line or no {ETCD}")
    staging = re.findall(r"^\s*(?:replace )?(k8s\.io/\S+) => \./staging/", theirs, re.MULTILINE)
    lines = ["module unfoldkit/controlplane", f"go {go[1]}"]
    lines += [f"require k8s.io/kubernetes v{VERSION}", f"require {ETCD} {etcd[1]}"]
    lines += [f"replace {name} => {name} v{STAGING}" for name in staging]
    return "\n".join(lines) + "\n"


def _go(folder: Path, *words: str) -> str:
    """Run Go in a folder and return what it printed."""
    program = shutil.which("go")
    if program is None:
        raise RuntimeError(NO_GO)
    # the compiler spends a seventh of its time on garbage; it may keep 2 GiB of it
    memory = {"GOGC": "off", "GOMEMLIMIT": "2GiB"}
    surroundings = {**os.environ, **memory, "CGO_ENABLED": "0", "GOWORK": "off"}
    surroundings.setdefault("GOFLAGS", "-p=2")
    done = subprocess.run([program, *words], cwd=folder, env=surroundings, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"go {words[0]} ended with {done.returncode}: {done.stderr.strip()[-4000:]}")
    return done.stdout


def _etcd_version(program: str) -> tuple[int, ...]:
    """Return the version of an installed etcd, (0,) if it prints none."""
    output = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=20).stdout
    number = re.search(r"etcd Version: (\d+)\.(\d+)", output)
    return tuple(map(int, number.groups())) if number else (0,)


def main() -> int:
    """Build what is missing, and what is named, and print where it is; 69 where there is no Go to build with."""
    if missing() and shutil.which("go") is None:
        print(f"{NO_GO}; not built: {', '.join(missing())}")
        return 69
    print(build())
    if "kueue" in sys.argv[1:]:
        print(build_kueue())
    if "workloads" in sys.argv[1:]:
        print(build_workload_controllers())
    return 0


if __name__ == "__main__":
    sys.exit(main())
