from dataclasses import replace

import datasets
import numpy as np
import timm
import torch

from eagleeye_hf import open_splits
from eagleeye_hf.data.batches import Portion, cut_evenly, even_chunks, plan_epoch
from eagleeye_hf.data.labels import Labels
from eagleeye_hf.data.rows import Columns, StreamRows
from tests.data.helpers import raw, seen
from tests.data.test_splits import stream
from tests.helpers import digits_dataset

MODEL = timm.create_model("resnet20_cifar")


def opened(streaming: bool = False, shards: int = 3, **options):
    data = digits_dataset(160, 20)
    return open_splits(
        stream(data, shards) if streaming else data, MODEL, calibration_images=13, holdout_images=20, **options
    )


def test_every_image_once_on_any_number_of_processes_and_workers():
    for streaming in (False, True):
        train = opened(streaming).train
        whole = sorted(seen(train, 2, Portion(batch_size=16)))
        assert len(set(whole)) == 127
        for processes, workers, micro in ((1, 2, 1), (2, 0, 1), (3, 0, 1), (2, 2, 2)):
            portions = [
                Portion(batch_size=16, process=rank, num_processes=processes, micro_batches=micro)
                for rank in range(processes)
            ]
            parts = [image for portion in portions for image in seen(train, 2, portion, workers)]
            assert sorted(parts) == whole, (streaming, processes, workers)


def test_streams_of_many_shards_share_whole_shards():
    train = opened(True, shards=8).train
    parts = [seen(train, 0, Portion(batch_size=16, process=rank, num_processes=2)) for rank in (0, 1)]
    assert len(parts[0] + parts[1]) == len(set(parts[0] + parts[1])) == 127


def test_steps_of_an_epoch_differ_by_at_most_one_image():
    for processes in (1, 2, 5):
        plans = [
            plan_epoch(127, 0, Portion(batch_size=20, process=rank, num_processes=processes, micro_batches=2))
            for rank in range(processes)
        ]
        assert {len(plan) for plan in plans} == {2 * 7}
        steps = [sum(len(plan[2 * step]) + len(plan[2 * step + 1]) for plan in plans) for step in range(7)]
        assert sum(steps) == 127
        assert max(steps) - min(steps) <= 1
    assert [len(batch) for batch in cut_evenly(129, 128)] == [65, 64]
    np.testing.assert_array_equal(np.stack(cut_evenly(256, 128)), np.arange(256).reshape(2, 128))
    assert cut_evenly(0, 128) == []
    assert [len(chunk) for chunk in even_chunks(iter([None] * 21), 5)] == [5, 5, 5, 6]


def test_epochs_differ_and_are_the_same_again():
    train = opened().train
    first, second = seen(train, 0), seen(train, 1)
    assert first != second
    assert sorted(first) == sorted(second)
    assert first == seen(opened().train, 0) != seen(opened(seed=1).train, 0)


def test_an_epoch_goes_on_where_it_was():
    for streaming in (False, True):
        train = raw(opened(streaming).train)
        whole = [labels.tolist() for _, labels in train.epoch_batches(1, Portion(batch_size=16))]
        rest = [labels.tolist() for _, labels in train.epoch_batches(1, Portion(batch_size=16, start=3))]
        assert rest == whole[3:]


def test_a_stream_goes_on_where_it_was_with_more_workers_than_a_process_has_shards():
    train = raw(opened(True, shards=8).train)
    portion = Portion(batch_size=16, num_processes=2)
    whole = [batch for batch, _ in train.epoch_batches(1, portion, num_workers=8)]
    for start in (3, len(whole) - 1):  # near the end, where some workers have no images left
        rest = [batch for batch, _ in train.epoch_batches(1, replace(portion, start=start), num_workers=8)]
        assert len(rest) == len(whole) - start
        assert all(map(torch.equal, rest, whole[start:]))


def test_random_crops_do_not_depend_on_processes_or_workers():
    train = opened().train
    train.preprocessing = replace(train.preprocessing, small=None)  # one by one

    def images(processes: int, workers: int) -> list[bytes]:
        portions = [Portion(batch_size=16, process=rank, num_processes=processes) for rank in range(processes)]
        return sorted(
            image.numpy().tobytes()
            for portion in portions
            for batch, _ in train.epoch_batches(0, portion, workers)
            for image in batch
        )

    state = torch.get_rng_state()
    assert images(1, 0) == images(2, 2)
    torch.testing.assert_close(torch.get_rng_state(), state)
    again = sorted(i.numpy().tobytes() for b, _ in train.epoch_batches(1, Portion(batch_size=16)) for i in b)
    assert images(1, 0) != again


def test_a_network_fault_reads_one_shard_again(monkeypatch):
    monkeypatch.setattr("eagleeye_hf.data.rows.RETRY_SECONDS", 0)
    begun, faults = [], [ConnectionError("reset by peer")]

    def generate(shards):
        for shard in shards:
            begun.append(shard)
            for number in range(8):
                if shard == 3 and number == 5 and faults:
                    raise faults.pop()
                yield {"image": {"bytes": bytes([shard, number]), "path": None}, "label": shard}

    image = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features({"image": image, "label": datasets.Value("int64")})
    stream = datasets.IterableDataset.from_generator(generate, features=features, gen_kwargs={"shards": [*range(6)]})
    rows = StreamRows(stream, Columns("image", "label", Labels(num_classes=6)), "generated", None)
    read = [image["bytes"] for image, _ in rows]
    assert read == [bytes([shard, number]) for shard in range(6) for number in range(8)]
    assert begun == [0, 1, 2, 3, 3, 4, 5]
    assert sorted(image["bytes"] for image, _ in rows.rows(0)) == read


def test_few_shards_are_divided_by_row_groups(tmp_path):
    """Any number of processes and workers read each row once, and not each other's."""
    table = digits_dataset(60, 20)["train"]
    for shard in range(2):
        table.shard(2, shard).to_parquet(tmp_path / f"train-{shard}.parquet", batch_size=5)
    stream = datasets.load_dataset(str(tmp_path), streaming=True)["train"]
    whole = StreamRows(stream, Columns("image", "label", Labels(num_classes=10)), "parquet", None)
    rows = whole.divided(5, 2)
    assert whole.dataset.num_shards == 2
    assert rows.dataset.num_shards == 12
    assert whole.divided(1) is whole
    assert rows.num_workers(8, 5, shuffled=False) == 3
    parts = [
        [image["bytes"] for image, _ in rows.rows(None, (rank, 5), (worker, 3))]
        for rank in range(5)
        for worker in range(3)
    ]
    assert sorted(row for part in parts for row in part) == sorted(image["bytes"] for image, _ in whole)
    assert [len(part) for part in parts] == [5, 5, 5, 5, 5, 5, 5, 5, 0, 5, 5, 0, 5, 5, 0]
