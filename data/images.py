"""Any image file -> RGB uint8, as a person sees it; for training also at a half, a quarter, an eighth of its size.

Legend: H, W height and width in pixels after EXIF rotation.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from data.errors import UserError

PixelArray = npt.NDArray[np.uint8]

_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_ALPHA_MODES = ("RGBA", "LA", "PA", "La", "RGBa")
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
_EXIF_ORIENTATION = 0x0112
_START_OF_JPEG, _END_OF_JPEG = b"\xff\xd8", b"\xff\xd9"
_JPEG_FRAMES = (0xC0, 0xC1, 0xC2)
"""Frame headers: baseline, extended, progressive."""
_PLAIN_JPEG_SEGMENTS = (0xE0, 0xDB, 0xC4, 0xDD, 0xFE)
"""JFIF, tables, restarts, comments: nothing that could turn the image or change its colours."""

IMAGE_SUFFIXES = frozenset(
    f".{name}"
    for name in ("jpg", "jpeg", "jpe", "jfif", "png", "bmp", "dib", "tif", "tiff", "webp", "gif")
    + ("ppm", "pgm", "pbm", "pnm", "jp2", "avif", "tga")
)
"""By which images are known in a folder, in lower case."""
_MOST_PIXELS = 2**31

REDUCTIONS = (1, 2, 4, 8)
"""Images for training are read at full size or at one of these fractions of it."""
_JPEG_FLAGS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


@dataclass(frozen=True)
class ImageFacts:
    """What a file says of itself before its pixels are touched."""

    mode: str
    """Pillow's name for the pixel format, such as "RGB", "L", "I;16", "CMYK"."""
    size_wh: tuple[int, int]
    """As stored, before EXIF rotation."""
    orientation: int
    """EXIF orientation, 1 = upright, 5-8 swap width and height."""
    num_frames: int

    has_palette_alpha: bool
    """A palette with a transparent entry."""

    @property
    def upright_wh(self) -> tuple[int, int]:
        """Width and height after EXIF rotation."""
        return self.size_wh[::-1] if self.orientation >= 5 else self.size_wh

    @property
    def is_16_bit(self) -> bool:
        """Grey with more than 8 bits."""
        return self.mode in _SIXTEEN_BIT_MODES

    @property
    def may_have_alpha(self) -> bool:
        """Whether pixels can be transparent."""
        return self.has_palette_alpha or self.mode in _ALPHA_MODES


def as_pixels(array: Any) -> PixelArray:
    """The array itself: OpenCV's annotations do not tell that uint8 stays uint8."""
    pixels: PixelArray = array
    return pixels


def decode_image(path: Path) -> PixelArray:
    """Read an image file as uint8 [H, W, 3] RGB, upright. Each call returns a fresh, writable array.

    8-bit grey is repeated over the channels; 16-bit grey is divided by 257 and rounded, so that 0..65535
    becomes 0..255 (no stretching: the same file always looks the same); alpha is dropped and the stored
    colour kept, as cameras and other pipelines have it; palettes are resolved; CMYK is converted without
    a colour profile; EXIF orientation is applied; of several frames the first is taken.

    Raises:
        UserError: The file is missing, damaged, not an image, or of a kind without a defined conversion
            (float pixels, 32-bit pixels above 65535).
    """
    return read_image(path)[0]


def read_image(path: Path) -> tuple[PixelArray, ImageFacts]:
    """`decode_image` together with what the file says of itself.

    Raises:
        UserError: As `decode_image`.
    """
    return _read(path, 1, fast=False)


def read_facts(path: Path) -> ImageFacts:
    """What a file says of itself; its pixels are not decoded.

    Raises:
        UserError: The file is missing or not an image.
    """
    try:
        with Image.open(path) as image:
            return _facts(image)
    except FileNotFoundError:
        raise UserError(f"{path}: the image file does not exist.") from None
    except Exception as error:  # as in `_read`
        raise UserError(f"{path}: cannot be read as an image ({type(error).__name__}). Replace the file.") from error


def read_reduced(path: Path, reduction: int) -> tuple[PixelArray, ImageFacts]:
    """An image for training, as fast as it gets, at 1/`reduction` of its size (one of `REDUCTIONS`), rounded up.

    Ordinary JPEG files are decoded by OpenCV, with the pixels of `read_image` at full size (both are libjpeg) and
    by libjpeg's scaled decoding below it; everything else is read by `read_image` and averaged over squares. A
    pixel of the result covers `reduction` x `reduction` pixels of the image, those of the last row and column
    perhaps fewer.

    Raises:
        UserError: As `decode_image`.
    """
    return _read(path, reduction, fast=True)


