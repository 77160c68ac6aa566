"""Every source ends in one TFDS directory; what can't be fetched is one sentence, at once."""

import io
import itertools
import shutil
import tarfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from stages import fetch
from stages.common import images, params, paths
from stages.common.datasets import elpv, image_folder
from stages.common.datasets.raw import RawDataset
from stages.common.run import UserError
from tests.conftest import ROOT

# Nothing listens on the discard port; whoever goes through this proxy reaches no host.
UNREACHABLE = {
    name: "http://127.0.0.1:9"
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
} | {"no_proxy": "", "NO_PROXY": ""}


def dataset_params(name: str, path: Path = Path("data/own"), **elpv_values) -> fetch.FetchParams:
    labels = {"labels": "binary", "threshold": 0.5, **elpv_values}
    return fetch.FetchParams(
        name=name, path=str(path), splits=None, elpv=fetch.ElpvParams(**labels)
    )


def prepare(folder: Path, dataset: fetch.FetchParams, splits=None) -> RawDataset:
    """Fetches into a new folder as the stage does."""
    builder = fetch.make_builder(dataset, folder / "building")
    fetch.prepare(builder, splits, folder / "downloads", folder / "raw")
    return RawDataset(folder / "raw")


@pytest.fixture
def unreachable(monkeypatch):
    for name, value in UNREACHABLE.items():
        monkeypatch.setenv(name, value)


class TestElpv:
    @pytest.fixture(scope="class")
    def cells(self, tmp_path_factory):
        """Every photograph of the package, with the four probabilities as classes."""
        dataset = dataset_params("elpv", labels="probability")
        raw = prepare(tmp_path_factory.mktemp("elpv"), dataset)
        return raw, list(raw)

    @pytest.mark.parametrize(
        ("probability", "threshold", "label"),
        [
            (0.0, 0.5, "functional"),
            (1 / 3, 0.5, "functional"),
            (2 / 3, 0.5, "defective"),
            (1.0, 0.5, "defective"),
            (0.3333333333333333, 0.3, "defective"),
            (0.5, 0.5, "defective"),
            (0.6666666666666666, 1.0, "functional"),
        ],
    )
    def test_at_the_threshold_a_cell_is_defective(self, probability, threshold, label):
        assert elpv.label_of(probability, "binary", threshold) == label

    @pytest.mark.parametrize(
        ("probability", "label"),
        [(0.0, "0"), (0.3333, "1/3"), (1 / 3, "1/3"), (0.6667, "2/3"), (2 / 3, "2/3"), (1.0, "1")],
    )
    def test_a_rounded_probability_is_its_class(self, probability, label):
        assert elpv.label_of(probability, "probability", 0.5) == label

    def test_labels_are_parted_by_any_number_of_spaces(self):
        text = "images/a.png  0.0   mono\nimages/b.png  0.6666666666666666   poly\n\n"
        assert elpv.read_labels(text) == [
            ("images/a.png", 0.0, "mono"),
            ("images/b.png", 0.6666666666666666, "poly"),
        ]

    def test_the_published_counts(self, cells):
        raw, examples = cells
        assert raw.count == len(examples) == 2624
        assert raw.class_names == ["0", "1/3", "2/3", "1"]
        assert raw.split_names == ["train"]
        counts = Counter(
            (example.columns["wafer_type"], raw.class_names[example.label]) for example in examples
        )
        assert counts == {
            ("mono", "0"): 588,
            ("mono", "1/3"): 117,
            ("mono", "2/3"): 56,
            ("mono", "1"): 313,
            ("poly", "0"): 920,
            ("poly", "1/3"): 178,
            ("poly", "2/3"): 50,
            ("poly", "1"): 402,
        }

    def test_the_photographs_are_the_packages_files(self, cells):
        _, examples = cells
        folder = elpv.package_folder()
        assert len({example.columns["name"] for example in examples}) == 2624
        for example in examples[::500]:
            assert example.encoded == (folder / example.columns["name"]).read_bytes()
            assert images.to_array(example.encoded, 224).shape == (224, 224, 3)

    def test_label_and_columns_belong_to_the_photograph(self, cells):
        raw, examples = cells
        text = (elpv.package_folder() / "labels.csv").read_text(encoding="utf-8")
        rows = {path: (probability, wafer) for path, probability, wafer in elpv.read_labels(text)}
        for example in examples:
            probability, wafer_type = rows[example.columns["name"]]
            assert example.columns["wafer_type"] == wafer_type
            # TFRecord files hold single precision.
            assert example.columns["probability"] == pytest.approx(probability, abs=1e-7)
            assert raw.class_names[example.label] == elpv.label_of(probability, "probability", 0.5)

    def test_ids_are_unique(self, cells):
        _, examples = cells
        assert len({example.id for example in examples}) == 2624

    def test_a_missing_package_is_named(self, monkeypatch):
        monkeypatch.setattr(elpv, "PACKAGE", "no_such_package")
        with pytest.raises(UserError, match=r"'elpv-dataset' .*`make setup`.* image_folder"):
            elpv.package_folder()


