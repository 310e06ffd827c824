"""How a result came about: the command, the settings, the code, the versions and the machine."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "hydra-core", "numpy", "scipy", "scikit-learn")


def provenance(command: str, settings: dict[str, Any], **facts: Any) -> dict[str, Any]:
    """Everything needed to run this again: `command`, settings as plain values, `facts` about data and model."""
    code = Path(__file__).parents[2]
    return {
        "command": command,
        "settings": settings,
        **facts,
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES},
        "hardware": {
            "machine": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "git": {"commit": _git(code, "rev-parse", "HEAD"), "diff": _git(code, "diff", "HEAD")},
    }


def _git(folder: Path, *arguments: str) -> str | None:
    """The output of a git command, None outside a repository."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
