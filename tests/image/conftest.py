"""The image, built of this checkout by a real engine. `make test-image` asks for it; elsewhere these tests
skip.

Where the base image cannot be pulled, root on Debian makes a stand-in with debootstrap: the same release with
its own Python, which is all that the Dockerfile asks of its base.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"
IMAGE = "callmesh:image-test"
STAND_IN = "callmesh-base:stand-in"
#: Set by `make test-image`: a build takes minutes, so no other command begins one.
WANTED = "TEST_IMAGE"
PULL_SECONDS_MAX, BASE_SECONDS_MAX, BUILD_SECONDS_MAX = 300, 900, 1800
#: pip's settings that the Dockerfile takes.
PIP_SETTINGS = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CERT")
#: What the stand-in has of the real base: Python and its venv, and the authorities of TLS.
STAND_IN_PACKAGES = "python3,python3-venv,ca-certificates"
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")


def docker(*arguments: str, seconds: float = 60, check: bool = True) -> str:
    """What a docker command prints; AssertionError with its errors when it fails."""
    done = subprocess.run(
        ["docker", *arguments],
        capture_output=True, text=True, timeout=seconds, check=False,
        env=os.environ | {"DOCKER_BUILDKIT": "0"},
    )  # fmt: skip
    assert not check or done.returncode == 0, (
        f"docker {' '.join(arguments[:2])}: {done.stdout[-4000:]}{done.stderr}"
    )
    return done.stdout


@pytest.fixture(scope="session")
def engine() -> None:
    """Skips where the image is not asked for or nothing can build it."""
    if not os.environ.get(WANTED):
        pytest.skip("builds the image: make test-image")
    if shutil.which("docker") is None:
        pytest.skip("needs a Docker engine")
    if subprocess.run(["docker", "version"], capture_output=True, timeout=60, check=False).returncode != 0:
        pytest.skip("needs a Docker engine: docker version finds none that runs")


def has_image(name: str) -> bool:
    """Whether the engine holds it."""
    return bool(docker("image", "ls", "--quiet", name).strip())


@pytest.fixture(scope="session")
def base(engine: None) -> str:
    """What the image is built on: the Dockerfile's own base, or the stand-in."""
    (wanted,) = re.findall(r"^ARG BASE=(\S+)$", DOCKERFILE.read_text(), re.M)
    if has_image(wanted):
        return str(wanted)
    pulled = subprocess.run(
        ["docker", "pull", wanted], capture_output=True, timeout=PULL_SECONDS_MAX, check=False
    )
    if pulled.returncode == 0:
        return str(wanted)
    if not has_image(STAND_IN):
        if os.geteuid() != 0 or shutil.which("debootstrap") is None:
            pytest.skip(f"{wanted} cannot be pulled, and only root with debootstrap makes a stand-in")
        make_stand_in(*mirror())
    return STAND_IN


def mirror() -> tuple[str, str]:
    """(release, address) that this machine's own packages come from."""
    lines = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(CODENAME) $(COMPONENT) $(REPO_URI)",
         "Created-By: Packages"],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout.splitlines()  # fmt: skip
    release = next(
        line.partition("=")[2].strip('"')
        for line in Path("/etc/os-release").read_text().splitlines()
        if line.startswith("VERSION_CODENAME=")
    )
    for line in lines:
        codename, component, uri = line.split()
        if codename == release and component == "main" and "security" not in uri:
            return release, uri
    pytest.skip(f"apt names no mirror of {release}")


def make_stand_in(release: str, uri: str) -> None:
    """A small Debian with Python, imported into the engine."""
    root = Path(tempfile.mkdtemp(prefix="callmesh-base-"))
    try:
        subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={STAND_IN_PACKAGES}", release, str(root), uri],
            capture_output=True, timeout=BASE_SECONDS_MAX, check=True,
        )  # fmt: skip
        (root / "usr/bin/python").symlink_to("python3")
        # The machine's own authorities, without which its package index is not believed.
        shutil.copy(AUTHORITIES, root / AUTHORITIES.relative_to("/"))
        shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
        shutil.rmtree(root / "var/cache/apt/archives", ignore_errors=True)
        with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as tar:
            subprocess.run(
                ["docker", "import", "-", STAND_IN],
                stdin=tar.stdout, capture_output=True, timeout=BASE_SECONDS_MAX, check=True,
            )  # fmt: skip
        assert tar.returncode == 0
    finally:
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def image(base: str) -> str:
    """The image of this checkout."""
    arguments = [f"--build-arg={name}={os.environ[name]}" for name in PIP_SETTINGS if os.environ.get(name)]
    docker(
        "build", "--network=host", f"--file={DOCKERFILE}", f"--tag={IMAGE}", f"--build-arg=BASE={base}",
        *arguments, str(ROOT), seconds=BUILD_SECONDS_MAX,
    )  # fmt: skip
    return IMAGE


#: As the chart runs it: nothing may be written but /tmp, nothing may be gained.
AS_DEPLOYED: Sequence[str] = (
    "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges",
)  # fmt: skip


@pytest.fixture
def containers() -> Iterator[list[str]]:
    """Names of containers to remove afterwards."""
    names: list[str] = []
    yield names
    for name in names:
        docker("rm", "--force", name, check=False)
