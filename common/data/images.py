"""The image store: files named by the SHA-256 of their content.

The rooms pass `ImageRef`s to each other and read pixels only where they need them. Images come from untrusted data
sets, so every one is decoded once before it is stored, and everything that is wrong with one has a counted reason.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError, features

from common.data.below import path_below
from common.data.file_kinds import AVIF, kind_of
from common.errors import Refused
from common.paths import writing
from common.records import ImageRef

MAX_PIXELS = 64_000_000
MIN_SIDE = 2
READS_AVIF = bool(features.check("avif"))
"""Whether this machine's Pillow was built with an AVIF decoder, as its wheels are."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF") + ("AVIF",) * READS_AVIF
"""The formats that are read; JPEG includes the MPO of cameras.

Pillow knows more, but opens some of them by starting other programs (EPS).
"""


def decode(data: bytes, name: str = "image") -> Image.Image:
    """RGB pixels of an encoded image: EXIF rotation applied, transparency laid on white, 16 bits scaled to 8.

    Args:
        name: what error messages call the image.

    Raises:
        Refused: `image_huge` over 64 megapixels; `video` for a film; `image_corrupt` when it does not decode for
            another reason, with what the bytes are instead (a page, a git-LFS pointer, …);
            `image_strip` when a side is shorter than 2 pixels; `image_mode`
            when its values have no known range (floats, 32-bit integers).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            pixels = _decode_to_rgb(data, name)
    except Refused:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Refused(
            "image_huge",
            f"{name}: expected at most {MAX_PIXELS:,} pixels; {error}; scale it down",
        ) from error
    except Exception as error:  # Pillow's decoders raise anything on hostile bytes
        reason = "video" if kind_of(data).is_video else "image_corrupt"
        raise Refused(reason, _no_picture(data, name, error)) from error
    if min(pixels.size) < MIN_SIDE:
        raise Refused(
            "image_strip",
            f"{name}: expected sides of at least {MIN_SIDE} pixels, got {pixels.size}; drop it",
        )
    return pixels


def _no_picture(data: bytes, name: str, error: Exception) -> str:
    """The message about bytes that Pillow could not decode: what they are, not what Pillow tried last."""
    kind = kind_of(data)
    what = kind.name
    if kind is AVIF and not READS_AVIF:
        what = f"{kind.name}, which this machine's Pillow is built without support for"
    elif kind.is_readable_image:
        first_line = str(error).partition("\n")[0] or type(error).__name__
        # Its own message names an object in memory.
        if isinstance(error, UnidentifiedImageError):
            first_line = "not recognised"
        what = f"{kind.name} that is damaged or breaks off ({first_line})"
    return f"{name}: expected a PNG, JPEG or WebP image, got {what}; {kind.remedy}"


def _decode_to_rgb(data: bytes, name: str) -> Image.Image:
    image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    # The header gives the size: a decompression bomb is refused before any pixel is decoded.
    if image.width * image.height > MAX_PIXELS:
        raise Refused(
            "image_huge",
            f"{name}: expected at most {MAX_PIXELS:,} pixels, got {image.width}x{image.height}; scale it down",
        )
    # Rotating makes a copy that has forgotten its format.
    is_png = image.format == "PNG"
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_eight_bits(image, name, is_png)
    if "A" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.new("RGBA", layer.size, "white")
        image.alpha_composite(layer)
    return image.convert("RGB")


def _to_eight_bits(image: Image.Image, name: str, is_png: bool) -> Image.Image:
    """Scale 16-bit grey to 8 bits. Only PNG states the range of such values; Pillow itself would clip them."""
    if not is_png or "transparency" in image.info:
        raise Refused(
            "image_mode",
            f"{name}: expected 8 bits per channel, or grey PNG of 16, got mode {image.mode}; convert it",
        )
    return image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")


def read(ref: ImageRef) -> Image.Image:
    """The RGB pixels of a stored image (Refused as for `read_bytes` and `decode`)."""
    return decode(read_bytes(ref), ref.path)


def read_bytes(ref: ImageRef) -> bytes:
    """The encoded bytes of a stored image, checked against its hash.

    Raises:
        Refused: `image_missing` when the file cannot be read, `image_changed` when its content has another hash.
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
    """A folder of images named by their hash, `ab/abcdef….png`. Equal content is stored once."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def add_bytes(self, data: bytes, name: str = "image") -> ImageRef:
        """Store an encoded image as it is (Refused as for `decode` when it cannot be used)."""
        digest = hashlib.sha256(data).hexdigest()
        for format in FORMATS:
            stored = self._path(digest, format)
            # It was decoded when it was stored.
            if stored.exists():
                return ImageRef(digest, str(stored))
        decode(data, name)
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        path = self._path(digest, image.format or "png")
        path.parent.mkdir(parents=True, exist_ok=True)
        # Several processes may store the same image; each renames a whole file into place.
        partial = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}.partial")
        with writing(path):
            partial.write_bytes(data)
            partial.replace(path)
        return ImageRef(digest, str(path))

    def _path(self, digest: str, format: str) -> Path:
        return self.root / digest[:2] / f"{digest}.{format.lower()}"

    def add(self, image: Image.Image) -> ImageRef:
        """Store pixels as PNG."""
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "PNG")
        return self.add_bytes(buffer.getvalue())

    def relative(self, ref: ImageRef) -> str:
        """The reference's path relative to this store (ValueError when the image lies elsewhere)."""
        resolved = Path(ref.path).resolve()
        if resolved.is_relative_to(self.root):
            return resolved.relative_to(self.root).as_posix()
        # The store's files may be links, as in a hub cache.
        return path_below(self.root, ref.path).relative_to(self.root).as_posix()

    def resolve(self, sha256: str, relative: str) -> ImageRef:
        """The reference for a relative path that was read from a data set. The file is not opened.

        Raises:
            Refused: `path_outside`, `image_missing`; see `below.path_below`, which has the rule.
        """
        return ImageRef(sha256, str(path_below(self.root, relative)))
