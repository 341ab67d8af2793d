"""Trackers by name: TensorBoard, Trackio, Weights & Biases and the others of accelerate."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from accelerate import Accelerator
from accelerate.tracking import filter_trackers

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.training.config import FinetuneConfig


def start_tracker(config: FinetuneConfig, accelerator: Accelerator, folder: Path | None) -> str | None:
    """Start the tracker that the config names, with its files beside the checkpoints.

    Raises:
        EagleEyeError: it is not installed.
    """
    if config.tracker is None:
        return None
    logs = str((folder or Path("outputs/training")).parent / "logs")
    accelerator.project_configuration.logging_dir = logs
    accelerator.log_with = filter_trackers([config.tracker], logs)
    if not accelerator.log_with:
        raise EagleEyeError(
            f"`tracker={config.tracker}` is not installed; install it with: pip install {config.tracker}"
        )
    settings = {key: value for key, value in asdict(config).items() if value is not None}
    accelerator.init_trackers("eagleeye", settings)
    return config.tracker


def stop_tracker(accelerator: Accelerator) -> None:
    """Let it write what it still holds."""
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.trackers = []
