"""Publishing and loading over HTTP, against the stand-in for the Hub."""

import errno
import json
import os
import re
import types
import warnings

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import load as load_file_of
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline

from eagleeye_hf import EagleEyeError, from_pretrained, push_to_hub
from eagleeye_hf.publishing import download, retrying
from tests.hub_server import READ_TOKEN, TOKEN
from tests.publishing.make import LABELS, write_checkpoint

REPO = "user/thin"

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")  # huggingface_hub's own


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "run"
    return folder, *write_checkpoint(folder, REPO)


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """The client waits before it tries again; nobody needs to watch that."""
    clock = types.SimpleNamespace(**vars(huggingface_hub.utils._http.time) | {"sleep": lambda seconds: None})
    monkeypatch.setattr(huggingface_hub.utils._http, "time", clock)
    monkeypatch.setattr(huggingface_hub.file_download, "time", clock)
    monkeypatch.setattr(retrying, "time", clock)


def test_what_was_pushed_loads_in_three_ways(hub, checkpoint, tmp_path):
    folder, model, images = checkpoint
    url = push_to_hub(folder, REPO, token=TOKEN)
    files = hub.repos[REPO].commits[hub.repos[REPO].refs["main"]]
    assert url == f"{hub.url}/{REPO}/commit/{hub.repos[REPO].refs['main']}"
    assert set(files) == {".gitattributes", "config.json", "model.safetensors", "README.md"}
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own
        expected = model(images)
        for loaded in (
            from_pretrained(REPO),
            timm.create_model(f"hf-hub:{REPO}", pretrained=True, cache_dir=tmp_path / "timm").eval(),
            AutoModelForImageClassification.from_pretrained(REPO, cache_dir=tmp_path / "hf").eval(),
        ):
            outputs = loaded(images)
            torch.testing.assert_close(getattr(outputs, "logits", outputs), expected, rtol=0, atol=0)
        features = AutoModel.from_pretrained(REPO).eval()(images).last_hidden_state
        torch.testing.assert_close(features, model.forward_features(images), rtol=0, atol=0)


def test_the_cards_own_code_loads_it(hub, checkpoint):
    folder, model, images = checkpoint
    push_to_hub(folder, REPO, token=TOKEN)
    snippets = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert len(snippets) == 3
    for snippet in snippets:
        names: dict = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # transformers' own
            exec(snippet, names)
        with torch.inference_mode():
            outputs = names["model"].eval()(images)
        torch.testing.assert_close(getattr(outputs, "logits", outputs), model(images), rtol=0, atol=0)
    assert type(names["processor"]).__name__ == "TimmWrapperImageProcessor"


