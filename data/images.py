"""Any image file -> RGB uint8, as a person sees it; for training also at a half, a quarter, an eighth of its size.

Legend: H, W height and width in pixels after EXIF rotation.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from data.errors import UserError
from data.image_files import require_regular_file
from data.types import PixelArray

_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_TWELVE_BITS, _SIXTEEN_BITS = 4095, 65535
_ALPHA_MODES = ("RGBA", "LA", "PA", "La", "RGBa")
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
_EXIF_ORIENTATION = 0x0112
_TIFF_SUBFILE_TYPE, _TIFF_COPY_OR_MASK = 254, 0b101
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
_END_OF_JPEG = b"\xff\xd9"

IMAGE_SUFFIXES = frozenset(
    f".{name}"
    for name in ("jpg", "jpeg", "jpe", "jfif", "png", "bmp", "dib", "tif", "tiff", "webp", "gif")
    + ("ppm", "pgm", "pbm", "pnm", "jp2", "avif", "tga")
)
"""By which images are known in a folder, in lower case."""
_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000", "AVIF", "TGA")
"""Pillow's names of what the suffixes stand for. It goes by content, knows further formats, and starts Ghostscript for
one of them (EPS), so that a file of any name could start a program."""
_MOST_PIXELS = 2**31
UNREADABLE_FIX = "Replace the file or remove its entry"

REDUCTIONS = (1, 2, 4, 8)
"""Images for training are read at full size or at one of these fractions of it."""
_JPEG_FLAGS = {1: cv2.IMREAD_COLOR} | {step: getattr(cv2, f"IMREAD_REDUCED_COLOR_{step}") for step in REDUCTIONS[1:]}


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
    has_deep_colours: bool = False
    """Colours with 16 bits a channel."""
    largest_value: int = 0
    """Of 16-bit grey, and of 12-bit colours in 16 bits, once the pixels are read."""

    @property
    def is_12_bit(self) -> bool:
        """16 bits that hold the values of a 12-bit camera: they are stretched, or all would be nearly black."""
        return 0 < self.largest_value <= _TWELVE_BITS

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
    """Return the array itself: OpenCV's annotations do not tell that uint8 stays uint8."""
    pixels: PixelArray = array
    return pixels


def open_image(source: Path | BinaryIO) -> Image.Image:
    """Open a file in one of the accepted formats with Pillow, not decoded yet: the only way images are opened.

    Raises:
        OSError: The file is missing, no ordinary file, or of another format (UnidentifiedImageError).
    """
    if isinstance(source, Path):
        require_regular_file(source)
    return Image.open(source, formats=_known_formats())


@cache
def _known_formats() -> tuple[str, ...]:
    Image.init()  # some builds of Pillow lack a format
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def decode_image(path: Path) -> PixelArray:
    """Read an image file as uint8 [H, W, 3] RGB, upright. Each call returns a fresh, writable array.

    8-bit grey is repeated over the channels; 16 bits become 8 by one of two fixed scales, rounded: 0..65535, or
    0..4095 where no value is larger, as 12-bit cameras write them (`ImageFacts.is_12_bit`); alpha is dropped and the
    stored colour kept, as cameras and other pipelines have it; palettes are resolved; CMYK is converted without
    a colour profile; EXIF orientation is applied; of several frames the first is taken (`read_pages` gives all).

    Raises:
        UserError: The file is missing, damaged, not an image, or of a kind without a defined conversion
            (float pixels, 32-bit pixels above 65535).
    """
    return read_image(path)[0]


def read_image(path: Path) -> tuple[PixelArray, ImageFacts]:
    """Return `decode_image`'s pixels together with what the file says of itself.

    Raises:
        UserError: As `decode_image`.
    """
    return _read(path, 1, fast=False)


def is_image(path: Path) -> bool:
    """Tell whether a file begins as an image does."""
    with contextlib.suppress(Exception), open_image(path):
        return True
    return False


def has_pages(path: Path) -> bool:
    """Tell whether a file holds several pages or frames. False too for what cannot be read."""
    with contextlib.suppress(UserError):
        return read_facts(path).num_frames > 1
    return False


def read_pages(path: Path) -> Iterator[tuple[PixelArray, ImageFacts] | UserError]:
    """Yield every page of a file as `read_image` gives the first; for one that cannot be read, the reason.

    Smaller copies of a page and masks, which TIFF files may hold, are left out.
    """
    try:
        with open_image(path) as image:
            for page in range(_num_frames(image)):
                try:
                    image.seek(page)
                    if not getattr(image, "tag_v2", {}).get(_TIFF_SUBFILE_TYPE, 0) & _TIFF_COPY_OR_MASK:
                        yield _to_rgb(image, _facts(image), path, page)
                except UserError as error:
                    yield UserError(f"page {page + 1}: {error}")
                except Exception as error:  # as in `_read`
                    yield _unreadable(path, error, f"page {page + 1} ")
    except Exception as error:  # as in `_read`
        yield _unreadable(path, error)


def read_facts(path: Path) -> ImageFacts:
    """Return what a file says of itself; its pixels are not decoded. A UserError if it is missing or no image."""
    try:
        with open_image(path) as image:
            return _facts(image)
    except Exception as error:  # as in `_read`
        raise _unreadable(path, error) from error


def read_reduced(path: Path, reduction: int) -> tuple[PixelArray, ImageFacts]:
    """Read an image for training, as fast as it gets, at 1/`reduction` of its size (one of `REDUCTIONS`), rounded up.

    Ordinary JPEG files are decoded by OpenCV, with the pixels of `read_image` at full size (both are libjpeg) and
    by libjpeg's scaled decoding below it; everything else is read by `read_image` and averaged over squares. A
    pixel of the result covers `reduction` x `reduction` pixels of the image, those of the last row and column
    perhaps fewer. Errors are those of `decode_image`.
    """
    return _read(path, reduction, fast=True)


