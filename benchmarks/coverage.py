"""Which networks can be pruned, how much of them, and is the result exact? Beside Torch-Pruning on the same networks.

    pip install -e ".[benchmarks]"
    python benchmarks/coverage.py            # half an hour; goes on where it was stopped; writes coverage.md

Every prunable group loses half of its channels. The result is exact if it computes what the full network does when
nothing reads the removed channels (float64, random BatchNorm statistics, relative error below 1e-9). The oracle knows
neither tool: it looks every kept weight up by its value in the full network, and silences there what is gone. Then half
of the blocks that can go as a whole go, beside the full network with the ends of their branches at zero.
"""

import copy
import json
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import timm
import torch
from torch import nn

from eagleeye_hf import ChannelGraph

HERE = Path(__file__).parent
RESULTS, TABLE = Path("outputs/coverage.jsonl"), HERE / "coverage.md"
SECONDS = 30
"""Processor time that a tool may take for one network."""
FAMILIES = {
    "efficientnet": "efficientnet_b0 efficientnet_b2 efficientnet_lite0 efficientnet_es efficientnetv2_rw_t "
    "tf_efficientnetv2_b0 tf_efficientnet_cc_b0_4e mixnet_s tf_mixnet_m gc_efficientnetv2_rw_t mobilenetv1_100 "
    "mobilenetv2_100 mnasnet_100 fbnetc_100 spnasnet_100",
    "resnet": "resnet18 resnet50 resnet50d resnet26t seresnet50 ecaresnet50d ecaresnetlight resnetblur50 resnetaa50 "
    "resnext50_32x4d",
    "resnest": "resnest14d resnest26d resnest50d_1s4x24d",
    "res2net": "res2net50_26w_4s res2net50_14w_8s res2next50 res2net50d",
    "sknet": "skresnet18 skresnet34 skresnext50_32x4d",
    "senet": "legacy_seresnet18 legacy_seresnext26_32x4d",
    "regnet": "regnetx_002 regnety_002 regnetz_005 regnetv_040",
    "byobnet": "repvgg_a0 mobileone_s0 mobileone_s1 gcresnet33ts gcresnext26ts resnet51q eca_resnet33ts",
    "mobilenetv3, v4": "mobilenetv3_small_100 mobilenetv3_large_100 fbnetv3_b lcnet_100 "
    "mobilenetv4_conv_small mobilenetv4_hybrid_medium hardcorenas_a "
    "tinynet_e",
    "ghostnet": "ghostnet_050 ghostnetv2_100 ghostnetv3_100 repghostnet_050",
    "repvit": "repvit_m0_9",
    "fastvit": "fastvit_t8",
    "fasternet": "fasternet_t0",
    "starnet": "starnet_s1",
    "densenet": "densenet121",
    "dla": "dla34 dla60x dla60_res2net",
    "dpn": "dpn48b dpn68",
    "hrnet": "hrnet_w18_small",
    "vovnet": "ese_vovnet19b_dw eca_vovnet39b",
    "hgnet": "hgnetv2_b0",
    "cspnet": "cspresnet50 cs3darknet_s",
    "selecsls": "selecsls42b",
    "tresnet": "tresnet_m",
    "xception": "legacy_xception xception41",
    "inception": "inception_v3 inception_v4 inception_resnet_v2",
    "nasnet, pnasnet": "nasnetalarge pnasnet5large",
    "vgg": "vgg11_bn",
    "rexnet": "rexnet_100",
    "convmixer": "convmixer_768_32",
    "inception_next": "inception_next_atto",
    "lowformer": "lowformer_b0",
    "resnetv2": "resnetv2_50",
}


def kernels(module: nn.Module) -> torch.Tensor | None:
    """The weights of a layer as a view of shape (outputs, inputs per group, banks, pixels)."""
    if type(module).__name__ == "CondConv2d":
        banks = module.weight.view(len(module.weight), *module.weight_shape)
        return banks.flatten(3).permute(1, 2, 0, 3)
    if isinstance(module, nn.ConvTranspose2d):
        return module.weight.flatten(2).transpose(0, 1).unsqueeze(2)
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
        return module.weight.view(*module.weight.shape[:2], 1, -1)
    return None