def test_pipeline_and_processor(hub, checkpoint):
    from PIL import Image

    push_to_hub(checkpoint[0], REPO, token=TOKEN)
    picture = Image.new("RGB", (40, 50), (200, 30, 90))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own
        answer = pipeline("image-classification", model=REPO, device="cpu")(picture, top_k=10)
        processor = AutoImageProcessor.from_pretrained(REPO)
    assert {entry["label"] for entry in answer} == set(LABELS)
    pixels = processor(picture)["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32)
    with torch.inference_mode():
        best = checkpoint[1](pixels).softmax(1).max()
    assert answer[0]["score"] == pytest.approx(float(best), rel=1e-4)


def load_three_ways(cache, images):
    """Outputs of the three loaders, each with a cache of its own."""
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own
        yield from_pretrained(REPO, cache_dir=cache / "own")(images)
        yield timm.create_model(f"hf-hub:{REPO}", pretrained=True, cache_dir=cache / "timm").eval()(images)
        classifier = AutoModelForImageClassification.from_pretrained(REPO, cache_dir=cache / "transformers")
        yield classifier.eval()(images).logits


def test_a_private_repo_loads_in_three_ways_where_one_is_logged_in(hub, checkpoint, tmp_path, monkeypatch):
    """And afterwards without a connection, from the cache."""
    folder, model, images = checkpoint
    push_to_hub(folder, REPO, private=True, token=TOKEN)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for outputs in load_three_ways(tmp_path, images):
        torch.testing.assert_close(outputs, model(images))
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    requests = len(hub.log)
    for outputs in load_three_ways(tmp_path, images):
        torch.testing.assert_close(outputs, model(images))
    assert len(hub.log) == requests


def test_a_revision_is_a_branch_that_loads_by_its_name(hub, checkpoint, tmp_path):
    folder, model, images = checkpoint
    push_to_hub(folder, REPO, revision="v1", commit_message="first version", token=TOKEN)
    assert "config.json" not in hub.repos[REPO].commits[hub.repos[REPO].refs["main"]]
    assert hub.repos[REPO].messages[-1] == "first version"
    with torch.inference_mode():
        torch.testing.assert_close(from_pretrained(REPO, revision="v1")(images), model(images), rtol=0, atol=0)
        commit = hub.repos[REPO].refs["v1"]
        torch.testing.assert_close(from_pretrained(REPO, revision=commit)(images), model(images), rtol=0, atol=0)
        by_timm = timm.create_model(f"hf-hub:{REPO}@v1", pretrained=True, cache_dir=tmp_path).eval()
        torch.testing.assert_close(by_timm(images), model(images), rtol=0, atol=0)
    with pytest.raises(EagleEyeError, match="at `revision=v2` is neither a folder nor a Hub repo"):
        from_pretrained(REPO, revision="v2")


def test_a_pull_request_leaves_main_alone(hub, checkpoint):
    folder, model, images = checkpoint
    hub.repos.clear()
    push_to_hub(folder, REPO, revision="other", token=TOKEN)
    before = hub.repos[REPO].refs["main"]
    url = push_to_hub(folder, REPO, create_pr=True, token=TOKEN)
    assert url == f"{hub.url}/{REPO}/discussions/1"
    assert hub.repos[REPO].refs["main"] == before
    with torch.inference_mode():
        torch.testing.assert_close(from_pretrained(REPO, revision="refs/pr/1")(images), model(images))
    with pytest.raises(EagleEyeError, match="`revision=v1` and `create_pr` exclude each other"):
        push_to_hub(folder, REPO, create_pr=True, revision="v1", token=TOKEN)


def test_private_repos_need_the_right_token(hub, checkpoint):
    folder, model, images = checkpoint
    push_to_hub(folder, REPO, private=True, token=TOKEN)
    assert hub.repos[REPO].private
    with torch.inference_mode():
        torch.testing.assert_close(from_pretrained(REPO, token=TOKEN)(images), model(images))
    for token in (None, READ_TOKEN, "hf_wrong"):
        with pytest.raises(EagleEyeError, match="nor a Hub repo that can be read"):
            from_pretrained(REPO, token=token, cache_dir=folder.parent / f"cache {token}")
    with pytest.raises(EagleEyeError, match="exists and is private; change it"):
        push_to_hub(folder, REPO, private=False, token=TOKEN)


def test_without_connection_the_cache_serves(hub, checkpoint, monkeypatch):
    folder, model, images = checkpoint
    push_to_hub(folder, REPO, token=TOKEN)
    from_pretrained(REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with torch.inference_mode():
        torch.testing.assert_close(from_pretrained(REPO)(images), model(images))
    with pytest.raises(EagleEyeError, match="`path_or_repo=user/other` is neither"):
        from_pretrained("user/other")


def test_a_second_push_sends_nothing(hub, checkpoint):
    first = push_to_hub(checkpoint[0], REPO, token=TOKEN)
    assert push_to_hub(checkpoint[0], REPO, token=TOKEN) == first
    assert hub.count("POST", "/commit/") == 1
    assert hub.count("PUT", "/lfs/") == 1


def test_a_changed_card_is_a_small_commit(hub, checkpoint, tmp_path):
    push_to_hub(checkpoint[0], REPO, token=TOKEN)
    write_checkpoint(tmp_path / "run", REPO, license="mit")
    push_to_hub(tmp_path / "run", REPO, token=TOKEN)
    assert hub.count("POST", "/commit/") == 2
    assert hub.count("PUT", "/lfs/") == 1


@pytest.mark.parametrize("status", [500, 503, 429, 0], ids=["500", "503", "429", "cut"])
@pytest.mark.parametrize("request_", ["PUT /lfs/", "POST /commit/", "POST /preupload/", "POST objects/batch"])
def test_passing_faults_are_survived(hub, checkpoint, status, request_):
    method, path = request_.split()
    hub.fail(method, path, status, times=2, **({"Retry_After": "0"} if status == 429 else {}))
    push_to_hub(checkpoint[0], REPO, token=TOKEN)
    assert hub.count(method, path) == 3
    assert "model.safetensors" in hub.repos[REPO].commits[hub.repos[REPO].refs["main"]]


@pytest.mark.parametrize("status", [500, 0], ids=["500", "cut"])
def test_a_push_that_broke_goes_on(hub, checkpoint, status):
    hub.fail("POST", "/commit/", status, times=99)
    with pytest.raises(EagleEyeError, match=r"`repo=user/thin` could not be written: .* run the same again to go on"):
        push_to_hub(checkpoint[0], REPO, token=TOKEN)
    assert list(hub.repos[REPO].refs) == ["main"]
    assert "config.json" not in hub.repos[REPO].commits[hub.repos[REPO].refs["main"]]  # whole commits only
    hub.faults.clear()
    push_to_hub(checkpoint[0], REPO, token=TOKEN)
    assert hub.count("PUT", "/lfs/") == 1  # the weights had arrived the first time
    from_pretrained(REPO)


def test_somebody_elses_commit_in_between(hub, checkpoint):
    hub.fail("POST", "/commit/", 412, times=2)
    push_to_hub(checkpoint[0], REPO, token=TOKEN)
    assert hub.count("POST", "/commit/") == 3


@pytest.mark.parametrize(
    ("token", "repo", "message"),
    [
        ("hf_wrong", REPO, "Log in with `hf auth login`, or give a `token` that may write there"),
        (READ_TOKEN, REPO, "Log in with `hf auth login`"),
        (TOKEN, "other/thin", "don't have the rights to create a model under other"),
        (TOKEN, "not a name", "`repo=not a name` is no name of a Hub repo"),
        (TOKEN, "../thin", "`repo=../thin` is no name of a Hub repo"),
        (TOKEN, "thin", "`repo=thin` has to be USER/REPO"),
    ],
)
def test_what_the_hub_refuses_is_one_clear_line(hub, checkpoint, token, repo, message):
    with pytest.raises(EagleEyeError, match=message) as caught:
        push_to_hub(checkpoint[0], repo, token=token)
    assert "\n" not in str(caught.value)
    assert not hub.repos


def test_a_download_that_was_cut_goes_on_where_it_stopped(hub, checkpoint, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)  # so that something of a small file has arrived
    folder, model, images = checkpoint
    push_to_hub(folder, REPO, token=TOKEN)
    hub.fail("GET", r"model\.safetensors", 0, times=1)
    with torch.inference_mode():
        torch.testing.assert_close(from_pretrained(REPO)(images), model(images), rtol=0, atol=0)
    assert hub.count("GET", r"resolve/.*/model\.safetensors") == 2
    assert hub.count("GET", r"resolve/.*/model\.safetensors bytes=\d+-") == 1


def test_a_repo_that_is_no_checkpoint_is_refused_before_its_weights_are_fetched(hub, checkpoint):
    push_to_hub(checkpoint[0], REPO, token=TOKEN)
    repo = hub.repos[REPO]
    files = repo.commits[repo.refs["main"]]
    repo.commit(files | {"config.json": b"[" * 100_000}, "main", "broken")
    with pytest.raises(EagleEyeError, match="is not JSON"):
        from_pretrained(REPO)
    assert not hub.count("GET", r"model\.safetensors")
    repo.commit({"config.json": files["config.json"]}, "main", "no weights")
    with pytest.raises(EagleEyeError, match="EntryNotFound"):
        from_pretrained(REPO)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"license": ""}, "does not tell the licence"),
        ({"metrics": {}}, "the test accuracy .*nor top-1 of both networks"),
        ({"dataset": ""}, "the dataset"),
        ({"latency": ()}, "the latency and its device"),
        ({"command": ""}, "the command"),
        ({"settings": {"calibration images": 9}}, "the seed"),
    ],
)
def test_a_card_with_missing_facts_is_refused(hub, tmp_path, changes, message):
    write_checkpoint(tmp_path / "run", REPO, **changes)
    with pytest.raises(EagleEyeError, match=message):
        push_to_hub(tmp_path / "run", REPO, token=TOKEN)
    assert not hub.log