def _read(path: Path, reduction: int, *, fast: bool) -> tuple[PixelArray, ImageFacts]:
    try:
        require_regular_file(path)
        data = path.read_bytes()
        with open_image(io.BytesIO(data)) as image:
            facts = _facts(image)
            if fast and image.format == "JPEG" and (found := _fast_jpeg(data, facts, reduction)) is not None:
                return found, facts
            pixels, facts = _to_rgb(image, facts, path, 0)
            return reduced(pixels, reduction), facts
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise almost anything on a damaged file
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception, part: str = "") -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path}: the image file does not exist.")
    reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, UnidentifiedImageError):  # whose text names a buffer in memory
        reason = f"empty, or of no accepted format: {', '.join(_known_formats())}"
    if isinstance(error, Image.DecompressionBombError):
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        reason = f"more than {most:,} pixels, which are read by predict_deimv2.py --tile alone"
    return UserError(f"{path}: {part}cannot be read as an image ({reason}). {UNREADABLE_FIX}.")


@contextlib.contextmanager
def large_images_allowed() -> Iterator[None]:
    """Accept images of up to 2 gigapixels inside the context, in the whole process; elsewhere Pillow takes
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


def reduced(image: PixelArray, reduction: int) -> PixelArray:
    """Average squares: uint8 [H, W, 3] -> [ceil(H / reduction), ceil(W / reduction), 3]; the image itself for 1."""
    if reduction == 1:
        return image
    height, width = image.shape[:2]
    bottom, right = -height % reduction, -width % reduction
    if bottom or right:
        image = as_pixels(cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_REPLICATE))
    size_wh = (image.shape[1] // reduction, image.shape[0] // reduction)
    return as_pixels(cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA))


def _num_frames(image: Image.Image) -> int:
    return 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))  # MPO: previews of a phone


def _facts(image: Image.Image) -> ImageFacts:
    packed = [str(tile[3]) for tile in getattr(image, "tile", ())]  # read first: to look for EXIF may decode the image
    deep = image.mode not in _SIXTEEN_BIT_MODES and any(";16" in name for name in packed)
    turned = image.getexif().get(_EXIF_ORIENTATION, 1)
    orientation = int(turned) if turned in range(1, 9) else 1
    tags = getattr(image, "tag_v2", {})  # of a turned TIFF, Pillow gives the size after rotation
    size_wh = (tags[_TIFF_WIDTH], tags[_TIFF_HEIGHT]) if tags else image.size
    return ImageFacts(image.mode, size_wh, orientation, _num_frames(image), "transparency" in image.info, deep)


def _to_rgb(image: Image.Image, facts: ImageFacts, path: Path, page: int) -> tuple[PixelArray, ImageFacts]:
    if not all(image.size):
        raise UserError(f"{path}: has {image.width} x {image.height} pixels. Replace the file or remove its entry.")
    image.load()
    if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    mode = image.mode
    if mode in _SIXTEEN_BIT_MODES:
        return _from_16_bit(np.asarray(image), facts, path)
    if mode == "F":
        raise UserError(f"{path}: float pixels have no defined range. Save the image with 8 or 16 bits.")
    if mode in _PREMULTIPLIED:
        image = image.convert(_PREMULTIPLIED[mode])
    pixels = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    if facts.has_deep_colours and pixels.max() <= _TWELVE_BITS >> 8:  # Pillow keeps the upper byte only
        return _from_16_bit(_deep_colours(path, facts, page), facts, path)
    return pixels, facts


def _deep_colours(path: Path, facts: ImageFacts, page: int) -> npt.NDArray[np.integer]:
    """16-bit RGB, which Pillow cannot hold."""
    found: Sequence[Any] = ()
    if facts.orientation == 1:
        # No path for OpenCV: it crashes on names that are no UTF-8.
        data = np.frombuffer(path.read_bytes(), np.uint8)
        found = cv2.imdecodemulti(data, cv2.IMREAD_UNCHANGED)[1][page : page + 1]
    if not found or found[0].dtype != np.uint16 or found[0].ndim != 3:
        raise UserError(f"{path}: 12-bit colours in 16 bits that cannot be read. Save the image with 8 bits.")
    deep: npt.NDArray[np.integer] = found[0][..., 2::-1]
    return deep


def _from_16_bit(values: npt.NDArray[np.integer], facts: ImageFacts, path: Path) -> tuple[PixelArray, ImageFacts]:
    smallest, largest = int(values.min()), int(values.max())
    if smallest < 0 or largest > _SIXTEEN_BITS:
        raise UserError(
            f"{path}: pixel values from {smallest} to {largest}, expected 0 to 65535. Save the image with 8 or 16 bits."
        )
    full = _TWELVE_BITS if largest <= _TWELVE_BITS else _SIXTEEN_BITS
    eight_bit = ((np.arange(full + 1) * 255 + full // 2) // full).astype(np.uint8)[values]
    pixels = eight_bit if eight_bit.ndim == 3 else np.repeat(eight_bit[..., None], 3, axis=2)
    return pixels, replace(facts, largest_value=largest)


def resize_antialiased(image: PixelArray, size_hw: tuple[int, int]) -> PixelArray:
    """Resize uint8 [H, W, 3] -> uint8 [h, w, 3] by Pillow's bilinear filter, which is antialiased.

    Exactly the resize that official checkpoints are evaluated with (docs/deimv2.md, Training ops in order: Validation).
    """
    height, width = size_hw
    if image.shape[:2] == (height, width):
        return image
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