class TestImageFolder:
    @pytest.mark.parametrize(
        "suffix", [".png", ".jpg", ".JPEG", ".gif", ".bmp", ".webp", ".tif", ".TIFF"]
    )
    def test_files_of_every_format_keep_their_bytes(self, tmp_path, draw_images, suffix):
        own = tmp_path / "own"
        for name in ("cat", "dog"):
            draw_images(own / name, 2, suffix)
        examples = list(prepare(tmp_path, dataset_params("image_folder", own)))
        assert len(examples) == 4
        for example in examples:
            assert example.encoded == (own / example.columns["name"]).read_bytes()

    def test_a_class_is_the_path_of_its_folder(self, tmp_path, draw_images):
        own = tmp_path / "own"
        # Numbers and spaces are what people call their classes.
        for number, name in enumerate(["2", "10", "bird/great tit", "bird/wren", "Ähre"], start=1):
            draw_images(own / name, number)
        raw = prepare(tmp_path, dataset_params("image_folder", own))
        assert raw.class_names == ["10", "2", "bird/great tit", "bird/wren", "Ähre"]
        assert raw.column_names == ["name"]
        examples = list(raw)
        assert len(examples) == raw.count == 15
        for example in examples:
            folder, _, _ = example.columns["name"].rpartition("/")
            assert raw.class_names[example.label] == folder

    def test_pictures_of_all_kinds_of_pixels_are_taken(self, tmp_path):
        for name, mode in itertools.product(("cat", "dog"), ("L", "P", "RGBA", "I;16")):
            path = tmp_path / "own" / name / f"{mode.replace(';', '')}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new(mode, (9, 7)).save(path)
        examples = list(prepare(tmp_path, dataset_params("image_folder", tmp_path / "own")))
        assert len(examples) == 8
        assert {images.to_array(example.encoded, 32).shape for example in examples} == {(7, 9, 3)}

    def test_hidden_and_other_files_are_ignored(self, tmp_path, draw_images):
        own = tmp_path / "own"
        for name in ("cat", "dog"):
            draw_images(own / name, 2)
            (own / name / "._000.png").write_bytes(b"what macOS leaves on other disks")
            (own / name / "notes.txt").write_text("about these images")
        draw_images(own / ".trash", 3)
        raw = prepare(tmp_path, dataset_params("image_folder", own))
        assert raw.class_names == ["cat", "dog"]
        assert raw.count == 4

    def test_two_fetches_give_the_same_ids(self, tmp_path, draw_images):
        own = tmp_path / "own"
        for name in ("cat", "dog"):
            draw_images(own / name, 5)
        first, second = (
            {
                example.columns["name"]: example.id
                for example in prepare(tmp_path / run, dataset_params("image_folder", own))
            }
            for run in ("first", "second")
        )
        assert first == second
        assert len(set(first.values())) == 10

    def test_a_missing_folder(self, tmp_path):
        with pytest.raises(UserError, match=r"dataset\.path: the folder .*own does not exist"):
            image_folder.find(tmp_path / "own")

    def test_images_outside_any_class(self, tmp_path, draw_images):
        draw_images(tmp_path / "cat", 2)
        draw_images(tmp_path / "dog", 2)
        draw_images(tmp_path, 3)
        with pytest.raises(UserError, match=r"000\.png and 2 more images lie in .* itself; move"):
            image_folder.find(tmp_path)

    def test_a_single_class(self, tmp_path, draw_images):
        draw_images(tmp_path / "cat", 2)
        (tmp_path / "dog").mkdir()
        with pytest.raises(UserError, match=r"at least two folders .* received \['cat'\]"):
            image_folder.find(tmp_path)

    def test_an_empty_folder(self, tmp_path):
        with pytest.raises(UserError, match=r"at least two folders .* received none"):
            image_folder.find(tmp_path)

    def test_all_unreadable_images_are_listed(self, tmp_path, draw_images):
        good = [*draw_images(tmp_path / "cat", 3), *draw_images(tmp_path / "dog", 3)]
        cut_off, text, empty = bad = [good[1], good[3], good[5]]
        cut_off.write_bytes(cut_off.read_bytes()[:60])
        text.write_text("<html>404 not found</html>")
        empty.write_bytes(b"")
        with pytest.raises(UserError) as caught:
            prepare(tmp_path, dataset_params("image_folder", tmp_path))
        first, *others = str(caught.value).splitlines()
        assert first == "3 of 6 images can't be read; mend or remove them:"
        assert [line.split(": ")[0].strip() for line in others] == [str(path) for path in bad]

    def test_a_long_list_of_unreadable_images_is_counted(self, tmp_path, draw_images):
        for name in ("cat", "dog"):
            for path in draw_images(tmp_path / name, 15):
                path.write_bytes(b"")
        with pytest.raises(UserError) as caught:
            image_folder.check(image_folder.find(tmp_path))
        lines = str(caught.value).splitlines()
        assert lines[0].startswith("30 of 30 images")
        assert len(lines) == 1 + 20 + 1
        assert lines[-1].strip() == "… and 10 more"


