"""How a script starts, and how it ends when something is wrong: one sentence and exit status 1."""

import contextlib
import errno
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path


class UserError(Exception):
    """Something the user can mend. The text says what was received, what is allowed, what to do."""


_SYSTEM_ERRORS = {
    errno.ENOSPC: "the disk is full; free some space (`dvc gc --workspace` drops old results)",
    errno.EDQUOT: "the disk quota is used up; free some space (`dvc gc --workspace` drops results)",
    errno.EROFS: "the file system is read-only; run in a folder that can be written to",
    errno.EACCES: "permission denied; give the user who runs the pipeline access to it",
    errno.EMFILE: "too many files are open at once; raise the limit (`ulimit -n 65536`)",
    errno.ENFILE: "too many files are open on this machine; end other programs",
    errno.EPERM: "operation not permitted; give the user who runs the pipeline access to it",
}


def explain(error: BaseException) -> str | None:
    """One sentence for an error that is the user's or the machine's; None for one that is ours.

    TensorFlow and HDF5 report a full disk or a missing permission in exceptions of their own, so
    the system's text is searched for as well as the error number.
    """
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").split(".")[0]
        if package not in ("", "stages", "tools"):
            return (
                f"the package '{package}' is not installed in {sys.prefix}; "
                "`make setup` installs what requirements.txt lists"
            )
    from_tensorflow = type(error).__module__.startswith("tensorflow.")
    if isinstance(error, OSError) or from_tensorflow:
        for number, advice in _SYSTEM_ERRORS.items():
            by_number = getattr(error, "errno", None) == number
            if by_number or os.strerror(number).lower() in str(error).lower():
                where = getattr(error, "filename", None)
                return f"{advice} ({f'{where}: ' if where else ''}{os.strerror(number)})"
    if isinstance(error, MemoryError) or (
        from_tensorflow and type(error).__name__ == "ResourceExhaustedError"
    ):
        said = (str(error).strip().splitlines() or ["out of memory"])[0]
        return (
            "there is not enough memory, of the GPU where there is one: lower this stage's "
            f"batch_size in params.yaml, where it has one, or backbone.image_size ({said})"
        )
    return None


def run(main: Callable[[], None], *, takes_arguments: bool = True) -> None:
    """Calls `main`; turns an error that has an explanation into one line and exit status 1.

    `kill` and a closed terminal end it as Ctrl-C does, with all that it started.

    Args:
        main: what the program does.
        takes_arguments: whether `main` reads the command line. A program that does not shows its
            docstring where it is asked for help, and refuses what else it is given.
    """
    if not sys.stderr.isatty():
        # In a log, bars (the libraries' too) add a line every ten seconds at most.
        os.environ.setdefault("TQDM_MININTERVAL", "10")
    if hasattr(sys.stdout, "reconfigure"):  # not where a test stands in for it
        # Names of files need not be UTF-8; they leave as they came.
        sys.stdout.reconfigure(errors="surrogateescape")
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup has the latter ignored
            signal.signal(number, signal.default_int_handler)
    try:
        if not takes_arguments:
            _refuse_arguments(sys.argv[1:])
        main()
    except KeyboardInterrupt:
        print("interrupted; the same command goes on with what is kept", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # who reads, as `head` does, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        raise SystemExit(1) from error


def _refuse_arguments(given: list[str]) -> None:
    if given in (["--help"], ["-h"]):
        print(sys.modules["__main__"].__doc__.strip())
        raise SystemExit(0)
    if given:
        raise UserError(
            f"expected no arguments, received {' '.join(given)}; what can be set is in params.yaml"
        )


def cores() -> int:
    """That this process may use: `taskset`, a scheduler or a container may allow it fewer than all.

    A container's limit of processor time (`docker run --cpus 2`) counts as that many cores.
    """
    import joblib

    return joblib.cpu_count()


def start_tensorflow(seed: int | None = None, deterministic: bool = True) -> None:
    """Imports TensorFlow without its start-up messages and seeds Python, NumPy and Keras.

    Call it after the params were checked: the import takes seconds. On a CPU the same seed gives
    the same bytes on one machine; a GPU needs deterministic kernels for that, which are switched on
    where there is one unless `deterministic` says otherwise.
    """
    # TensorFlow reads these once, at import. 2 hides information and warnings; its error lines on
    # a machine without a GPU say only that there is none.
    no_gpu = not Path("/dev/nvidiactl").exists()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3" if no_gpu else "2")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    # Memory of tensors is kept for the next ones: asking the system for it anew in every operation
    # takes a seventh to a fifth of a training step on a CPU (benchmarks/profile.md).
    os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
    # It knows what `taskset` allows, and nothing of a container's limit: as many threads as the
    # machine has cores would use that up in bursts, and wait for the rest of each period.
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(cores()))
    with _without_information_lines():
        import keras
        import tensorflow as tf
    tf.get_logger().setLevel("ERROR")  # deprecations inside libraries are not the user's

    for gpu in tf.config.list_physical_devices("GPU"):
        # Without growth the first process takes all memory and a second stage cannot start.
        tf.config.experimental.set_memory_growth(gpu, True)
        if deterministic:
            tf.config.experimental.enable_op_determinism()
    if seed is not None:
        keras.utils.set_random_seed(seed)


def data_options():
    """tf.data.Options for whatever a stage reads to its end: without TensorFlow's autotuning.

    Its thread looks at the pipeline after 10 ms, 20 ms, 40 ms and so on, and TensorFlow 2.21 may
    overlook that the reader has finished: then the end of the data is only reached when the thread
    wakes up, after up to as much time again as the whole reading took (benchmarks/profile.md).
    What is left to AUTOTUNE is then given a thread for each core, and what is read ahead still
    follows what is asked for.
    """
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return options


@contextlib.contextmanager
def _without_information_lines():
    """Drops what native code writes to standard error at level I; all else is passed on.

    TensorFlow 2.21 logs before its log level is in force, so the
    lines can only be caught at the file descriptor.
    """
    sys.stderr.flush()
    real = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(real, 2)
            os.close(real)
            caught.seek(0)
            for line in caught.read().decode(errors="replace").splitlines():
                if not re.match(r"I\d{4} |WARNING: All log messages before absl", line):
                    print(line, file=sys.stderr)


def progress(iterable, *, total: int | None, unit: str, description: str):
    """The iterable, or None for updates by hand, with a progress bar and rate."""
    from tqdm import tqdm

    return tqdm(
        iterable,
        total=total,
        unit=unit,
        desc=description,
        dynamic_ncols=True,
    )
