"""Blocks: the network without one computes what the full one does when that block's branch adds zero."""

import pytest
import torch

from eagleeye_hf import count_cost, slice_model, trace_model
from tests.helpers import make_model, random_blocks, random_keep, silence, silence_blocks, strategy_of

# (name, input pixels, blocks that can go)
FAMILIES = [
    ("resnet18", 64, 5),
    ("resnet50", 64, 12),
    ("resnext50_32x4d", 64, 12),
    ("seresnet50", 64, 12),
    ("ecaresnet26t", 64, 4),
    ("resnetrs50", 64, 12),
    ("resnetv2_50", 64, 12),
    ("res2net50_26w_4s", 64, 12),
    ("skresnet18", 64, 5),
    ("resnest14d", 64, 0),
    ("mobilenetv2_100", 64, 10),
    ("mobilenetv3_large_100", 64, 10),
    ("mobilenetv4_conv_small", 64, 10),
    ("efficientnet_lite0", 64, 9),
    ("efficientnet_b0", 64, 9),
    ("mnasnet_100", 64, 10),
    ("fbnetc_100", 64, 15),
    ("regnetx_002", 64, 9),
    ("regnety_002", 64, 9),
    ("repvgg_a0", 64, 0),
    ("mobileone_s0", 64, 0),
    ("fastvit_t8", 64, 10),
    ("repvit_m0_9", 64, 0),
    ("convmixer_768_32", 64, 32),
    ("hrnet_w18_small", 64, 18),
    ("coatnet_pico_rw_224", 224, 8),
    ("resnet20_cifar", 32, 7),
]


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize(("name", "pixels", "number"), FAMILIES, ids=[name for name, *_ in FAMILIES])
def test_a_network_without_blocks_is_the_full_one_whose_branches_add_zero(name, pixels, number):
    model = make_model(name).double()
    graph = trace_model(model, (3, pixels, pixels))
    assert len(graph.removable) == number
    images = torch.randn(2, 3, pixels, pixels, dtype=torch.float64)
    every = [block.name for block in graph.removable]
    for keep, removed in (({}, every[:1]), ({}, every), (random_keep(graph, 0, None), random_blocks(graph, 0))):
        thin = slice_model(model, graph, keep, removed)
        with torch.inference_mode():
            expected = silence_blocks(silence(model, graph, keep), graph, removed)(images)
            assert relative_error(thin(images), expected) < 1e-9
        cost = count_cost(graph, strategy_of(graph, keep, removed))
        assert cost.params == sum(p.numel() for p in thin.parameters())
        assert cost.macs == count_cost(*_traced(thin, pixels)).macs


def _traced(model, pixels):
    graph = trace_model(model, (3, pixels, pixels))
    return graph, graph.widths