def test_a_card_written_for_a_folder_is_addressed_to_the_repo(hub, tmp_path):
    write_checkpoint(tmp_path / "run")
    push_to_hub(tmp_path / "run", "user/elsewhere", token=TOKEN)
    repo = hub.repos["user/elsewhere"]
    card = repo.commits[repo.refs["main"]]["README.md"].decode()
    assert str(tmp_path) not in card
    assert card.count('("user/elsewhere"') == 3
    assert 'timm.create_model("hf-hub:user/elsewhere", pretrained=True)' in card


def test_only_whole_checkpoints_are_pushed(hub, checkpoint, tmp_path):
    with pytest.raises(EagleEyeError, match=r"has no config\.json"):
        push_to_hub(tmp_path, REPO, token=TOKEN)
    write_checkpoint(tmp_path / "run")
    (tmp_path / "run" / "README.md").unlink()
    with pytest.raises(EagleEyeError, match="has no model card"):
        push_to_hub(tmp_path / "run", REPO, token=TOKEN)
    (tmp_path / "run" / "README.md").write_text("---\nlicense: [\n---\n# nothing")
    with pytest.raises(EagleEyeError, match=r"the metadata of .* can't be read"):
        push_to_hub(tmp_path / "run", REPO, token=TOKEN)


def test_nothing_pickled_is_pushed(hub, checkpoint, tmp_path):
    write_checkpoint(tmp_path / "run", REPO)
    torch.save({}, tmp_path / "run" / "pytorch_model.bin")
    (tmp_path / "run" / "training").mkdir()
    (tmp_path / "run" / "result.png").write_bytes(b"\x89PNG")
    push_to_hub(tmp_path / "run", REPO, token=TOKEN)
    files = hub.repos[REPO].commits[hub.repos[REPO].refs["main"]]
    assert set(files) == {".gitattributes", "config.json", "model.safetensors", "README.md", "result.png"}
    assert json.loads(files["config.json"])["architecture"] == "eagleeye_pruned"


