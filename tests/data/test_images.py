import io
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import EpsImagePlugin, Image

from data.errors import UserError
from data.images import (
    IMAGE_SUFFIXES,
    decode_image,
    has_pages,
    read_facts,
    read_image,
    read_pages,
    read_reduced,
    resize_antialiased,
)
from data.types import PixelArray

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def _saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


GREY = np.repeat(RGB[..., :1], 3, axis=2)
PALETTE = Image.fromarray(RGB).quantize(16)
AS_SEEN: dict[str, tuple[Image.Image, dict[str, object], PixelArray]] = {
    "RGB": (Image.fromarray(RGB), {}, RGB),
    "grey": (Image.fromarray(RGB[..., 0]), {}, GREY),
    "alpha is dropped": (Image.fromarray(np.dstack([RGB, np.full((5, 7), 100, np.uint8)])), {}, RGB),
    "grey with alpha": (Image.fromarray(RGB[..., 0]).convert("LA"), {}, GREY),
    "palette": (PALETTE, {}, np.asarray(PALETTE.convert("RGB"))),
    "palette with a transparent entry": (PALETTE, {"transparency": 0}, np.asarray(PALETTE.convert("RGB"))),
    "black and white": (Image.fromarray(RGB[..., 0] > 127), {}, np.where(GREY > 127, 255, 0).astype(np.uint8)),
}


@pytest.mark.parametrize("kind", AS_SEEN)
def test_pixels_are_rgb_as_a_person_sees_them(tmp_path: Path, kind: str) -> None:
    image, options, expected = AS_SEEN[kind]
    pixels = decode_image(_saved(tmp_path / "a.png", image, **options))
    assert pixels.dtype == np.uint8 and pixels.flags.writeable
    np.testing.assert_array_equal(pixels, expected)


def test_16_bits_cmyk_and_the_order_of_colours(tmp_path: Path) -> None:
    grey = np.array([[0, 128, 129, 257, 30000, 65535]], dtype=np.uint16)
    big_endian = _big_endian_tiff([0, 65535])
    for name, expected in (("a.png", [0, 0, 1, 1, 117, 255]), ("a.tif", [0, 0, 1, 1, 117, 255]), ("b.tif", [0, 255])):
        path = tmp_path / name
        path.write_bytes(big_endian) if name == "b.tif" else Image.fromarray(grey).save(path)
        pixels = decode_image(path)
        assert pixels[0, :, 0].tolist() == expected and (pixels == pixels[..., :1]).all(), "divided by 257"
    assert read_image(tmp_path / "b.tif")[1].mode == "I;16B"
    cv2.imwrite(str(tmp_path / "c.tif"), np.array([[[4095, 2000, 0]]], dtype=np.uint16))  # OpenCV's order is BGR
    assert decode_image(tmp_path / "c.tif").tolist() == [[[0, 125, 255]]]
    flat = np.full((16, 16, 3), (200, 40, 90), dtype=np.uint8)
    path = _saved(tmp_path / "a.jpg", Image.fromarray(flat).convert("CMYK"), quality=100)
    assert read_image(path)[1].mode == "CMYK" and np.abs(decode_image(path).astype(int) - flat).max() <= 4


def _big_endian_tiff(values: list[int]) -> bytes:
    tags = [(256, 3, 2), (257, 3, 1), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 8), (278, 3, 1), (279, 4, 4)]
    entries = b"".join(
        struct.pack(">HHI", tag, kind, 1) + (struct.pack(">HH", value, 0) if kind == 3 else struct.pack(">I", value))
        for tag, kind, value in tags
    )
    header = b"MM\0*" + struct.pack(">I", 12) + struct.pack(">2H", *values)
    return header + struct.pack(">H", len(tags)) + entries + b"\0\0\0\0"