def prepare(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A network in which no two weights, statistics or scales are alike, and images of the least size it takes."""
    torch.manual_seed(0)
    model = timm.create_model(name).eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.1 * torch.rand_like(parameter)).add_(1e-3 * torch.randn_like(parameter))
        for layer in model.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.running_mean.normal_(0, 0.2)
                layer.running_var.uniform_(0.5, 2)
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_(0, 0.2)
    own = model.pretrained_cfg["input_size"][-1]
    sizes = [own] if model.pretrained_cfg.get("fixed_input_size") else [s for s in (64, 96, 128) if s < own] + [own]
    for size in sizes:
        images = torch.randn(2, 3, size, size, dtype=torch.float64)
        try:
            with torch.inference_mode():
                model(images)
            return model, images
        except RuntimeError:
            continue
    raise ValueError(f"{name} takes no images of {sizes} pixels")


def silence(full: nn.Module, thin: nn.Module) -> None:
    """Zero, in every layer of `full`, the weights by which its kept outputs read removed inputs."""
    layers = dict(full.named_modules())
    for name, module in thin.named_modules():
        kept, weights = kernels(module), kernels(layers[name]) if name in layers else None
        if kept is None or weights is None or kept.shape == weights.shape:
            continue
        values, order = weights[..., 0].flatten().sort()
        found = order[torch.searchsorted(values, kept[..., 0].flatten().contiguous())]
        reads = torch.zeros(weights.shape[:3], dtype=torch.bool)
        reads.view(-1)[found] = True
        kept_rows = reads.any((1, 2), keepdim=True)
        weights[(kept_rows & ~reads)[..., None].expand_as(weights)] = 0


def prune_ours(model: nn.Module, images: torch.Tensor) -> tuple[nn.Module, dict[str, object]]:
    from eagleeye_hf import choose_channels, slice_model, trace_model
    from eagleeye_hf.strategies.strategy import widths_from_ratios

    started = time.perf_counter()
    graph = trace_model(model, tuple(images.shape[1:]))
    widths = widths_from_ratios(graph, [0.5] * len(graph.prunable)).tolist()
    thin = slice_model(model, graph, choose_channels(model, graph, widths))
    pinned = Counter(group.reason for group in graph.groups if group.reason)
    seconds = time.perf_counter() - started
    return thin, {"seconds": seconds, "pinned": pinned} | remove_blocks(model, graph, images)


def remove_blocks(model: nn.Module, graph: ChannelGraph, images: torch.Tensor) -> dict[str, object]:
    """How many blocks can go, of how many, and the error without every second one of them."""
    from eagleeye_hf import slice_model

    gone = graph.removable[::2]
    silent = copy.deepcopy(model)
    with torch.inference_mode():
        result = slice_model(model, graph, {}, [block.name for block in gone])(images)
        for name in {name for block in gone for name in block.zeroed}:
            silent.get_parameter(name).zero_()
        expected = silent(images)
    error = float((result - expected).abs().max() / expected.abs().max())
    return {"blocks": len(graph.removable), "all_blocks": len(graph.blocks), "block_error": error}


def prune_peer(model: nn.Module, images: torch.Tensor) -> tuple[nn.Module, dict[str, object]]:
    import torch_pruning

    thin = copy.deepcopy(model)
    started = time.perf_counter()
    importance = torch_pruning.importance.MagnitudeImportance(p=1)
    ignored = [thin.get_classifier()]
    torch_pruning.pruner.MagnitudePruner(
        thin, images, importance=importance, pruning_ratio=0.5, ignored_layers=ignored
    ).step()
    return thin, {"seconds": time.perf_counter() - started}


def work(tool: str, name: str) -> dict[str, object]:
    """Prune by half and compare; in a process of its own, which may crash or be stopped."""
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model, images = prepare(name)
    thin, row = (prune_ours if tool == "ours" else prune_peer)(model, images)
    convs = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d) or type(m).__name__ == "CondConv2d"}
    layers = dict(thin.named_modules())
    stay = [n for n, m in convs.items() if layers[n].weight.numel() == m.weight.numel()]
    with torch.inference_mode():
        result = thin(images)
        silence(model, thin)
        expected = model(images)
        error = float((result - expected).abs().max() / expected.abs().max())
    return row | {"error": error, "convs": len(convs), "shrunk": len(convs) - len(stay), "stay": stay}


def run(tool: str, name: str) -> dict[str, object]:
    command = [sys.executable, __file__, tool, name]
    row: dict[str, object] = {"tool": tool, "name": name}
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return row | {"outcome": f"more than {SECONDS} s"}
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        cause = (done.stderr.strip().splitlines() or [f"signal {-done.returncode}"])[-1]
        return row | {"outcome": f"fails: {cause.split(':')[0]}", "cause": cause[:300]}
    result = json.loads(lines[-1])
    exact = result["error"] < 1e-9
    return row | result | {"outcome": "exact" if exact else f"another function (error {result['error']:.0e})"}


def write_table(rows: dict[tuple[str, str], dict]) -> None:
    import torch_pruning

    names = [(family, name) for family, names in FAMILIES.items() for name in names.split()]
    ours = [rows["ours", name] for _, name in names]
    peers = [rows["torch-pruning", name] for _, name in names]

    def share(row: dict) -> float:
        return row["shrunk"] / row["convs"] if row["outcome"] == "exact" else 0.0

    lines = [
        "# Coverage",
        "",
        "Half of the channels of every prunable group removed; written by `benchmarks/coverage.py` with timm "
        f"{timm.__version__} and Torch-Pruning {torch_pruning.__version__}.",
        "",
        f"| | eagleeye_hf | Torch-Pruning |\n|---|---:|---:|\n| architectures | {len(ours)} | {len(peers)} |",
    ]
    for title, test in (
        ("pruned exactly", lambda row: row["outcome"] == "exact"),
        ("computes another function", lambda row: row["outcome"].startswith("another")),
        ("fails", lambda row: row["outcome"].startswith("fails")),
        (f"takes more than {SECONDS} s", lambda row: row["outcome"].startswith("more")),
        ("exact, and at least 90% of convolutions shrink", lambda row: share(row) >= 0.9),
        ("exact, and at least half of them", lambda row: share(row) >= 0.5),
    ):
        lines.append(f"| {title} | {sum(map(test, ours))} | {sum(map(test, peers))} |")
    exact_blocks = [row for row in ours if row.get("blocks") and row["block_error"] < 1e-9]
    lines.append(f"| have blocks that can go as a whole, removed exactly | {len(exact_blocks)} | not offered |")
    lines += ["", "| family | architecture | result | convs that shrink | blocks that can go | Torch-Pruning | convs |"]
    lines += ["|---|---|---|---:|---:|---|---:|"]
    for (family, name), own, peer in zip(names, ours, peers, strict=True):
        cells = [f"{row['shrunk']}/{row['convs']}" if "convs" in row else "" for row in (own, peer)]
        blocks = f"{own['blocks']}/{own['all_blocks']}" if "blocks" in own else ""
        lines.append(
            f"| {family} | {name} | {own['outcome']} | {cells[0]} | {blocks} | {peer['outcome']} | {cells[1]} |"
        )
    lines += ["", "## What stays, and why", "", "The classifier's outputs stay everywhere.", ""]
    for row in ours:
        reasons = {reason: n for reason, n in row.get("pinned", {}).items() if reason != "carries the model's output"}
        if reasons or row.get("stay"):
            why = "; ".join(f"{reason} ({n})" for reason, n in reasons.items())
            lines.append(f"- {row['name']}: {len(row.get('stay', []))} convolutions keep their size. {why}")
    TABLE.write_text("\n".join(lines) + "\n")


def main() -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    rows = {(row["tool"], row["name"]): row for row in map(json.loads, lines)}
    for names in FAMILIES.values():
        for name in names.split():
            for tool in ("ours", "torch-pruning"):
                if (tool, name) not in rows:
                    rows[tool, name] = run(tool, name)
                    print(name, tool, rows[tool, name]["outcome"], flush=True)
                    with RESULTS.open("a") as file:
                        file.write(json.dumps(rows[tool, name]) + "\n")
    write_table(rows)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(work(*sys.argv[1:])))
    else:
        main()
