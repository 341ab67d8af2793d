"""`eagleeye study`."""

from __future__ import annotations

import json
from dataclasses import dataclass

from eagleeye_hf.commands.printing import PrintConfig
from eagleeye_hf.runs.config import StudyRunConfig
from eagleeye_hf.telling import say


@dataclass(frozen=True, kw_only=True)
class Config(StudyRunConfig):
    dry_run: bool = False
    """Say what would be done and how long it may take, and do nothing."""
    printing: PrintConfig = PrintConfig()


def run(config: Config) -> None:
    """Check EagleEye's claim on a network and images of your own: fine-tune many random sub-nets, and tell which score
    before fine-tuning foretold their accuracy after it.

    A study that was killed goes on when started again with the same command.
    """
    from accelerate import Accelerator

    from eagleeye_hf.runs.config import check_held_out
    from eagleeye_hf.runs.folder import check_output
    from eagleeye_hf.runs.plan import Clock
    from eagleeye_hf.runs.study import open_study, run_study
    from eagleeye_hf.runs.study_plan import plan_study

    check_held_out(config.held_out)
    check_output(config.output, "study", finished=True)
    accelerator, clock = Accelerator(), None
    model, data = open_study(config)
    if accelerator.is_main_process:
        plan = plan_study(model.to(accelerator.device).eval(), data, config, accelerator)
        if config.dry_run:
            print(json.dumps(plan.to_dict()) if config.printing.json else plan)
        else:
            say(f"{plan}\n")
            clock = Clock(plan)
    if config.dry_run:
        return
    result = run_study(model, data, config, on_phase=clock)
    if not result.findings:  # not the main process
        return
    told = {"folder": str(result.folder), "findings": list(result.findings)}
    report = result.folder / "REPORT.md"
    print(json.dumps(told) if config.printing.json else "\n".join([*result.findings, f"report: {report}"]))