CIFAR10_CLASSES = [
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
]


class TestCifar10:
    """TFDS's own builder over an archive of a few pictures in the published format."""

    @pytest.fixture(scope="class")
    def pictures(self) -> dict[str, list[tuple[int, np.ndarray]]]:
        """Label and pixels (32, 32, 3) of each record, by file of the archive."""
        random = np.random.default_rng(0)
        names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
        return {
            name: [
                (int(label), random.integers(0, 256, (32, 32, 3), dtype=np.uint8))
                for label in random.integers(0, 10, 4)
            ]
            for name in names
        }

    @pytest.fixture
    def archive(self, tmp_path, pictures) -> Path:
        """cifar-10-binary.tar.gz with four pictures a file."""
        path = tmp_path / "cifar-10-binary.tar.gz"
        contents = {"batches.meta.txt": "\n".join([*CIFAR10_CLASSES, "", ""]).encode()}
        for name, records in pictures.items():
            # A byte for the label, then 1,024 for each of red, green and blue.
            contents[name] = b"".join(
                bytes([label]) + pixels.transpose(2, 0, 1).tobytes() for label, pixels in records
            )
        with tarfile.open(path, "w:gz") as file:
            for name, content in contents.items():
                member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
        return path

    @pytest.fixture
    def downloads(self, tmp_path, archive, monkeypatch, unreachable) -> Path:
        """The archive where a person puts it by hand; its checksum is the one TFDS expects."""
        from tensorflow_datasets.core.download import checksums

        folder = tmp_path / "downloads" / "manual"
        folder.mkdir(parents=True)
        shutil.move(archive, folder)
        registered = checksums.compute_url_info(folder / archive.name)
        builder = fetch.make_builder(dataset_params("cifar10"), tmp_path / "building")
        (url,) = builder.url_infos
        # The library keeps both tables for the whole process.
        for table in (builder.url_infos, checksums.get_all_url_infos()):
            monkeypatch.setitem(table, url, registered)
        return folder.parent

    @pytest.mark.usefixtures("downloads")
    def test_both_splits_and_every_picture(self, tmp_path, pictures):
        raw = prepare(tmp_path, dataset_params("cifar10"))
        assert raw.class_names == CIFAR10_CLASSES
        assert raw.split_names == ["test", "train"]
        assert raw.column_names == []
        examples = list(raw)
        assert Counter(example.official_split for example in examples) == {"train": 20, "test": 4}
        assert len({example.id for example in examples}) == 24
        expected = {
            (name == "test_batch.bin", label, pixels.tobytes())
            for name, records in pictures.items()
            for label, pixels in records
        }
        assert expected == {
            (
                example.official_split == "test",
                example.label,
                images.to_array(example.encoded, 224).tobytes(),
            )
            for example in examples
        }

    @pytest.mark.usefixtures("downloads")
    def test_only_the_splits_that_were_asked_for(self, tmp_path):
        raw = prepare(tmp_path, dataset_params("cifar10"), splits=["train"])
        assert raw.class_names == CIFAR10_CLASSES
        assert raw.split_names == ["train"]
        assert raw.count == len(list(raw)) == 20
        assert not list((tmp_path / "raw").glob("*test*"))

    @pytest.mark.usefixtures("downloads")
    def test_a_split_that_the_set_does_not_have(self, tmp_path):
        with pytest.raises(UserError) as caught:
            prepare(tmp_path, dataset_params("cifar10"), splits=["trian"])
        assert str(caught.value) == (
            "params.yaml, dataset.splits: expected some of ['test', 'train'], received 'trian'; "
            "did you mean 'train'?"
        )

    def test_a_second_fetch_downloads_nothing(self, tmp_path, downloads):
        from tensorflow_datasets.core.download import checksums, resource

        # Where TFDS leaves what it downloaded, with its note beside it.
        (archive,) = (downloads / "manual").iterdir()
        builder = fetch.make_builder(dataset_params("cifar10"), tmp_path / "building")
        ((url, info),) = builder.url_infos.items()
        kept = downloads / "cifar10" / resource.get_dl_fname(url, info.checksum)
        kept.parent.mkdir()
        shutil.move(archive, kept)
        resource.write_info_file(
            url, kept, "cifar10", archive.name, checksums.compute_url_info(kept)
        )
        assert prepare(tmp_path, dataset_params("cifar10")).count == 24

    def test_a_file_that_tfds_would_download_anew_counts_as_missing(self, tmp_path, downloads):
        from tensorflow_datasets.core.download import resource

        builder = fetch.make_builder(dataset_params("cifar10"), tmp_path / "building")
        ((url, info),) = builder.url_infos.items()
        assert fetch.missing_downloads(builder, downloads) == []
        (archive,) = (downloads / "manual").iterdir()
        # TFDS takes no file of its own without the note beside it, and would retry for minutes.
        kept = downloads / "cifar10" / resource.get_dl_fname(url, info.checksum)
        kept.parent.mkdir()
        shutil.move(archive, kept)
        assert fetch.missing_downloads(builder, downloads) == [url]


