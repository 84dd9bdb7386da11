"""What a figure depends on: the machine, the versions of everything measured, the source's commit.

Rule of this file: it reads, but for the limit of open files; a fact that cannot be had is "unknown", never a
reason to fail.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import resource
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.measure import placement

ROOT = Path(__file__).parent.parent
UNKNOWN = "unknown"


def machine() -> dict[str, str]:
    cores = sorted(os.sched_getaffinity(0))
    placed = placement(cores)
    return {
        "processor": _first(r"(?m)^model name\s*: (.*)$", _text("/proc/cpuinfo")),
        "cores": str(len(cores)),
        "placement": f"server {list(placed.server)}, client {list(placed.client)}, upstream {list(placed.upstream)}",
        "memory": f"{int(_first(r'MemTotal: *([0-9]+)', _text('/proc/meminfo'), '0')) / 2**20:.0f} GiB",
        "kernel": platform.release(),
        "load before": f"{os.getloadavg()[0]:.2f}",
    }


def versions(triton: str) -> dict[str, str]:
    return {
        "tailrace": f"{_package('tailrace')}, commit {_commit()}",
        "python": platform.python_version(),
        **{name: _package(name) for name in ("aiohttp", "uvloop", "blake3", "msgspec")},
        "triton": triton,
        "nginx": _first(r"nginx/(\S+)", _output(["nginx", "-v"])),
        "haproxy": _first(r"version (\S+)", _output(["haproxy", "-v"])),
        "varnish": _first(r"varnish-(\S+)", _output(["varnishd", "-V"])),
        "compiler": _output(["cc", "--version"]).partition("\n")[0] or UNKNOWN,
    }


def available_bytes() -> int:
    """Memory that could be taken now; 0 if that is unknown."""
    return int(_first(r"MemAvailable: *([0-9]+)", _text("/proc/meminfo"), "0")) * 1024


def allow_files(wanted: int) -> int:
    """Let this process and its children open ``wanted`` files, as far as the hard limit allows; how many they may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most


def version_in(environment: Path, package: str) -> str:
    """The version of a package in another virtual environment."""
    found = sorted(environment.glob(f"lib/python3.*/site-packages/{package}-*.dist-info"))
    return found[0].name.removeprefix(f"{package}-").removesuffix(".dist-info") if found else "not installed"


def missing(programs: Sequence[str], search: str) -> list[str]:
    """Those of ``programs`` that are in no directory of ``search`` (as PATH)."""
    folders = [Path(folder) for folder in search.split(":") if folder]
    return [name for name in programs if not any(os.access(folder / name, os.X_OK) for folder in folders)]


def _package(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        found = _first(r'(?m)^version = "(.*)"', _text(str(ROOT / "pyproject.toml")))
        return found if name == "tailrace" else UNKNOWN


def _commit() -> str:
    commit = _output(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]).strip()
    if not re.fullmatch(r"[0-9a-f]{6,}", commit):
        return UNKNOWN
    changed = _output(["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no"]).strip()
    return f"{commit} and changes" if changed else commit


def _output(command: Sequence[str]) -> str:
    environ: Mapping[str, str] = {**os.environ, "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False, env=environ)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _first(pattern: str, text: str, otherwise: str = UNKNOWN) -> str:
    found = re.search(pattern, text)
    return found[1].strip() if found else otherwise
