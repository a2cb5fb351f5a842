"""Where numbers were measured: goes into every record and every benchmark."""

import os
import pathlib
import platform
import subprocess
from importlib import metadata
from typing import Any

import jax

import jaxunlearn


def environment() -> dict[str, Any]:
    """Device, threads, versions and git commit, as JSON values.

    Example:
      >>> sorted(environment())[:4]
      ['cpu', 'device', 'git', 'jax']
    """
    device = jax.devices()[0]
    return {
        "device": f"{device.platform}: {device.device_kind}",
        "n_devices": jax.device_count(),
        "cpu": _cpu(),
        "n_threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": metadata.version("jaxlib"),
        "jaxunlearn": jaxunlearn.__version__,
        "git": _commit(),
    }


def _cpu() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the checkout that this package runs from; None when installed."""
    here = pathlib.Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