def test_splits_are_all_or_those_asked_for():
    available = ["train", "test", "validation"]
    assert fetch.check_splits(None, available) == ["test", "train", "validation"]
    assert fetch.check_splits(["validation", "train"], available) == ["train", "validation"]
    with pytest.raises(UserError, match=r"received 'valid'; did you mean 'validation'\?"):
        fetch.check_splits(["train", "valid"], available)


def test_an_unknown_data_set_is_answered_with_the_nearest(tmp_path):
    with pytest.raises(UserError) as caught:
        fetch.make_builder(dataset_params("cifar11"), tmp_path)
    assert str(caught.value).startswith(
        "params.yaml, dataset.name: expected elpv, image_folder or one of the "
    )
    assert "received 'cifar11'; did you mean " in str(caught.value)
    assert "'cifar10'" in str(caught.value)


@pytest.mark.parametrize("name", ["cifar10:9.9.9", "cifar10/large", "mnist_corrupted/sno"])
def test_an_unknown_version_or_variant_is_one_sentence(tmp_path, name):
    with pytest.raises(UserError, match=r"^params\.yaml, dataset\.name: ") as caught:
        fetch.make_builder(dataset_params(name), tmp_path)
    assert name.replace(":", "/").split("/")[1] in str(caught.value)


def test_a_set_that_is_no_image_classification(tmp_path):
    with pytest.raises(UserError, match=r"'iris' is no image classification set; .* \['image'\]"):
        fetch.make_builder(dataset_params("iris"), tmp_path)


@pytest.mark.usefixtures("unreachable")
def test_a_host_that_can_not_be_reached_is_named_at_once():
    started = time.perf_counter()
    with pytest.raises(UserError) as caught:
        fetch.check_reachable(["http://host.invalid/images.tar.gz"])
    assert time.perf_counter() - started < 2 * fetch.REACH_SECONDS
    assert str(caught.value).startswith(
        "host.invalid can't be reached, so http://host.invalid/images.tar.gz can't be downloaded"
    )
    assert "set dataset.name to elpv" in str(caught.value)
    # Where TFDS looks for files that a person brought.
    assert f"put the file into {paths.DOWNLOADS / 'manual'}" in str(caught.value)


def test_without_a_network_the_stage_ends_in_one_sentence(tmp_path, run_stage):
    content = params.read(ROOT / "params.yaml")
    content["dataset"] |= {"name": "cifar10", "splits": None}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    started = time.perf_counter()
    done = run_stage("fetch", **UNREACHABLE)
    assert time.perf_counter() - started < 30
    assert done.returncode == 1
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("error: ")
    assert "can't be reached" in sentence
    assert "cifar-10-binary.tar.gz" in sentence
    assert str(paths.DOWNLOADS / "manual") in sentence
    assert "set dataset.name to elpv" in sentence