def _read(path: Path, reduction: int, *, fast: bool) -> tuple[PixelArray, ImageFacts]:
    try:
        data = path.read_bytes()
        facts = _plain_jpeg_facts(data) if fast else None
        if facts is not None and (found := _fast_jpeg(data, facts, reduction)) is not None:
            return found, facts
        with Image.open(io.BytesIO(data)) as image:
            facts = _facts(image)
            is_jpeg = fast and image.format == "JPEG"
            found = _fast_jpeg(data, facts, reduction) if is_jpeg else None
            return reduced(_to_rgb(image, path), reduction) if found is None else found, facts
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: the image file does not exist.") from None
    except Exception as error:  # Pillow's decoders raise almost anything on a damaged file
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        if isinstance(error, UnidentifiedImageError):  # whose text names a buffer in memory
            reason = "empty, or of no known image format"
        raise UserError(
            f"{path}: cannot be read as an image ({reason}). Replace the file or remove its entry."
        ) from error


@contextlib.contextmanager
def large_images_allowed() -> Iterator[None]:
    """Until the end of the context, in the whole process, images of up to 2 gigapixels are read; elsewhere Pillow takes
    anything above 179 megapixels for an attack on the memory, scans of sheets and webs included."""
    usual = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = _MOST_PIXELS // 2  # Pillow warns above this and refuses above twice as much
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = usual


def _fast_jpeg(data: bytes, facts: ImageFacts, reduction: int) -> PixelArray | None:
    """OpenCV's pixels, or None where Pillow should read: odd formats, rotated or damaged files.

    OpenCV fills up what a cut-off file lacks instead of refusing it, hence the look at its end.
    """
    if facts.mode not in ("RGB", "L") or facts.orientation != 1 or not data.endswith(_END_OF_JPEG):
        return None
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), _JPEG_FLAGS[reduction])
    width, height = (-(-side // reduction) for side in facts.size_wh)
    if pixels is None or pixels.shape != (height, width, 3):
        return None
    return as_pixels(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels))


def _plain_jpeg_facts(data: bytes) -> ImageFacts | None:
    """Facts of a JPEG that has only what every JPEG has, from its header (ITU-T T.81, annex B); None for others.

    To open a file takes Pillow nearly as long as OpenCV needs to decode a small one.
    """
    at = 2
    while data[:2] == _START_OF_JPEG and data[at : at + 1] == b"\xff" and at + 10 <= len(data):
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in _JPEG_FRAMES:
            height, width = int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
            mode = {1: "L", 3: "RGB"}.get(data[at + 9])
            is_plain = data[at + 4] == 8 and width and height
            return ImageFacts(mode, (width, height), 1, 1, has_palette_alpha=False) if mode and is_plain else None
        if marker not in _PLAIN_JPEG_SEGMENTS:
            return None
        at += 2 + length
    return None


def reduced(image: PixelArray, reduction: int) -> PixelArray:
    """uint8 [H, W, 3] -> [ceil(H / reduction), ceil(W / reduction), 3], means of squares; the image itself for 1."""
    if reduction == 1:
        return image
    height, width = image.shape[:2]
    bottom, right = -height % reduction, -width % reduction
    if bottom or right:
        image = as_pixels(cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_REPLICATE))
    size_wh = (image.shape[1] // reduction, image.shape[0] // reduction)
    return as_pixels(cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA))


def _facts(image: Image.Image) -> ImageFacts:
    orientation = int(image.getexif().get(_EXIF_ORIENTATION, 1) or 1)
    frames = 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))  # MPO: previews of a phone
    return ImageFacts(image.mode, image.size, orientation, frames, "transparency" in image.info)


def _to_rgb(image: Image.Image, path: Path) -> PixelArray:
    upright = ImageOps.exif_transpose(image)
    mode = upright.mode
    if mode in _SIXTEEN_BIT_MODES:
        return _from_16_bit(np.asarray(upright), path)
    if mode == "F":
        raise UserError(f"{path}: float pixels have no defined range. Save the image with 8 or 16 bits.")
    if mode in _PREMULTIPLIED:
        upright = upright.convert(_PREMULTIPLIED[mode])
    return np.array(upright.convert("RGB"))


def _from_16_bit(grey: npt.NDArray[np.integer], path: Path) -> PixelArray:
    values = grey.astype(np.int64)
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise UserError(
            f"{path}: pixel values from {values.min()} to {values.max()}, expected 0 to 65535. "
            "Save the image with 8 or 16 bits."
        )
    eight_bit = ((values + 128) // 257).astype(np.uint8)
    return np.repeat(eight_bit[..., None], 3, axis=2)


def resize_antialiased(image: PixelArray, size_hw: tuple[int, int]) -> PixelArray:
    """uint8 [H, W, 3] -> uint8 [h, w, 3] by Pillow's bilinear filter, which is antialiased.

    Exactly the resize that official checkpoints are evaluated with (spec section 10.1, Validation).
    """
    height, width = size_hw
    if image.shape[:2] == (height, width):
        return image
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
