"""Examples in folders of images, one folder a class, as torchvision's ImageFolder reads them; in bounded memory.

Each image is turned upright, converted to RGB, resized and cropped to a square, and scaled to values from 0 to 1.
Normalizing by a mean and a deviation is left to the module. No format that runs programs is read.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unfold_supernet._types import Float32Array
from unfold_supernet.family.row_store import hash_files, open_store
from unfold_supernet.family.user_arrays import TRAIN_MARKS, UserData
from unfoldkit.api import require_packages, user_error
from unfoldkit.safe_io.files import first_line, read_bytes

FORMATS = {
    ".bmp": "BMP", ".gif": "GIF", ".jfif": "JPEG", ".jpeg": "JPEG", ".jpg": "JPEG", ".png": "PNG", ".ppm": "PPM",
    ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP",
}  # fmt: skip
UNREAD = frozenset((".avif", ".dcm", ".dng", ".heic", ".heif", ".jp2", ".jxl", ".psd", ".svg", ".tga"))
"""Suffixes of images that are not read: leaving them out would train on a part of the images."""
PARTS = frozenset(("train", "training", "test", "testing", "val", "valid", "validation"))
"""Names of folders that split images, and are not classes."""
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
PNG_DEPTH_OFFSET = 24
"""Where a PNG states the bits of a channel (ISO/IEC 15948, section 11.2.1)."""
TIFF_DEPTH_TAG = 258
"""``BitsPerSample`` of TIFF 6.0, one number a channel."""
MAX_IMAGE_BYTES = 256 << 20
BLOCK_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image and what its folders state.

    Attributes:
        path: The file.
        label: Name of its class.
        is_train: Whether it lies in the folder for training; true where there are no such folders.
    """

    path: Path
    label: str
    is_train: bool = True


def load_images(path: Path, edge: int, scratch: Path | None, *, has_split: bool) -> tuple[UserData, str]:
    """Load all images of a folder.

    Args:
        path: The folder; its folders are the classes, or ``train`` and ``test`` that hold folders of classes.
        edge: Height and width, in pixels, to which an image is resized.
        scratch: Folder for the decoded images.
        has_split: Whether the folder holds ``train`` and ``test``.

    Returns:
        The examples, with inputs mapped from a file, and the SHA-256 of all images.

    Raises:
        UnfoldError: A folder is missing or empty, or an image cannot be read.
    """
    images = list_images(path, has_split=has_split)
    names = tuple(sorted({image.label for image in images}))
    if len(names) < 2:
        message = f"the folder holds {len(names)} class with images"
        raise user_error(message, file=str(path), key="data.path", hint="one folder a class, at least two")
    block_rows = max(1, BLOCK_BYTES // (12 * edge * edge))
    with open_store(scratch) as store:
        for start in range(0, len(images), block_rows):
            block = images[start : start + block_rows]
            store.append(np.stack([read_image(image.path, edge) for image in block]), str(block[0].path))
        inputs = store.map_rows()
    numbers = {name: index for index, name in enumerate(names)}
    return UserData(
        x=inputs,
        extra=np.zeros((len(images), 0), np.float32),
        y=np.array([numbers[image.label] for image in images], np.int64),
        names=names,
        is_train=np.array([image.is_train for image in images]) if has_split else None,
    ), hash_files(image.path for image in images)


def list_images(path: Path, *, has_split: bool) -> Sequence[ImageFile]:
    """List the images by class and name; files with other suffixes are ignored.

    Raises:
        UnfoldError: The path is no folder, or a folder is missing or empty.
    """
    if not path.is_dir():
        raise user_error("not a folder of images", file=str(path), key="data.path", hint="one folder a class")
    if not has_split:
        images = _list_classes(path, is_train=True)
        labels = {image.label for image in images}
        if labels and {label.lower() for label in labels} <= PARTS:
            message = f"the folders are {', '.join(sorted(labels))}, which are not classes"
            hint = "split: given takes train/CLASS/… and test/CLASS/…; move the images of validation into train"
            raise user_error(message, file=str(path), key="data.split", hint=hint)
        return images
    parts = {name: path / name for name in ("train", "test")}
    for name, folder in parts.items():
        if not folder.is_dir():
            hint = "write train/CLASS/… and test/CLASS/…, or split: random"
            raise user_error(f"there is no folder {name}", file=str(path), key="data.split", hint=hint)
    listed = {name: _list_classes(folder, is_train=TRAIN_MARKS[name]) for name, folder in parts.items()}
    unread = next((folder for folder in _list_folders(path) if folder.name.lower() in PARTS - {*parts}), None)
    if unread is not None:
        hint = "move its images into train, or the folder elsewhere"
        raise user_error("a folder beside train and test is not read", file=str(unread), key="data.path", hint=hint)
    unknown = {image.label for image in listed["test"]} - {image.label for image in listed["train"]}
    if unknown:
        message = f"class {min(unknown)} has images to test on, but none to train on"
        raise user_error(message, file=str(path), key="data.path", hint="add images, or remove the class")
    return [*listed["train"], *listed["test"]]


def _list_folders(path: Path) -> list[Path]:
    return sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))


