"""Any image file -> RGB uint8, as a person sees it.

Legend: H, W height and width in pixels after EXIF rotation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from data.errors import UserError

PixelArray = npt.NDArray[np.uint8]

_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_ALPHA_MODES = ("RGBA", "LA", "PA", "La", "RGBa")
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
_EXIF_ORIENTATION = 0x0112


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
    def is_16_bit(self) -> bool:
        """Grey with more than 8 bits."""
        return self.mode in _SIXTEEN_BIT_MODES

    @property
    def may_have_alpha(self) -> bool:
        """Whether pixels can be transparent."""
        return self.has_palette_alpha or self.mode in _ALPHA_MODES


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
    try:
        with Image.open(path) as image:
            facts = _facts(image)
            return _to_rgb(image, path), facts
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: the image file does not exist.") from None
    except Exception as error:  # Pillow's decoders raise almost anything on a damaged file
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise UserError(
            f"{path}: cannot be read as an image ({reason}). Replace the file or remove its entry."
        ) from error


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
