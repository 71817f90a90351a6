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
        assert error.reason.startswith("image_")
