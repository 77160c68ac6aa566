"""A local web page to drop an image on: classes, probabilities and where the network looked.

`make demo` installs what it needs, into .venv-demo, and opens it. Only this machine reaches the
page unless --host says otherwise; what is uploaded is removed when the page's server ends.
"""

import argparse
import contextlib
import errno
import functools
import os
import re
import socket
import string
import sys
import tempfile
from pathlib import Path

import numpy as np

from stages.common import images, paths
from stages.common.run import UserError, run
from tools import predict

SHOWN_CLASSES = 5
LAST_PORT = 2**16 - 1
SYSTEM_FONTS = ["system-ui", "sans-serif"]  # the library's own would be fetched from the network


def look_at(classifier: predict.Classifier, encoded: bytes) -> tuple[dict[str, float], np.ndarray]:
    """Class to probability, and the picture with where the network looked for the likeliest.

    Raises:
        images.BadImage: the bytes are no image that can be used.
    """
    picture = classifier.picture(encoded)[np.newaxis]
    (probabilities,) = classifier.probabilities(picture)
    (overlay,) = classifier.overlays(picture, probabilities[np.newaxis].argmax(axis=1))
    return dict(zip(classifier.class_names, probabilities.tolist(), strict=True)), overlay


def literal(text: str) -> str:
    """Markdown that shows a text as it is, whatever signs it has."""
    return re.sub(f"([{re.escape(string.punctuation)}])", r"\\\1", text)


def page(classifier: predict.Classifier, name: str):
    """The page as Gradio's Blocks."""
    import gradio

    def show(uploaded: str | None):
        if uploaded is None:
            return None, None
        try:
            return look_at(classifier, Path(uploaded).read_bytes())
        except images.BadImage as bad:
            raise gradio.Error(f"This file can't be classified: {bad}", duration=None) from None

    with gradio.Blocks(title=f"Warmstart: {name}", analytics_enabled=False) as blocks:
        gradio.Markdown(
            f"# What is in the picture?\n`{name}` tells {len(classifier.class_names)} classes "
            f"apart: {', '.join(map(literal, classifier.class_names[:12]))}"
            f"{' …' if len(classifier.class_names) > 12 else ''}. It names one of them for every "
            "picture, whatever the picture shows."
        )
        with gradio.Row():
            # As a file, and in no mode: the library hands on the bytes that came.
            picture = gradio.Image(
                label=f"Drop an image here ({', '.join(images.FORMATS)})",
                type="filepath",
                image_mode=None,
                sources=["upload", "clipboard"],
                buttons=[],
            )
            with gradio.Column():
                label = gradio.Label(label="Classes", num_top_classes=SHOWN_CLASSES)
                overlay = gradio.Image(
                    label="Where the network looked for the first class (Grad-CAM)",
                    interactive=False,
                    buttons=["fullscreen"],
                )
        picture.change(show, picture, [label, overlay], api_name=False)
    return blocks


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="tools.demo", description=__doc__.split(":")[0])
    parser.add_argument("--model", type=Path, default=paths.FINE_TUNED, help="a .keras file")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: all who reach this machine")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    parser.add_argument("--max-megabytes", type=int, default=20, help="of an upload")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    options = parser.parse_args(arguments)
    if options.port is not None and not 1 <= options.port <= LAST_PORT:
        parser.error(
            f"--port: expected a whole number from 1 to {LAST_PORT}, received {options.port}"
        )
    return options


def check_address(host: str, port: int | None) -> None:
    """UserError where no page can be served there; the library itself would try for minutes."""
    try:
        socket.create_server((host, port or 0)).close()
    except OSError as error:
        if port and error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise UserError(
                f"--port: expected a free port, received {port}: {error}; leave it out to take the "
                "first free one from 7860"
            ) from None
        raise UserError(
            f"--host: expected an address of this machine, received {host}: {error}; leave it out "
            "for this machine alone, or give 0.0.0.0 for all who reach it"
        ) from None


def main() -> None:
    """Serves the page until Ctrl-C."""
    options = parse(sys.argv[1:])
    check_address(options.host, options.port)
    with tempfile.TemporaryDirectory(prefix="warmstart-demo-") as uploads:
        # Read when the library is imported.
        os.environ |= {"GRADIO_TEMP_DIR": uploads, "GRADIO_ANALYTICS_ENABLED": "False"}
        classifier = predict.Classifier(options.model)
        blocks = page(classifier, options.model.stem)
        import gradio

        launch = functools.partial(
            blocks.launch,
            server_name=options.host,
            server_port=options.port,
            max_file_size=options.max_megabytes * 10**6,
            theme=gradio.themes.Default(font=SYSTEM_FONTS, font_mono=["monospace"]),
            share=False,
            ssr_mode=False,
            enable_monitoring=False,
            footer_links=[],
            inbrowser=not options.no_browser,
            prevent_thread_lock=True,
            quiet=True,
        )
        try:
            _, address, _ = launch()
        except OSError as error:
            raise UserError(f"the page can't be served at {options.host}: {error}") from None
        # The library ends quietly on Ctrl-C only once it waits, not a moment before.
        with contextlib.closing(blocks), contextlib.suppress(KeyboardInterrupt):
            print(f"{options.model} at {address} (Ctrl-C ends it)", flush=True)
            blocks.block_thread()


if __name__ == "__main__":
    run(main)