@pytest.mark.parametrize("read", [decode_image, lambda path: read_reduced(path, 1)[0]], ids=["evaluation", "training"])
@pytest.mark.parametrize(
    ("name", "channels"), [("a.png", 1), ("a.tif", 1), ("a.png", 3), ("a.tif", 3), ("a.png", 4), ("a.tif", 4)]
)
@pytest.mark.parametrize(("largest", "expected"), [(4095, [0, 62, 255]), (4096, [0, 4, 16])])
def test_12_bits_in_16_are_stretched(
    tmp_path: Path, name: str, channels: int, largest: int, expected: list[int], read: Callable[[Path], PixelArray]
) -> None:
    """A 12-bit camera's values, grey or colour, would all be nearly black."""
    values = np.array([[0, 1000, largest]], dtype=np.uint16)
    cv2.imwrite(str(tmp_path / name), values if channels == 1 else np.stack([values] * channels, axis=2))
    pixels = read(tmp_path / name)
    np.testing.assert_allclose(
        pixels.astype(int), np.array([[expected]]).transpose(0, 2, 1).repeat(3, 2), atol=channels > 1 and largest > 4095
    )
    assert read_image(tmp_path / name)[1].is_12_bit == (largest == 4095)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])  # Pillow gives the turned size of TIFF
@pytest.mark.parametrize("orientation", range(10))  # 0 and 9 are none
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = np.zeros((6, 9, 3), dtype=np.uint8)
    upright[0, 0] = (255, 0, 0)
    undo = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(undo.get(orientation, upright))
    path = _saved(tmp_path / f"a{suffix}", Image.fromarray(stored), exif=exif, lossless=True)
    pixels, facts = read_image(path)
    np.testing.assert_array_equal(pixels, upright)
    assert facts.orientation == (orientation if orientation in undo else 1)
    assert facts.size_wh == stored.shape[1::-1] and facts.upright_wh == (9, 6)
    assert read_facts(path) == facts


PAGED: list[tuple[str, dict[str, object]]] = [
    ("a.tif", {"compression": "tiff_lzw"}),
    ("a.gif", {}),
    ("a.png", {}),
    ("a.webp", {"lossless": True}),
]


@pytest.mark.parametrize(("name", "options"), PAGED)
def test_every_page_is_read(tmp_path: Path, name: str, options: dict[str, object]) -> None:
    frames = [Image.fromarray(np.full((4, 6, 3), value, dtype=np.uint8)) for value in (10, 200, 90)]
    path = _saved(tmp_path / name, frames[0], save_all=True, append_images=frames[1:], **options)
    pages = [page for page in read_pages(path) if not isinstance(page, UserError)]
    assert has_pages(path) and [page.tolist()[0][0] for page, _ in pages] == [[10] * 3, [200] * 3, [90] * 3]
    np.testing.assert_array_equal(pages[0][0], decode_image(path))


def test_pages_that_are_smaller_copies_or_damaged(tmp_path: Path) -> None:
    """A scanner's preview is no part of its own; behind a page that cannot be read there may be good ones."""
    frames = [Image.fromarray(np.full((400, 600), value, dtype=np.uint8)) for value in (10, 200, 90)]
    frames[1].encoderinfo = {"tiffinfo": {254: 1}}
    path = _saved(tmp_path / "a.tif", frames[0], save_all=True, append_images=frames[1:])
    assert [page[0].max() for page in read_pages(path) if not isinstance(page, UserError)] == [10, 90]
    frames[1] = Image.fromarray(np.ones((4, 4), dtype=np.float32))
    _saved(path, frames[0], save_all=True, append_images=frames[1:])
    first, second, third = read_pages(path)
    assert str(second) == f"page 2: {path}: float pixels have no defined range. Save the image with 8 or 16 bits."
    assert not isinstance(first, UserError) and not isinstance(third, UserError)


def test_files_without_pages(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"nonsense")
    for path in (_saved(tmp_path / "a.png", Image.fromarray(RGB)), tmp_path / "broken.png", tmp_path / "gone.png"):
        assert not has_pages(path)


def _truncated_png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()[:3000]


