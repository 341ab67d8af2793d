"""The page about a search: whatever a journal says is text there."""

from html.parser import HTMLParser
from pathlib import Path

import pytest

from eagleeye_hf import EagleEyeError, Strategy
from eagleeye_hf.channels.cost import Cost
from eagleeye_hf.evaluation.objective import Score
from eagleeye_hf.evaluation.preparation import FullScores, Preparation
from eagleeye_hf.reports.search_page import describe_search, write_page
from eagleeye_hf.search.candidate import Candidate
from eagleeye_hf.search.reading import SearchRecord

ATTACK = "\"'><img src=x onerror=alert(1)><script>alert(2)</script>{{ 7 * 7 }}"


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)


def record(text: str = "random", **changes) -> SearchRecord:
    """A search of three candidates; `text` stands wherever a journal can have some."""
    score = Score(loss=1.0, reported=0.5, num_images=64)
    settings = {"method": text, "criterion": text, "seed": text, "budgets": [text], "channels": [16]}
    candidates = [
        Candidate(
            index=index,
            strategy=Strategy((8,)),
            origin=text,
            cost=Cost(500 - index, 50),
            predicted_ms=1.5,
            score=Score(**{"loss": 1.0 + index, "reported": 0.4, "num_images": 64, **changes}),
            status="ok",
        )
        for index in range(3)
    ]
    return SearchRecord(
        settings=settings | {"full": {"macs": 1000, "params": 100}},
        prepared=Preparation(reports=text, full=FullScores(unchanged=score, adaptive=score, chance=score)),
        candidates=tuple(candidates),
        first_losses={},
        elapsed=3.0,
    )


def page(searched: SearchRecord, folder: Path, pictures: dict[str, Path] | None = None) -> str:
    path = write_page(describe_search(searched), pictures or {}, folder / "search.html")
    return path.read_text(encoding="utf-8")


def test_the_page_has_the_numbers(tmp_path):
    picture = tmp_path / "scores.png"
    picture.write_bytes(b"\x89PNG")
    text = page(record(), tmp_path, {"scores": picture})
    for fact in (
        '<td data-value="1.0">1.0000</td>',
        '<td data-value="500">50.0%</td>',
        '<td data-value="1.5">1.50</td>',
        "3 candidates in 0.1 minutes",
        "method random, criterion random",
        "<h2>Leaders under random</h2>",
        'src="data:image/png;base64,iVBORw=="',
    ):
        assert fact in text, fact
    assert [tag for tag, _ in Tags(text).found].count("tr") == 5  # the head, three candidates, the full network
    assert text.index("iVBORw==") < text.index("<table>")
    assert text.count('<tr class="chosen">') == text.count('<tr class="full">') == 1
    assert "losses on different numbers of images can&#39;t be compared" in text


def test_a_page_of_a_run_names_it(tmp_path):
    told = describe_search(record(), {"model": "resnet18", "dataset": "my/photographs"}, "compress")
    assert told["title"] == "Search: resnet18 on photographs, random"
    assert told["command"] == "eagleeye compress --config run.yaml"
    assert describe_search(record())["title"] == "Search for thin networks, random"


def test_a_strangers_journal_is_text(tmp_path):
    """Nothing of it becomes an element, an attribute or a template of its own."""
    text = page(record(ATTACK), tmp_path)
    plain = Tags(page(record(), tmp_path))
    tags = Tags(text)
    assert [tag for tag, _ in tags.found] == [tag for tag, _ in plain.found]
    assert [list(attributes) for _, attributes in tags.found] == [list(attributes) for _, attributes in plain.found]
    assert sum(ATTACK in word for word in tags.words) >= 5
    assert "onerror=alert(1)>" not in text
    assert "{{ 7 * 7 }}" in "".join(tags.words)


@pytest.mark.parametrize("changes", [{"reported": "<b>"}, {"reported": None}, {"loss": "<b>"}, {"num_images": ATTACK}])
def test_words_in_place_of_a_number_are_one_clear_error(changes):
    with pytest.raises(EagleEyeError, match="the journal holds values that no search writes"):
        describe_search(record(**changes))


def test_pictures_of_values_that_no_search_writes_are_one_clear_error(tmp_path):
    draw_search = pytest.importorskip("eagleeye_hf.reports.search_plots").draw_search
    with pytest.raises(EagleEyeError, match="the journal holds values that no search writes"):
        draw_search(record(), tmp_path / "pictures")
    assert not (tmp_path / "pictures").exists()
