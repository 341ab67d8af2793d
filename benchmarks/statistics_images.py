"""How a network's top-1 depends on the images, and on how many, from which its BatchNorm statistics are recomputed.

    python benchmarks/statistics_images.py --weights FILE --dataset FOLDER --output benchmarks/statistics_images.md

The weights stay as they are; the statistics come from so many random training images, shifted and mirrored as in
training.
"""

import argparse
import copy
from itertools import islice
from pathlib import Path

from eagleeye_hf import evaluate_model, load_model, open_splits, recalibrate_bn
from eagleeye_hf.data.batches import Portion

BATCH = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--model", default="resnet56_cifar")
    parser.add_argument("--images", type=int, nargs="+", default=[256, 1024, 4096, 8192])
    parser.add_argument("--draws", type=int, default=4, help="random draws of the images")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/statistics_images.md"))
    options = parser.parse_args()
    model = load_model(options.model, options.weights)
    data = open_splits(options.dataset, like=model)
    lines = [
        f"{options.model}, top-1 on {data.test.count():,} test images, per draw of the training images. Made by "
        "`benchmarks/statistics_images.py`.",
        "",
        f"| images | {' | '.join(f'draw {n + 1}' for n in range(options.draws))} | mean | highest - lowest |",
        f"|---:|{'---:|' * (options.draws + 2)}",
    ]
    for images in options.images:
        scores = []
        for draw in range(options.draws):
            batches = islice(data.train.epoch_batches(draw, Portion(batch_size=BATCH)), images // BATCH)
            network = recalibrate_bn(copy.deepcopy(model), batches)
            scores.append(evaluate_model(network, data.test.batches()).top1)
        told = " | ".join(f"{score:.2%}" for score in scores)
        mean, spread = sum(scores) / len(scores), 100 * (max(scores) - min(scores))
        lines.append(f"| {images:,} | {told} | {mean:.2%} | {spread:.2f} |")
        print(lines[-1], flush=True)
    options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
