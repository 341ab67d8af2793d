"""`eagleeye search`, `prune` and `report`, as users run them."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eagleeye_hf import SearchConfig, Strategy, count_cost, from_pretrained, trace_model
from eagleeye_hf.cli import main
from eagleeye_hf.runs import measuring
from eagleeye_hf.runs.dimensions import trace_network
from tests.helpers import digits_dataset, make_model
from tests.helpers import run_command as run

COUNTS = ["--calibration-images", "32", "--holdout-images", "64"]


@pytest.fixture(autouse=True, scope="module")
def in_pytorch_alone():
    """Fronts in all runtimes are what `test_latency.py` looks at; exporting takes seconds each time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "runtimes_here", lambda device: ["torch"])
        yield


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("inputs")
    save_file(make_model("resnet20_cifar").state_dict(), folder / "weights.safetensors")
    data = folder / "data"
    data.mkdir()
    for split, rows in digits_dataset().items():
        rows.to_parquet(data / f"{split}-00000-of-00001.parquet")
    return ["resnet20_cifar", "--weights", str(folder / "weights.safetensors"), "--dataset", str(data)]


@pytest.fixture(scope="module")
def searched(inputs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    budgets = ["--macs", "0.7", "0.4", "--candidates", "10"]
    assert main(["search", *inputs, *COUNTS, "--runtime", "torch", *budgets, "--output", str(folder)]) == 0
    return folder


def test_a_search_ends_with_tables_and_goes_on_as_json(inputs, searched, capsys):
    command = [
        "search",
        *inputs,
        *COUNTS,
        "--runtime",
        "torch",
        "--macs",
        "0.7",
        "0.4",
        "--candidates",
        "10",
        "--output",
        str(searched),
    ]
    before = (searched / "search.jsonl").read_text()
    code, out, err = run(capsys, *command)
    assert code == 0
    assert "leaders under macs=0.7" in out
    assert "leaders under macs=0.4" in out
    assert "20 candidates" in out
    assert "warning: the full model scores" in err  # its weights are random
    code, out, _ = run(capsys, *command, "--json")
    data = json.loads(out)
    assert (searched / "search.jsonl").read_text() == before  # all of it was on record
    assert len(data["budgets"]) == 2
    first = data["budgets"][1]["leaders"][0]
    graph = trace_network(make_model("resnet20_cifar"), SearchConfig(dimensions=("width", "depth", "size")))
    strategy = Strategy.from_dict(first["strategy"])
    assert count_cost(graph, strategy).macs == first["macs"]
    strategies = json.loads((searched / "strategy.json").read_text())["strategies"]
    kept = strategies["macs=0.4"]["widths"]
    assert [kept.get(n, w) for n, w in zip(data["groups"], strategy.widths, strict=True)] == list(strategy.widths)
    assert strategies["macs=0.4"]["removed_blocks"] == list(strategy.removed_blocks)
    assert strategies["macs=0.4"]["image_size"] == strategy.image_size


@pytest.mark.parametrize("extra", [["--no-compensate"], []], ids=["plain", "compensated"])
def test_prune_applies_a_strategy(inputs, searched, tmp_path, capsys, extra):
    strategy = f"{searched / 'strategy.json'}#macs=0.4"
    command = ["prune", *inputs, *COUNTS, "--strategy", strategy, *extra]
    code, out, _ = run(capsys, *command, "--json", "--output", str(tmp_path / "thin"))
    assert code == 0
    data = json.loads(out)
    thin = from_pretrained(tmp_path / "thin")
    graph = trace_model(thin)
    assert count_cost(graph, graph.widths)._asdict() == data["kept"]
    assert 0.2 < data["kept"]["macs"] / data["full"]["macs"] <= 0.405
    assert thin(torch.randn(1, *graph.input_size)).isfinite().all()
    code, _, err = run(capsys, *command, "--output", str(tmp_path / "thin"))
    assert code == 2
    assert "holds a checkpoint already" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["search", "resnet20_cifar", "--macs", "0.01", "--dimensions", "width"],
            "out of reach: .* the smallest model still has",
        ),
        (["search", "resnet20_cifar", "--macs", "2.5"], "`macs` is a fraction of the full model"),
        (
            ["search", "resnet20_cifar", "--candidates", "0"],
            "`candidates` is an integer, at least 1 or left out; got 0",
        ),
        (["search", "resnet20_cifar", "--candidates", "None"], "`candidates=None`: a search needs an end; give"),
        (["search", "resnet20_cifar", "--candidates", "many"], "`--candidates` is an integer, .*; got many"),
        (["search", "resnet20_cifar", "--seed", "-1"], "`seed` is an integer, at least 0; got -1"),
        (["search", "resnet20_cifar", "--num-workers", "-1"], "`num_workers` is an integer, at least 0; got -1"),
        (["search", "resnet20_cifar", "--macs_", "1"], "unknown arguments: --macs_"),
        (
            ["search", "resnet20_cifar", "--method", "magic"],
            "`--method` is one of random, .*, global; got magic",
        ),
        (["search", "resnet20_cifar", "--criterion", "magic"], "`--criterion` is one of l1, .*; got magic"),
        (["prune", "resnet20_cifar", "--strategy", "nowhere.json"], "`strategy=nowhere.json` can't be read"),
        (["prune", "resnet20_cifar"], "`strategy` must be given"),
        (["report", "nowhere"], "`journal=nowhere` does not exist"),
    ],
)
def test_bad_input_is_one_clear_line(inputs, tmp_path, capsys, arguments, message):
    if arguments[0] != "report":
        arguments = [arguments[0], *inputs, *COUNTS, *arguments[2:], "--output", str(tmp_path / "out")]
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert re.search(message, err)
    assert "Traceback" not in err
    assert not (tmp_path / "out" / "search.jsonl").exists()
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.fixture(scope="module")
def page(searched) -> Path:
    pytest.importorskip("matplotlib")
    assert main(["report", str(searched / "search.jsonl")]) == 0
    return searched / "search.html"


