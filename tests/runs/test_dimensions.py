"""The image sizes from which a search may choose."""

import pytest
import timm

from eagleeye_hf import EagleEyeError, SearchConfig, count_cost, trace_model
from eagleeye_hf.runs.dimensions import trace_network
from eagleeye_hf.strategies.strategy import Strategy

SIZED = SearchConfig(dimensions=("width", "size"))


@pytest.mark.parametrize(
    ("name", "sizes", "told"),
    [
        ("resnet20_cifar", (16, 20, 24, 28, 32), ""),
        ("inception_v3", (160, 192, 224, 256, 288, 299), ""),  # its own size is no multiple of its stride
        ("coatnet_nano_rw_224", (224,), "the image size stays: the network is built for 224 x 224 pixels"),
        pytest.param(
            *("mobilevit_xxs", (160, 192, 224, 256), "does not run there, or as another one: 128 px"),
            marks=pytest.mark.slow,
        ),
        (
            "halonet26t",
            None,
            "image sizes that are left out, for the network does not run there, or as another one: 128",
        ),
    ],
)
def test_default_sizes_are_those_that_the_network_takes(name, sizes, told, capsys):
    model = timm.create_model(name).eval()
    graph = trace_network(model, SIZED)
    assert told in capsys.readouterr().err
    if sizes is not None:
        assert graph.image_sizes == sizes
    smallest = min(graph.image_sizes)
    there = trace_model(model, (3, smallest, smallest))
    assert count_cost(graph, Strategy(graph.widths, (), smallest)) == count_cost(there, there.widths)


def test_a_size_that_is_asked_for_and_fails_is_an_error():
    with pytest.raises(EagleEyeError, match="`image_sizes`: at 128 pixels the network has other channel groups"):
        trace_network(timm.create_model("mobilevit_xxs"), SearchConfig(dimensions=("size",), image_sizes=(128,)))


def test_sizes_of_a_network_whose_images_are_no_squares_are_refused():
    with pytest.raises(EagleEyeError, match="sides of square images, and the network's are 32 x 16 pixels"):
        trace_model(timm.create_model("resnet20_cifar"), (3, 32, 16), image_sizes=[24])
