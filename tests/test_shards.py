"""Records on disk: all of them back, shuffled epochs that a resumed run sees again."""

import itertools

import numpy as np
import pytest

from stages.common import shards
from stages.common.run import UserError

CLASSES = ["cat", "dog"]


def draw_records(count: int, shape=(4, 6, 3), dtype="uint8") -> list[tuple[np.ndarray, int, str]]:
    random = np.random.default_rng(0)
    return [
        (random.integers(0, 256, shape).astype(dtype), number % 2, f"id {number}")
        for number in range(count)
    ]


@pytest.fixture
def small_shards(monkeypatch):
    """A shard is closed as soon as it holds ten small pictures."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 10 * 4 * 6 * 3)


@pytest.fixture
def folder(tmp_path, small_shards):
    """Forty-five records in five shards."""
    shards.write_all(tmp_path / "records", draw_records(45), "uint8", CLASSES)
    return tmp_path / "records"


@pytest.fixture
def unseeded_afterwards():
    """Takes the global seed back, so that no later test depends on this one."""
    yield
    import tensorflow as tf

    tf.random.set_seed(None)


def order(dataset) -> list[list[str]]:
    """The ids of every batch."""
    return [[text.decode() for text in ids] for _, _, ids in dataset.as_numpy_iterator()]


def training_order(folder, seed=0, first_epoch=0, epochs=3, batch_size=8) -> list[list[str]]:
    return order(
        shards.training_batches(
            folder, batch_size, seed=seed, first_epoch=first_epoch, epochs=epochs
        )
    )


def epochs_of(batches: list[list[str]], batches_per_epoch: int = 6) -> list[list[str]]:
    return [
        list(itertools.chain(*batches[start : start + batches_per_epoch]))
        for start in range(0, len(batches), batches_per_epoch)
    ]


@pytest.mark.parametrize(
    ("shape", "dtype"), [((4, 6, 3), "uint8"), ((8, 16), "float16"), ((2, 3, 3, 5), "float16")]
)
def test_what_was_written_is_read_in_the_same_order(tmp_path, shape, dtype):
    records = draw_records(7, shape, dtype)
    shards.write_all(tmp_path, records, dtype, CLASSES)
    batches = list(shards.batches(tmp_path, 3).as_numpy_iterator())
    assert [len(labels) for _, labels, _ in batches] == [3, 3, 1]
    arrays, labels, ids = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    assert arrays.dtype == dtype
    np.testing.assert_array_equal(arrays, [record[0] for record in records])
    np.testing.assert_array_equal(labels, [record[1] for record in records])
    assert [text.decode() for text in ids] == [record[2] for record in records]


def test_the_index_says_what_is_there(folder):
    index = shards.read_index(folder)
    assert index.count == 45
    assert index.shape == [4, 6, 3]
    assert index.largest_bytes == 72
    assert index.dtype == "uint8"
    assert index.class_names == CLASSES
    assert index.class_counts == [23, 22]
    assert index.files == [f"shard-{number:05}.tfrecord" for number in range(5)]
    assert index.file_counts == [10, 10, 10, 10, 5]
    assert sorted(path.name for path in folder.iterdir()) == ["index.json", *index.files]


def test_shards_that_are_not_there_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"index\.json does not exist; `dvc repro` makes it"):
        shards.read_index(tmp_path / "nowhere")


def test_a_model_is_told_the_shape_of_the_arrays(folder):
    images, labels, _ = shards.batches(folder, 8).element_spec
    assert images.shape.as_list() == [None, 4, 6, 3]
    assert images.dtype == "uint8"
    assert labels.dtype == "int64"


def test_several_shards_are_read_in_their_order(folder):
    assert list(itertools.chain(*order(shards.batches(folder, 8)))) == [
        f"id {number}" for number in range(45)
    ]


def test_images_of_differing_shapes_come_in_one_batch(tmp_path):
    colors = [(200, 30, 40), (10, 220, 90), (0, 0, 255)]
    shapes = [(20, 50), (9, 5), (16, 16)]
    records = [
        (np.full((*shape, 3), color, np.uint8), 0, f"id {number}")
        for number, (shape, color) in enumerate(zip(shapes, colors, strict=True))
    ]
    shards.write_all(tmp_path, records, "uint8", CLASSES)
    assert shards.read_index(tmp_path).shape is None
    ((images, _, _),) = shards.batches(tmp_path, 3, image_size=16).as_numpy_iterator()
    assert images.shape == (3, 16, 16, 3)
    assert images.dtype == np.uint8
    for image, color in zip(images, colors, strict=True):
        np.testing.assert_array_equal(image, np.broadcast_to(color, (16, 16, 3)))
    ((trained, _, _),) = shards.training_batches(
        tmp_path, 3, seed=0, first_epoch=0, epochs=1, image_size=16
    ).as_numpy_iterator()
    assert {tuple(image[0, 0]) for image in trained} == set(colors)


def test_grey_images_of_differing_shapes_stay_of_one_channel(tmp_path):
    records = [
        (np.full((*shape, 1), 7, np.uint8), 0, str(shape)) for shape in ((20, 50), (9, 5), (16, 16))
    ]
    shards.write_all(tmp_path, records, "uint8", CLASSES)
    for batches in (
        shards.batches(tmp_path, 3, image_size=16),
        shards.training_batches(tmp_path, 3, seed=0, first_epoch=0, epochs=1, image_size=16),
    ):
        assert batches.element_spec[0].shape.as_list() == [None, 16, 16, 1]
        ((images, _, _),) = batches.as_numpy_iterator()
        np.testing.assert_array_equal(images, np.full((3, 16, 16, 1), 7))


def test_equal_pictures_that_are_no_squares_become_such_where_it_is_asked_for(tmp_path):
    shards.write_all(tmp_path, draw_records(6, shape=(20, 50, 3)), "uint8", CLASSES)
    for squares, shape in ((False, (6, 20, 50, 3)), (True, (6, 16, 16, 3))):
        for batches in (
            shards.batches(tmp_path, 6, image_size=16, squares=squares),
            shards.training_batches(
                tmp_path, 6, seed=0, first_epoch=0, epochs=1, image_size=16, squares=squares
            ),
        ):
            ((images, _, _),) = batches.as_numpy_iterator()
            assert images.shape == shape
    # Squares have the size that they were stored with.
    shards.write_all(tmp_path / "square", draw_records(6, shape=(20, 20, 3)), "uint8", CLASSES)
    batches = shards.batches(tmp_path / "square", 6, image_size=16, squares=True)
    assert next(batches.as_numpy_iterator())[0].shape == (6, 20, 20, 3)


def test_differing_shapes_without_an_image_size_are_an_error(tmp_path):
    records = [(np.zeros((2, 3, 3), np.uint8), 0, "a"), (np.zeros((3, 2, 3), np.uint8), 0, "b")]
    shards.write_all(tmp_path, records, "uint8", CLASSES)
    with pytest.raises(ValueError, match="image_size"):
        shards.batches(tmp_path, 2)


def test_no_reader_waits_for_tensorflows_autotuning(folder):
    """With it the end of the data may come as late as if there were twice as much."""
    trained = shards.training_batches(folder, 8, seed=0, first_epoch=0, epochs=2)
    for dataset in (shards.batches(folder, 8), trained):
        # As `train_head` and `fine_tune` go on with it.
        dataset = dataset.enumerate().map(lambda _, batch: batch).prefetch(2)
        assert dataset.options().autotune.enabled is False


def test_each_seed_and_each_epoch_has_an_order_of_its_own(tmp_path):
    """In one file too, where no order of files adds to that of the records."""
    shards.write_all(tmp_path, draw_records(45), "uint8", CLASSES)
    assert len(shards.read_index(tmp_path).files) == 1
    epochs = [epoch for seed in range(3) for epoch in epochs_of(training_order(tmp_path, seed))]
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs) == 9


def test_an_epoch_has_every_record_once(folder):
    batches = training_order(folder)
    assert [len(batch) for batch in batches] == 3 * [8, 8, 8, 8, 8, 5]
    for epoch in epochs_of(batches):
        assert sorted(epoch) == sorted(f"id {number}" for number in range(45))


@pytest.mark.parametrize(("batch_size", "parts"), [(8, 2), (9, 3), (11, 3), (4, 2), (22, 3)])
def test_parts_of_every_batch_make_up_an_epoch(folder, batch_size, parts):
    steps = -(-45 // batch_size)
    last = 45 - (steps - 1) * batch_size
    for shuffled in (False, True):
        seen = []
        for number in range(parts):
            part = shards.Part(number, parts)
            if shuffled:
                dataset = shards.training_batches(
                    folder, batch_size, seed=0, first_epoch=0, epochs=2, part=part
                )
            else:
                dataset = shards.batches(folder, batch_size, part=part)
            epochs = epochs_of(order(dataset), steps)
            sizes = [part.of_batch(batch_size)] * (steps - 1) + [part.of_batch(last)]
            assert {len(epoch) for epoch in epochs} == {sum(sizes) + (sizes[-1] == 0)}
            batches = order(dataset)[:steps]
            assert [len(batch) for batch in batches] == [max(size, 1) for size in sizes]
            # Of a part without an image in the last batch this one only fills a place.
            seen += itertools.chain(*(batches[:-1] if sizes[-1] == 0 else batches))
        assert sorted(seen) == sorted(f"id {number}" for number in range(45))


def test_a_part_reads_no_shard_that_lies_outside_of_it(folder):
    (folder / "shard-00004.tfrecord").unlink()
    first, second = shards.Part(0, 2), shards.Part(1, 2)
    assert list(first.records(45, 8)) == list(range(22))
    assert list(itertools.chain(*order(shards.batches(folder, 8, part=first)))) == [
        f"id {number}" for number in range(22)
    ]
    trained = shards.training_batches(folder, 8, seed=0, first_epoch=0, epochs=1, part=first)
    assert len(list(itertools.chain(*order(trained)))) == 22
    with pytest.raises(Exception, match="shard-00004"):
        order(shards.batches(folder, 8, part=second))


def test_arrays_and_labels_stay_with_their_ids_when_shuffled(folder):
    records = {example_id: (array, label) for array, label, example_id in draw_records(45)}
    dataset = shards.training_batches(folder, 8, seed=0, first_epoch=0, epochs=1)
    for arrays, labels, ids in dataset.as_numpy_iterator():
        for array, label, example_id in zip(arrays, labels, ids, strict=True):
            expected_array, expected_label = records[example_id.decode()]
            np.testing.assert_array_equal(array, expected_array)
            assert label == expected_label


def test_epochs_differ_and_mix_the_shards(folder):
    first, second, third = epochs_of(training_order(folder))
    assert first != second != third != first
    # The first batch draws from all over the folder, not from one shard of ten.
    shards_of_batch = {int(text.removeprefix("id ")) // 10 for text in first[:8]}
    assert len(shards_of_batch) > 1


def test_records_are_shuffled_even_where_memory_holds_few_of_them(folder, monkeypatch):
    monkeypatch.setattr(shards, "SHUFFLE_BYTES", 10 * 72)
    first, second, third = epochs_of(training_order(folder))
    assert first != second != third != first
    assert sorted(first) == sorted(second) == sorted(f"id {number}" for number in range(45))


def test_the_order_follows_from_the_seed(folder):
    assert training_order(folder, seed=5) == training_order(folder, seed=5)
    orders = [epochs_of(training_order(folder, seed=seed, epochs=1))[0] for seed in (0, 1, 2)]
    assert orders[0] != orders[1] != orders[2] != orders[0]


@pytest.mark.parametrize("first_epoch", [1, 2])
def test_a_resumed_run_sees_what_an_uninterrupted_one_would(folder, first_epoch):
    whole = training_order(folder, seed=7)
    assert training_order(folder, seed=7, first_epoch=first_epoch) == whole[6 * first_epoch :]


@pytest.mark.parametrize("global_seed", [0, 5])
@pytest.mark.usefixtures("unseeded_afterwards")
def test_the_order_owes_nothing_to_the_global_seed_and_leaves_it_alone(folder, global_seed):
    import keras
    import tensorflow as tf

    expected = training_order(folder, seed=3)
    keras.utils.set_random_seed(global_seed)
    drawn = tf.random.uniform(()).numpy()
    keras.utils.set_random_seed(global_seed)
    assert training_order(folder, seed=3) == expected
    assert tf.random.uniform(()).numpy() == drawn


def test_a_failed_write_leaves_no_index(tmp_path):
    shards.write_all(tmp_path, draw_records(9), "uint8", CLASSES)  # an earlier run's

    def records():
        yield from draw_records(3)
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="went away"):
        shards.write_all(tmp_path, records(), "uint8", CLASSES)
    assert not (tmp_path / shards.INDEX_FILE).exists()


def test_an_array_of_another_type_is_refused(tmp_path):
    with pytest.raises(TypeError, match="expected an array of uint8, received float64"):
        shards.write_all(tmp_path, [(np.zeros((2, 2, 3)), 0, "a")], "uint8", CLASSES)


def test_equal_content_gives_equal_files(tmp_path):
    for name in ("first", "second"):
        shards.write_all(tmp_path / name, draw_records(20), "uint8", CLASSES)
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("first", "second")
    )
    assert first == second


def test_any_other_content_gives_another_fingerprint(tmp_path):
    records = draw_records(3)
    array, label, example_id = records[1]
    variants = {
        "same": records,
        "pixel": [records[0], (array ^ 1, label, example_id), records[2]],
        "label": [records[0], (array, 1 - label, example_id), records[2]],
        "id": [records[0], (array, label, "other"), records[2]],
        "order": [records[1], records[0], records[2]],
        "fewer": records[:2],
    }
    for name, variant in variants.items():
        shards.write_all(tmp_path / name, variant, "uint8", CLASSES)
    fingerprints = {name: shards.read_index(tmp_path / name).sha256 for name in variants}
    assert len(set(fingerprints.values())) == len(variants)
