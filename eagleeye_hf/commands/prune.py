"""`eagleeye prune`."""

from __future__ import annotations

import json
from dataclasses import dataclass

from eagleeye_hf.channels.cost import count_cost
from eagleeye_hf.commands.printing import PrintConfig
from eagleeye_hf.configs import check_fields, flat_dict
from eagleeye_hf.data.config import DatasetConfig, HeldOutConfig
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.pruning.config import ImportanceConfig, RepairConfig
from eagleeye_hf.runs.config import NetworkConfig, Seed, check_held_out, split_arguments
from eagleeye_hf.strategies.files import read_origin, read_strategy, warn_of_criterion
from eagleeye_hf.strategies.strategy import named_widths


@dataclass(frozen=True, kw_only=True)
class Config:
    network: NetworkConfig
    data: DatasetConfig = DatasetConfig()
    held_out: HeldOutConfig = HeldOutConfig()
    importance: ImportanceConfig = ImportanceConfig()
    repair: RepairConfig = RepairConfig()
    printing: PrintConfig = PrintConfig()
    strategy: str = ""
    """JSON file (or FILE#NAME) with widths or ratios, as eagleeye search writes; must be given."""
    seed: Seed = 0
    """Of everything random."""
    output: str = "outputs/pruned"
    """Folder for the checkpoint."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.strategy:
            raise EagleEyeError(
                "`strategy` must be given: a JSON file with widths or ratios, as eagleeye search writes"
            )


def run(config: Config) -> None:
    """Apply a strategy: slice, compensate, recompute BatchNorm statistics, save. Nothing is trained."""
    import torch
    from accelerate import Accelerator

    from eagleeye_hf.data.splits import open_splits
    from eagleeye_hf.evaluation.metrics import evaluate_model
    from eagleeye_hf.evaluation.score import AdaptiveBNScore
    from eagleeye_hf.evaluation.steps import measure_steps
    from eagleeye_hf.processes import is_main
    from eagleeye_hf.publishing.checkpoint import save_pretrained
    from eagleeye_hf.publishing.paths import hide_paths
    from eagleeye_hf.runs.arguments import RUN_FILE, settings_text
    from eagleeye_hf.runs.dimensions import trace_network
    from eagleeye_hf.runs.folder import check_output, open_run
    from eagleeye_hf.runs.models import load_model

    check_held_out(config.held_out)
    check_output(config.output, "prune")
    device = Accelerator().device
    model = load_model(config.network.model, config.network.weights, config.network.inputs).to(device).eval()
    graph = trace_network(model, strategy=config.strategy)
    strategy = read_strategy(graph, config.strategy)
    if is_main():
        warn_of_criterion(config.strategy, config.importance.criterion)
    data = open_splits(like=model, **split_arguments(config.data, config.held_out, seed=config.seed), needs_test=False)
    calibration, holdout = data.calibration.cached_batches(), data.holdout.cached_batches()
    criterion = config.importance.criterion
    score = AdaptiveBNScore(model, graph, calibration, holdout, criterion=criterion, seed=config.seed)
    compensate = config.repair.compensate
    if strategy.image_size is not None:
        holdout = data.seen_by(score.build(strategy, compensate=False)).holdout.cached_batches()
    pruned, steps = measure_steps(score, strategy, lambda m: evaluate_model(m, holdout), compensate)
    metrics = {"full": evaluate_model(model, holdout)} | steps
    if not all(torch.isfinite(tensor).all() for tensor in pruned.state_dict().values()):
        raise EagleEyeError("the pruned network has weights or statistics that are not finite numbers; check `weights`")
    full, kept = count_cost(graph, graph.widths)._asdict(), count_cost(graph, strategy)._asdict()
    scores = {step: found.to_dict() for step, found in metrics.items()}
    provenance = {
        "base_model": hide_paths(config.network.model),
        "widths": named_widths(graph, strategy),
        "removed_blocks": list(strategy.removed_blocks),
        "image_size": strategy.image_size,
        "full_input_size": list(graph.input_size),
        "holdout_metrics": scores,
        "strategy": read_origin(config.strategy),
        "config": hide_paths(flat_dict(config)),
    }
    run = open_run(config.output, "prune")
    if not is_main():
        return
    run.write(RUN_FILE, settings_text(config))
    run.claim_checkpoint()
    save_pretrained(pruned.cpu().eval(), run.path, label_names=data.label_names, provenance=provenance)
    run.note(finished=True)
    if config.printing.json:
        print(json.dumps({"folder": str(run.path), "full": full, "kept": kept, "holdout": scores}))
        return
    left = f"{kept['macs'] / full['macs']:.1%} of the MACs, {kept['params'] / full['params']:.1%} of the parameters"
    print(f"{config.network.model}: {left}\n\ntop-1 on {metrics['full'].num_images} holdout images")
    for step, found in metrics.items():
        print(f"  {step:<12}{found.top1:>8.2%}")
    print(f"\nsaved in {run.path}; fine-tune it next")
