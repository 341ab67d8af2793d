"""`eagleeye finetune`."""

from __future__ import annotations

import json
from dataclasses import dataclass

from eagleeye_hf.commands.printing import PrintConfig
from eagleeye_hf.runs.config import FinetuneRunConfig


@dataclass(frozen=True, kw_only=True)
class Config(FinetuneRunConfig):
    printing: PrintConfig = PrintConfig()


def run(config: Config) -> None:
    """Train a pruned network further; start the same command again after a kill, and it goes on where it was."""
    from eagleeye_hf.runs.finetune import finetune_checkpoint

    metrics = finetune_checkpoint(config)
    if metrics is None:
        return
    if config.printing.json:
        print(json.dumps({"output": config.output} | {step: found.to_dict() for step, found in metrics.items()}))
        return
    for step, found in metrics.items():
        print(f"{step:12} top-1 {found.top1:.2%}, cross-entropy {found.loss:.4f}")
    print(f"saved in {config.output}")