@pytest.mark.parametrize("status", [500, 502, 503, 0], ids=["500", "502", "503", "cut"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_bad_minute_of_the_hub_is_survived_when_loading(hub, checkpoint, method, name, status):
    folder, model, images = checkpoint
    push_to_hub(folder, REPO, token=TOKEN)
    hub.fail(method, f"resolve/.*{re.escape(name)}", status, times=2)
    with torch.inference_mode():
        torch.testing.assert_close(from_pretrained(REPO)(images), model(images), rtol=0, atol=0)


def test_a_bad_hour_is_one_clear_line_after_bounded_attempts(hub, checkpoint):
    push_to_hub(checkpoint[0], REPO, token=TOKEN)
    hub.log.clear()
    hub.fail("HEAD", "resolve/.*config.json", 502, times=99)
    with pytest.raises(EagleEyeError, match=r"nor a Hub repo that can be read .*502") as caught:
        from_pretrained(REPO)
    assert "\n" not in str(caught.value)
    assert 3 <= hub.count("HEAD", "config.json") <= 30  # the client tries again too


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_the_hub_refuses_is_not_asked_again(hub, checkpoint, status):
    push_to_hub(checkpoint[0], REPO, token=TOKEN)
    hub.log.clear()
    hub.fail("HEAD", "resolve/.*config.json", status, times=99)
    with pytest.raises(EagleEyeError, match=f"nor a Hub repo that can be read .*{status}"):
        from_pretrained(REPO)
    assert hub.count("HEAD", "config.json") == 1


def test_a_full_disk_is_told_as_such(hub, checkpoint, monkeypatch):
    push_to_hub(checkpoint[0], REPO, token=TOKEN)
    calls = []

    def fail(*arguments, **options):
        calls.append(arguments)
        raise RuntimeError("can't finish") from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(download, "hf_hub_download", fail)
    with pytest.raises(EagleEyeError, match="No space left on device"):
        from_pretrained(REPO)
    assert len(calls) == 1


def test_torn_and_foreign_weights_are_not_published(hub, tmp_path):
    write_checkpoint(tmp_path / "run")
    path = tmp_path / "run" / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(EagleEyeError, match="is no safetensors file"):
        push_to_hub(tmp_path / "run", REPO, token=TOKEN)
    tensors = load_file_of(whole)
    save_file(tensors | {"conv1.weight": torch.ones(1, 3, 3, 3)}, path)
    with pytest.raises(EagleEyeError, match=r"conv1\.weight has shape \(1, 3, 3, 3\)"):
        push_to_hub(tmp_path / "run", REPO, token=TOKEN)
    path.write_bytes(whole)
    (tmp_path / "run" / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    with pytest.raises(EagleEyeError, match=r"README\.md can't be read as UTF-8"):
        push_to_hub(tmp_path / "run", REPO, token=TOKEN)
    assert not hub.log


def test_a_licence_is_added_where_the_card_has_none(hub, tmp_path):
    write_checkpoint(tmp_path / "run", REPO, license="")
    with pytest.raises(EagleEyeError, match="does not tell the licence"):
        push_to_hub(tmp_path / "run", REPO, token=TOKEN)
    with pytest.raises(EagleEyeError, match="is no name of a licence"):
        push_to_hub(tmp_path / "run", REPO, license="mit\ntags: []", token=TOKEN)
    push_to_hub(tmp_path / "run", REPO, license="mit", token=TOKEN)
    repo = hub.repos[REPO]
    card = repo.commits[repo.refs["main"]]["README.md"].decode()
    assert huggingface_hub.ModelCard(card).data.license == "mit"
    assert "license" not in (tmp_path / "run" / "README.md").read_text()
    write_checkpoint(tmp_path / "other", REPO, license="mit")
    push_to_hub(tmp_path / "other", REPO, license="mit", token=TOKEN)
    with pytest.raises(EagleEyeError, match=r"`license=apache-2\.0`, but the card tells the licence mit"):
        push_to_hub(tmp_path / "other", REPO, license="apache-2.0", token=TOKEN)