def test_a_report_is_pictures_and_one_self_contained_page(page):
    for name in ("scores", "widths", "ratios"):
        assert (page.parent / f"search_{name}.png").read_bytes()[:4] == b"\x89PNG"
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 4  # and the front of the search
    assert re.search(r"<h1>Search: resnet20_cifar on \w+, ", text)
    assert "<code>eagleeye search --config run.yaml</code>" in text
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert "No sub-net can do better" in text


def test_the_page_lives_in_a_browser(page, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    probe = tmp_path / "probe.html"
    click = 'document.querySelectorAll("th")[2].click(); document.querySelectorAll("th")[2].click();'
    click += "document.body.dataset.pictures = [...document.images].filter(i => i.naturalWidth > 300).length;"
    probe.write_text(page.read_text().replace("</body>", f"<script>onload = () => {{{click}}};</script></body>"))
    command = [browser, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run([*command, probe.as_uri()], capture_output=True, text=True, timeout=120, check=False)
    assert 'data-ready="yes"' in done.stdout, done.stderr[-500:]
    assert 'data-pictures="4"' in done.stdout
    table = done.stdout.split("<tbody>")[1].split("</tbody>")[0]
    table = re.sub(r'<tr class="full">.*?</tr>', "", table, flags=re.DOTALL)
    losses = [float(row) for row in re.findall(r'<td data-value="([\d.]+)">\d+\.\d{4}</td>', table)]
    assert len(losses) == 10
    assert losses == sorted(losses, reverse=True)  # a second click turns the order round


def test_a_journal_without_candidates_is_refused(tmp_path, capsys):
    (tmp_path / "search.jsonl").write_text(
        '{"settings": {}, "prepared": {"full": null, "format": null, "latency": null}}\n'
    )
    code, _, err = run(capsys, "report", str(tmp_path))
    assert code == 2
    assert "holds no finished candidate yet" in err
