"""Failures of machine and user end in one sentence; failures of ours stay tracebacks."""

import errno
import importlib
import os
import subprocess
import sys

import pytest

from stages.common.run import UserError, cores, explain, run, start_tensorflow
from tests import ROOT

# macOS has no device that is always full, and filling a real disk is no test.
needs_full_device = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux has the always full device /dev/full"
)


def sentence_of(action) -> str | None:
    """What `explain` says of the error that the action raises."""
    try:
        action()
    except Exception as error:
        return explain(error)
    pytest.fail("the action raised nothing")


def write_to_full_disk() -> None:
    with open("/dev/full", "w") as file:
        file.write("x" * 100_000)


def write_records_to_full_disk() -> None:
    import tensorflow as tf

    with tf.io.TFRecordWriter("/dev/full") as writer:
        for _ in range(100):
            writer.write(b"x" * 100_000)


@needs_full_device
@pytest.mark.parametrize("write", [write_to_full_disk, write_records_to_full_disk])
def test_a_full_disk(write):
    sentence = sentence_of(write)
    assert sentence.startswith("the disk is full; free some space")
    assert "dvc gc --workspace" in sentence


def test_a_folder_that_may_not_be_written_to(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir(mode=0o555)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        # No test may go on in the child, whatever happens.
        try:
            os.close(reading)
            if os.getuid() == 0:
                os.setuid(65534)  # a folder's mode does not keep root from writing
            sentence = sentence_of(lambda: (folder / "backbone.keras").write_bytes(b"x"))
            os.write(writing, str(sentence).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        sentence = pipe.read()
    os.waitpid(child, 0)
    assert sentence == (
        "permission denied; give the user who runs the pipeline access to it "
        f"({folder / 'backbone.keras'}: Permission denied)"
    )


def test_a_missing_permission_that_tensorflow_reports():
    import tensorflow as tf

    # The text is TensorFlow's for a folder that may not be written to.
    error = tf.errors.PermissionDeniedError(None, None, "data/images/train; Permission denied")
    assert explain(error).startswith("permission denied; give the user")


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EROFS, "the file system is read-only; run in a folder that can be written to"),
        (errno.EDQUOT, "the disk quota is used up; free some space"),
    ],
)
def test_other_states_of_a_disk(number, says):
    # As the system raises them; a test can't mount or set a quota.
    sentence = explain(OSError(number, os.strerror(number), "data/raw"))
    assert sentence.startswith(says)
    assert sentence.endswith(f"(data/raw: {os.strerror(number)})")


def test_too_little_memory_is_said_with_the_cure():
    import tensorflow as tf

    error = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor\n at …")
    for one, said in ((error, "OOM when allocating tensor"), (MemoryError(), "out of memory")):
        sentence = explain(one)
        assert "lower this stage's batch_size" in sentence
        assert sentence.endswith(f"({said})")


def test_a_missing_package_is_named_with_the_command_that_installs_it():
    sentence = sentence_of(lambda: importlib.import_module("no_such_package.part"))
    assert sentence.startswith("the package 'no_such_package' is not installed in ")
    assert "make setup" in sentence


def test_a_missing_module_of_ours_is_our_mistake():
    assert sentence_of(lambda: importlib.import_module("stages.no_such_stage")) is None


def test_the_text_of_a_user_error_is_the_sentence():
    assert explain(UserError("params.yaml, seed: missing; add it")) == (
        "params.yaml, seed: missing; add it"
    )


@pytest.mark.parametrize(
    "error", [ValueError("No space left on device"), KeyError("a"), FileNotFoundError(2, "x")]
)
def test_an_unexpected_error_has_no_sentence(error):
    assert explain(error) is None


def test_run_lets_a_good_end_pass(capsys):
    run(lambda: print("done"))
    assert capsys.readouterr().out == "done\n"


def test_run_ends_a_mistake_of_the_users_with_status_1(capsys):
    def main():
        raise UserError("the folder data/own does not exist")

    with pytest.raises(SystemExit) as caught:
        run(main)
    assert caught.value.code == 1
    assert capsys.readouterr().err == "error: the folder data/own does not exist\n"


def test_run_ends_an_interruption_as_shells_do(capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        run(main)
    assert caught.value.code == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on with what is kept\n"


def test_a_reader_who_has_seen_enough_gets_no_traceback():
    script = "from stages.common.run import run; run(lambda: [print('row') for _ in range(10**5)])"
    writer = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    writer.stdout.readline()
    writer.stdout.close()
    assert writer.stderr.read() == b""
    assert writer.wait() == 141  # as shells say of a program that ended so


def test_names_that_are_no_utf8_leave_as_they_came():
    """In a locale such as en_US.UTF-8, where Python is strict."""
    script = "from stages.common.run import run; run(lambda: print('caf\\udce9.png'))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
        capture_output=True,
    )
    assert (done.returncode, done.stdout) == (0, b"caf\xe9.png\n")


def test_a_program_without_arguments_says_what_it_does_and_refuses_others(tmp_path, run_stage):
    help_text = run_stage("fetch", "--help")
    assert help_text.returncode == 0
    assert help_text.stdout.startswith("Brings the data set")
    refused = run_stage("fetch", "--name", "mnist")
    assert (refused.returncode, refused.stderr) == (
        1,
        "error: expected no arguments, received --name mnist; what can be set is in params.yaml\n",
    )
    assert list(tmp_path.iterdir()) == []


def test_run_leaves_an_unexpected_error_alone(capsys):
    def main():
        raise ValueError("shapes differ")

    with pytest.raises(ValueError, match="shapes differ"):
        run(main)
    assert capsys.readouterr().err == ""


def run_script(error: str) -> subprocess.CompletedProcess:
    """A script of which `main` raises the error."""
    script = (
        f"from stages.common.run import UserError, run\ndef main():\n    raise {error}\nrun(main)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def test_a_script_ends_a_mistake_of_the_users_without_a_traceback():
    done = run_script("UserError('no such folder')")
    assert (done.returncode, done.stderr) == (1, "error: no such folder\n")


def test_a_script_shows_where_an_unexpected_error_arose():
    done = run_script("ValueError('shapes differ')")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("ValueError: shapes differ\n")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no system call for it")
def test_no_more_cores_are_used_than_a_scheduler_allows():
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_tensorflow_starts_no_more_threads_than_may_be_used_at_once(monkeypatch):
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "")
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS")
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")  # joblib's, as a container's limit would be
    start_tensorflow()
    assert os.environ["TF_NUM_INTRAOP_THREADS"] == "1"


def test_who_sets_the_number_of_threads_is_heard(monkeypatch):
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "3")
    start_tensorflow()
    assert os.environ["TF_NUM_INTRAOP_THREADS"] == "3"
