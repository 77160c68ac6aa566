"""What the names of files and folders say: which are images, and of which class."""

import unicodedata

SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".gif"),
    *(".bmp", ".webp", ".tif", ".tiff"),
)
# Images that nothing here decodes; they are named, not passed over.
UNREADABLE_SUFFIXES = (
    *(".heic", ".heif", ".avif", ".jxl", ".jp2", ".psd"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw"),
)


def is_hidden(name: str) -> bool:
    """Whether it is what systems leave behind: a part of its name begins with a dot, as a rule."""
    return name.startswith((".", "__MACOSX")) or "/." in name


def is_image(name: str) -> bool:
    """Whether a file is one of the images; names of folders in it end with a slash."""
    return name.lower().endswith((*SUFFIXES, *UNREADABLE_SUFFIXES)) and not is_hidden(name)


def class_name_of(text: str) -> str:
    """A class's name, on one line and in one of Unicode's forms.

    TFDS keeps the names of classes as the lines of a file, and systems write é in two ways.
    """
    return " ".join(unicodedata.normalize("NFC", text).split())