def _list_classes(path: Path, *, is_train: bool) -> list[ImageFile]:
    stray = next(
        (file for file in sorted(path.iterdir()) if file.suffix.lower() in FORMATS and not file.is_dir()), None
    )
    if stray is not None and not stray.name.startswith("."):
        hint = "move it into the folder of its class, or elsewhere"
        raise user_error("the image lies in no folder of a class", file=str(stray), key="data.path", hint=hint)
    images = []
    for folder in _list_folders(path):
        if not folder.name.isprintable():
            message = f"the name of this class is not printable text: {folder.name!r}"
            raise user_error(message, file=str(path), key="data.path", hint="rename the folder")
        visible = [file for file in sorted(folder.rglob("*")) if not _is_hidden(file.relative_to(folder))]
        unread = next((file for file in visible if file.suffix.lower() in UNREAD and not file.is_dir()), None)
        if unread is not None:
            hint = "convert it to PNG or JPEG, or delete it"
            raise user_error("images of this format are not read", file=str(unread), key="data.path", hint=hint)
        # a broken link counts too: reading it reports it
        files = [file for file in visible if file.suffix.lower() in FORMATS and not file.is_dir()]
        if not files:
            hint = f"add images ({', '.join(FORMATS)}), or remove the folder"
            raise user_error("the folder of this class holds no image", file=str(folder), key="data.path", hint=hint)
        images += [ImageFile(file, folder.name, is_train) for file in files]
    return images


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def read_image(path: Path, edge: int) -> Float32Array:
    """Read an image as an array (3, edge, edge) of values from 0 to 1.

    Raises:
        UnfoldError: Pillow is not installed, or the file is damaged, no image, or one with more than 8 bits.
    """
    require_packages("a folder of images", "PIL", key="data.source")
    from PIL import Image, ImageOps, UnidentifiedImageError

    content = read_bytes(path, max_bytes=MAX_IMAGE_BYTES)
    try:
        with warnings.catch_warnings():
            # other warnings, as of transparent palettes, name no file
            warnings.simplefilter("ignore")
            # an image that expands beyond Pillow's bound is an error, not a warning
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            formats = tuple(dict.fromkeys(FORMATS.values()))
            with Image.open(io.BytesIO(content), formats=formats) as image:
                depth = _read_depth(image, content)
                image.load()
                mode, pages = image.mode, _count_pages(image)
                upright = ImageOps.exif_transpose(image)
                square = ImageOps.fit(upright.convert("RGB"), (edge, edge), Image.Resampling.BILINEAR)
    # decoders raise many kinds of errors for damaged files
    except Exception as error:
        # Pillow names the buffer that it read from
        is_unknown = isinstance(error, UnidentifiedImageError)
        reason = "its format is unknown" if is_unknown else first_line(error)
        message = f"cannot be read as an image: {reason}"
        raise user_error(message, file=str(path), key="data.path", hint="replace or delete it") from error
    if mode not in EIGHT_BIT_MODES or depth > 8:
        of_depth = f"{depth} bits a channel" if depth > 8 else f"mode {mode}"
        message = f"its pixels are of {of_depth}, which is not 8-bit grey, RGB or CMYK"
        raise user_error(message, file=str(path), key="data.path", hint="convert it to 8-bit grey or RGB")
    if pages > 1:
        message = f"it is a stack of {pages} pages, of which one would be read"
        raise user_error(message, file=str(path), key="data.path", hint="store each page as a file")
    pixels = np.asarray(square, np.float32) / 255
    return np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32)


def _read_depth(image: Any, content: bytes) -> int:
    """Read the bits of a channel from the header; Pillow keeps the upper 8 of wider colours, and may mix up planes."""
    if image.format == "PNG":
        return content[PNG_DEPTH_OFFSET]
    if image.format == "TIFF":
        return int(max(image.tag_v2.get(TIFF_DEPTH_TAG, (1,))))
    if image.format == "PPM" and image.tile and isinstance(image.tile[0][3], tuple):
        # format and largest value
        return int(image.tile[0][3][1]).bit_length()
    return 8


def _count_pages(image: Any) -> int:
    """Count the pages of a TIFF; smaller ones than the first are thumbnails, which do not count."""
    if image.format != "TIFF" or image.n_frames < 2:
        return 1
    size, pages = image.size, 0
    for index in range(image.n_frames):
        image.seek(index)
        pages += image.size == size
    image.seek(0)
    image.load()
    return pages
