"""The image store: files named by the SHA-256 of their content. Rooms pass ImageRefs; pixels are read where used."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from pathlib import Path

from PIL import Image, ImageOps

from common.errors import Refused
from common.records import ImageRef

MAX_PIXELS = 64_000_000
MIN_SIDE = 2
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "MPO")
"""Pillow reads more, some of them by starting other programs (EPS)."""


def decode(data: bytes, name: str = "image") -> Image.Image:
    """RGB pixels of an encoded image, EXIF rotation applied, transparency laid on white, 16 bits scaled to 8.

    Raises:
        Refused: `image_huge` over 64 megapixels, `image_corrupt` when it does not decode, `image_strip` when a
            side is shorter than 2 pixels, `image_mode` when its values say no brightness (floats, 32-bit integers).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise Refused("image_huge", _size_message(name, image))
            is_png = image.format == "PNG"
            image = ImageOps.exif_transpose(image)
            if image.mode == "F" or image.mode.startswith("I"):
                image = _eight_bits(image, name, is_png)
            if "A" in image.getbands() or "transparency" in image.info:
                layer = image.convert("RGBA")
                image = Image.new("RGBA", layer.size, "white")
                image.alpha_composite(layer)
            pixels = image.convert("RGB")
    except Refused:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Refused(
            "image_huge",
            f"{name}: expected at most {MAX_PIXELS:,} pixels; {error}; scale it down",
        ) from error
    except Exception as error:  # Pillow's decoders raise anything on hostile bytes
        what = str(error).partition("\n")[0] or type(error).__name__
        raise Refused(
            "image_corrupt",
            f"{name}: expected a PNG, JPEG or WebP image, got {what}; re-export it",
        ) from error
    if min(pixels.size) < MIN_SIDE:
        raise Refused(
            "image_strip",
            f"{name}: expected sides of at least {MIN_SIDE} pixels, got {pixels.size}; drop it",
        )
    return pixels


def _eight_bits(image: Image.Image, name: str, is_png: bool) -> Image.Image:
    """Grey of 8 bits from a PNG's 16, which Pillow would clip; where else such values come from, no range is given."""
    if not is_png or "transparency" in image.info:
        raise Refused(
            "image_mode",
            f"{name}: expected 8 bits per channel, or grey PNG of 16, got mode {image.mode}; convert it",
        )
    return image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")


def _size_message(name: str, image: Image.Image) -> str:
    return f"{name}: expected at most {MAX_PIXELS:,} pixels, got {image.width}x{image.height}; scale it down"


def read(ref: ImageRef) -> Image.Image:
    """Pixels behind a reference (Refused as for `read_bytes` and `decode`)."""
    return decode(read_bytes(ref), ref.path)


def read_bytes(ref: ImageRef) -> bytes:
    """The encoded image behind a reference; the content must still be what the hash says.

    Raises:
        Refused: `image_missing`, `image_changed`.
    """
    try:
        data = Path(ref.path).read_bytes()
    except OSError as error:
        raise Refused(
            "image_missing",
            f"{ref.path}: expected a readable image file, got {error.strerror}",
        ) from error
    if hashlib.sha256(data).hexdigest() != ref.sha256:
        raise Refused(
            "image_changed",
            f"{ref.path}: content no longer matches its hash; import the data set again",
        )
    return data


class ImageStore:
    """A folder of images, `ab/abcdef….png`. Adding the same content twice keeps one file."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def add_bytes(self, data: bytes, name: str = "image") -> ImageRef:
        """Store an encoded image after checking that it decodes (Refused otherwise)."""
        decode(data, name)
        suffix = (Image.open(io.BytesIO(data), formats=FORMATS).format or "png").lower()
        digest = hashlib.sha256(data).hexdigest()
        path = self.root / digest[:2] / f"{digest}.{suffix}"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{os.getpid()}.partial")
            partial.write_bytes(data)
            partial.replace(path)
        return ImageRef(digest, str(path))

    def add(self, image: Image.Image) -> ImageRef:
        """Store pixels as PNG."""
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "PNG")
        return self.add_bytes(buffer.getvalue())

    def relative(self, ref: ImageRef) -> str:
        """The reference's path below this store (ValueError when it is not inside)."""
        return Path(ref.path).resolve().relative_to(self.root).as_posix()

    def resolve(self, sha256: str, relative: str) -> ImageRef:
        """A reference from a path read off disk (Refused `path_outside` if it leaves the store, `image_missing`)."""
        try:
            path = (self.root / relative).resolve()
        except (OSError, RuntimeError) as error:  # a loop of symbolic links
            raise Refused(
                "image_missing",
                f"{relative}: expected a path of a file, got {error}; repair it",
            ) from error
        if not path.is_relative_to(self.root):
            raise Refused(
                "path_outside",
                f"{relative}: expected a path below {self.root}, got one that leaves it",
            )
        return ImageRef(sha256, str(path))
