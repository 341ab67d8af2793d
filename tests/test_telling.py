"""Lines by logging, bars on terminals, lines of progress elsewhere."""

import logging

from eagleeye_hf import telling
from eagleeye_hf.telling import progress_bar, say, warn


def test_lines_go_to_the_error_stream_and_can_be_turned_off(capsys):
    say("all is well")
    warn("all is not")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "all is well\nwarning: all is not\n")
    logger = logging.getLogger("eagleeye_hf")
    logger.setLevel(logging.WARNING)
    try:
        say("all is well")
        warn("all is not")
    finally:
        logger.setLevel(logging.INFO)
    assert capsys.readouterr().err == "warning: all is not\n"


def test_without_a_terminal_progress_is_a_line_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(telling, "LINE_SECONDS", 0.0)
    for number in progress_bar(range(3), "counting", unit="sheep"):
        say(f"sheep {number}")  # a line beside the bar draws no other
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("sheep")] == ["sheep 0", "sheep 1", "sheep 2"]
    assert [line.split(",")[0] for line in lines if line.startswith("counting")] == [
        "counting: 1 of 3",
        "counting: 2 of 3",
    ]
    assert all(line.endswith(" left") for line in lines if line.startswith("counting"))


def test_quick_work_says_nothing(capsys):
    for _ in progress_bar(range(1000), "counting"):
        pass
    with progress_bar(total=10, desc="counting", disable=True) as bar:
        bar.update()
    assert capsys.readouterr().err == ""


def test_on_a_terminal_there_are_bars(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    for _ in progress_bar(range(3), "counting", mininterval=0):
        say("beside")
    err = capsys.readouterr().err
    assert "counting: 100%" in err
    assert err.count("beside") == 3
