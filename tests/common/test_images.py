"""The image store: content-addressed, and strict about what it lets in."""

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from common.data import images
from common.data.images import ImageStore, decode, read
from common.errors import Refused
from common.records import ImageRef


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_equal_content_is_stored_once(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    image = Image.new("RGB", (4, 4), "red")
    assert store.add(image) == store.add(image.copy())
    assert len(list(tmp_path.rglob("*.png"))) == 1
    assert read(store.add(image)).getpixel((0, 0)) == (255, 0, 0)


def test_a_reference_survives_a_move(tmp_path: Path) -> None:
    old = ImageStore(tmp_path / "old")
    ref = old.add(Image.new("RGB", (4, 4), "blue"))
    relative = old.relative(ref)
    (tmp_path / "old").rename(tmp_path / "new")
    assert read(ImageStore(tmp_path / "new").resolve(ref.sha256, relative)).getpixel(
        (1, 1)
    ) == (0, 0, 255)


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "a/../../secret.png"])
def test_paths_may_not_leave_the_store(tmp_path: Path, path: str) -> None:
    with pytest.raises(Refused) as error:
        ImageStore(tmp_path / "store").resolve("0", path)
    assert error.value.reason == "path_outside"


def test_symlinks_may_not_leave_the_store(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "link").symlink_to(tmp_path)
    with pytest.raises(Refused):
        ImageStore(tmp_path / "store").resolve("0", "link/secret.png")


def test_bad_images_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = png(Image.new("RGB", (64, 64), "green"))
    cases = {
        "image_corrupt": [b"", b"no image", good[: len(good) // 2]],
        "image_strip": [png(Image.new("RGB", (64, 1)))],
    }
    for reason, contents in cases.items():
        for data in contents:
            with pytest.raises(Refused) as error:
                decode(data)
            assert error.value.reason == reason
            assert "\n" not in str(error.value)
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    with pytest.raises(Refused, match="at most 1,000 pixels, got 64x64") as error:
        decode(good)
    assert error.value.reason == "image_huge"


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    bomb = png(Image.new("1", (16_000, 16_000)))
    assert len(bomb) < 100_000
    with pytest.raises(Refused) as error:
        decode(bomb)
    assert error.value.reason == "image_huge"


def test_missing_and_changed_files(tmp_path: Path) -> None:
    ref = ImageStore(tmp_path).add(Image.new("RGB", (4, 4)))
    Path(ref.path).write_bytes(png(Image.new("RGB", (4, 4), "red")))
    with pytest.raises(Refused) as error:
        read(ref)
    assert error.value.reason == "image_changed"
    with pytest.raises(Refused) as error:
        read(ImageRef("0", str(tmp_path / "none.png")))
    assert error.value.reason == "image_missing"


def test_modes_and_rotation() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert decode(png(clear)).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("RGB", (4, 4), "blue").convert("P")
    assert decode(png(palette)).getpixel((0, 0)) == (0, 0, 255)
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("CMYK", (8, 4)).save(buffer, "JPEG", exif=exif)
    assert decode(buffer.getvalue()).size == (4, 8)


def test_sixteen_bits_are_scaled_and_values_without_a_range_refused() -> None:
    """65,535 / 255 = 257; 20,000 / 257 = 77.8."""
    for value, expected in ((0, 0), (128, 0), (129, 1), (20_000, 78), (65_535, 255)):
        grey = png(Image.new("I;16", (4, 4), value))
        assert decode(grey).getpixel((0, 0)) == (expected,) * 3
    for image in (
        Image.new("F", (4, 4), 0.5),
        Image.new("I", (4, 4), 70_000),
        Image.new("I;16", (4, 4), 4095),
    ):
        buffer = io.BytesIO()
        image.save(buffer, "TIFF")
        with pytest.raises(Refused) as error:
            decode(buffer.getvalue())
        assert error.value.reason == "image_mode"


@given(st.binary(max_size=200))
def test_any_bytes_are_an_image_or_a_named_reason(data: bytes) -> None:
    try:
        assert decode(data).mode == "RGB"
    except Refused as error:
        assert error.reason == "video" or error.reason.startswith("image_")


AVIF = b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miafMA1B" + b"\0" * 60
NO_PICTURES = {
    "an empty file": b"",
    "a file of white space": b" \n",
    "an HTML page": b"\n<!DOCTYPE html>\n<html><title>404</title></html>",
    "a git-LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 5\n",
    "an SVG drawing": b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="x"></svg>',
    "an XML text": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "an AVIF image": AVIF,
    "a HEIC image": AVIF.replace(b"avif", b"heic", 1),
    "an MP4": AVIF.replace(b"avif", b"isom", 1),
    "a JSON text": b'{"error": "not found"}',
    "a plain text": "Zugriff verweigert: ü".encode(),
    "a ZIP archive": b"PK\x03\x04" + b"\0" * 30,
    "a PDF": b"%PDF-1.7\n",
    "an ICO icon": b"\0\0\x01\0\x01\0",
    "bytes of no known format": b"\x01\x02\xff\xfe" * 20,
}


@pytest.mark.parametrize("what", NO_PICTURES)
def test_a_picture_that_is_none_is_named_as_what_it_is(what: str) -> None:
    with pytest.raises(Refused, match=f"x.jpg: expected .*, got {what}.*; ") as error:
        decode(NO_PICTURES[what], "x.jpg")
    expected = "video" if what == "an MP4" else "image_corrupt"
    assert error.value.reason == expected
    assert "MPO" not in str(error.value)


@pytest.mark.parametrize(
    "format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]
)
def test_a_damaged_picture_is_named_by_its_format(format: str) -> None:
    """Half a file of every format that is read; noise, because a flat picture could be whole at half its bytes."""
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 80).convert("RGB").save(buffer, format)
    whole = buffer.getvalue()
    assert decode(whole).size == (64, 64)
    with pytest.raises(
        Refused,
        match=f"got an? {format}.* damaged or breaks off.*again".replace(
            "WEBP", "WebP"
        ),
    ):
        decode(whole[: len(whole) // 2], "x")


def test_the_content_of_a_file_that_is_no_picture_is_not_told() -> None:
    """A path may lead to a private text, and messages end up in files that people share."""
    with pytest.raises(Refused) as error:
        decode(b"root:secret:0:0\n", "x.png")
    assert "secret" not in str(error.value)


def avif() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 48), 80).convert("RGB").save(buffer, "AVIF")
    return buffer.getvalue()


def test_avif_is_read_and_stored_as_it_is(tmp_path: Path) -> None:
    ref = ImageStore(tmp_path).add_bytes(avif())
    assert Path(ref.path).suffix == ".avif"
    assert read(ref).size == (64, 48)


def test_avif_without_support_is_named_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a Pillow that was built without its decoder."""
    data = avif()
    monkeypatch.setattr(images, "READS_AVIF", False)
    monkeypatch.setattr(images, "FORMATS", ("PNG", "JPEG", "WEBP"))
    with pytest.raises(
        Refused, match=r"an AVIF image, which .* without support"
    ) as error:
        decode(data, "x.avif")
    assert "convert it to PNG or JPEG" in str(error.value)


def test_a_camera_s_two_pictures_in_one_file_are_read_as_the_first() -> None:
    buffer = io.BytesIO()
    second = Image.new("RGB", (64, 48), "red")
    Image.new("RGB", (64, 48)).save(
        buffer, "MPO", save_all=True, append_images=[second]
    )
    assert decode(buffer.getvalue()).getpixel((9, 9)) == (0, 0, 0)
