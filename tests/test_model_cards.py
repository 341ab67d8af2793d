"""The committed cards tell everything that a published card must, and agree with themselves."""

import re
import shlex
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from eagleeye_hf.publishing.card_checks import check_card

ROOT = Path(__file__).resolve().parents[1]
CARDS = sorted((ROOT / "model_cards").glob("*/README.md"))


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parent.name)
def test_a_committed_card_is_complete(path):
    text = path.read_text()
    check_card(text, str(path.relative_to(ROOT)))
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (path.parent / picture).is_file()
    (command,) = re.findall(r"```bash\n(.*?)\n```", text, re.DOTALL)
    if not command.startswith("eagleeye compress "):
        recipe = next(word for word in shlex.split(command) if word.endswith(".py"))
        assert (ROOT / recipe).is_file()
    assert not re.search(r"[ =\"`]/(?!/)\w", text), "the card names a folder of the machine that made it"


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parent.name)
def test_a_committed_cards_metadata_is_its_table(path):
    text = path.read_text()
    results = {result.metric_name: result.metric_value for result in ModelCard(text).data.eval_results}
    for name, row in (("Top-1 accuracy", "top-1"), ("Top-5 accuracy", "top-5")):
        (shown,) = re.findall(rf"^\| {row} \| [\d.]+% \| ([\d.]+)% \|", text, re.MULTILINE)
        assert float(shown) == pytest.approx(100 * results[name], abs=0.006)
    row = re.search(r"^\| MACs \(papers say FLOPs\) \| ([\d.,]+) M \| ([\d.,]+) M \|", text, re.MULTILINE)
    full, pruned = (float(number.replace(",", "")) for number in row.groups())
    assert 100 * pruned / full == pytest.approx(float(re.findall(r"\*\*([\d.]+)% of its MACs\*\*", text)[0]), abs=0.2)