def _hostile_png() -> bytes:
    """A header that promises far more pixels than any camera."""
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunks = [b"IHDR" + header, b"IDAT" + zlib.compress(b"")]
    parts = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _tiff(values: npt.NDArray[np.generic]) -> bytes:
    Image.fromarray(values).save(buffer := io.BytesIO(), "TIFF")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        *(
            (content, r"cannot be read as an image .* Replace the file")
            for content in (b"", b"not an image", _truncated_png())
        ),
        (_hostile_png(), r"\(more than 178,956,970 pixels, which are read by predict_deimv2.py --tile alone\)"),
        (_tiff(np.array([[0, 70000]], dtype=np.int32)), "from 0 to 70000, expected 0 to 65535"),
        (_tiff(np.ones((2, 2), dtype=np.float32)), "float pixels have no defined range"),
        (None, "the image file does not exist"),
    ],
    ids=["empty", "text", "cut off", "enormous", "32 bits", "float", "missing"],
)
def test_a_file_that_cannot_be_read_is_a_user_error(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(UserError, match=rf"bad\.png: .*{message}"):
        decode_image(tmp_path / "bad.png")


def test_resize_is_pillows_antialiased_bilinear() -> None:
    image = np.random.default_rng(2).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((32, 64), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resize_antialiased(image, (64, 32)), expected)
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    assert np.ptp(resize_antialiased(stripes, (16, 16))[:, 2:-2]) < 20  # plain bilinear would keep the stripes


class TestReadForTraining:
    """OpenCV where it gives Pillow's pixels, Pillow everywhere else."""

    def test_odd_files_are_read_as_ever(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        image = Image.fromarray(np.random.default_rng(4).integers(0, 256, (40, 50, 3), dtype=np.uint8))
        grey = Image.fromarray(np.random.default_rng(5).integers(0, 65536, (40, 50), dtype=np.uint16))
        paths = [
            _saved(tmp_path / "turned.jpg", image, exif=exif),
            _saved(tmp_path / "cmyk.jpg", image.convert("CMYK")),
            _saved(tmp_path / "alpha.png", image.convert("RGBA")),
            _saved(tmp_path / "palette.png", image.quantize(16)),
            _saved(tmp_path / "grey16.png", grey),
        ]
        for path in paths:
            expected, facts = read_image(path)
            found, found_facts = read_reduced(path, 1)
            np.testing.assert_array_equal(found, expected)
            assert found_facts == facts and facts.upright_wh == (expected.shape[1], expected.shape[0])
            assert read_reduced(path, 4)[0].shape == (-(-expected.shape[0] // 4), -(-expected.shape[1] // 4), 3)

    def test_a_jpeg_that_was_cut_off_is_refused(self, tmp_path: Path) -> None:
        pixels = np.random.default_rng(6).integers(0, 256, (90, 90, 3), dtype=np.uint8)
        path = _saved(tmp_path / "a.jpg", Image.fromarray(pixels))
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(UserError, match=r"a\.jpg: cannot be read as an image"):
            read_reduced(path, 1)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"comment": b"\xff\xd8"}, {"exif": True}, {"dpi": (3, 3)}, {"subsampling": 0}],
)
def test_a_jpeg_header_says_what_pillow_says(tmp_path: Path, mode: str, options: dict[str, object]) -> None:
    """Also on the fast way, by OpenCV."""
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (61, 83, 3), dtype=np.uint8)).convert(mode)
    if options.pop("exif", False):
        exif = Image.Exif()
        exif[0x0112] = 3
        options["exif"] = exif
    path = _saved(tmp_path / "a.jpg", image, quality=90, **options)
    pixels, facts = read_reduced(path, 1)
    expected, expected_facts = read_image(path)
    assert facts == expected_facts == read_facts(path)
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_every_known_suffix_can_be_read(tmp_path: Path, suffix: str) -> None:
    if Image.registered_extensions().get(suffix) not in Image.SAVE:
        pytest.skip("this build of Pillow does not write the format")
    image = Image.fromarray(RGB).convert("1" if suffix == ".pbm" else "L" if suffix == ".pgm" else "RGB")
    assert decode_image(_saved(tmp_path / f"a{suffix}", image)).shape == RGB.shape


@pytest.mark.parametrize("suffix", ["eps", "jpg", "png", "tif"])
def test_no_image_starts_a_program(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: object, **__: object) -> None:
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", started)
    path = tmp_path / f"part.{suffix}"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(AssertionError), Image.open(path) as image:  # what Pillow does on its own
        image.load()
    for read in (decode_image, read_facts, partial(read_reduced, reduction=2)):
        with pytest.raises(UserError, match="no accepted format: JPEG, PNG"):
            read(path)
    assert not has_pages(path)
