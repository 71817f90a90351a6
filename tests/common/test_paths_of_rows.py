"""Which files a row may name: those below the root, by links and absolute paths too, and nothing around it."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from common.data.below import path_below
from common.data.datasets import IMAGES, read_pairs, write_pairs
from common.data.images import ImageStore
from common.errors import Refused
from common.reading.encoded_images import decode, is_encoded
from common.reading.image_intake import ImageIntake
from common.records import Message, Part, PreferencePair, Prompt, Response
from tests.common.importer_cases import (
    ANSWERS,
    PICTURE,
    case_rows,
    encoded,
    imported,
    write,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty image folder beside a disk that holds a picture in coco/train2017."""
    (tmp_path / "disk" / "coco" / "train2017").mkdir(parents=True)
    (tmp_path / "disk" / "coco" / "train2017" / "a.png").write_bytes(PICTURE)
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


def refusal(root: Path, path: str) -> Refused:
    with pytest.raises(Refused) as error:
        path_below(root, path)
    return error.value


def test_links_that_the_user_put_below_the_root_are_followed(
    root: Path, tmp_path: Path
) -> None:
    """A linked folder, a folder linked within it, a linked file, and a root that is a link itself."""
    disk = tmp_path / "disk"
    (root / "coco").symlink_to(disk / "coco")
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "b.png").write_bytes(PICTURE)
    (disk / "coco" / "val").symlink_to(tmp_path / "second")
    (root / "c.png").symlink_to("../disk/coco/train2017/a.png")
    (tmp_path / "alias").symlink_to(root)
    for start in (root, tmp_path / "alias"):
        for path in ("coco/train2017/a.png", "coco/val/b.png", "c.png"):
            assert path_below(start, path).read_bytes() == PICTURE
            assert path_below(start, str(start / path)).read_bytes() == PICTURE


@pytest.mark.parametrize("target", ["..", "../..", "/", "."])
def test_a_link_to_a_folder_around_the_root_opens_nothing(
    root: Path, tmp_path: Path, target: str
) -> None:
    (tmp_path / "secret.png").write_bytes(PICTURE)
    (root / "up").symlink_to(target)
    outside = Path("/", *tmp_path.parts[1:], "secret.png")
    path = {
        "..": "up/secret.png",
        "../..": f"up/{tmp_path.name}/secret.png",
        "/": f"up{outside}",
        ".": "up/../secret.png",
    }[target]
    assert (root / path).exists()
    assert refusal(root, path).reason == "path_outside"


def test_a_link_around_the_root_may_come_back_into_it(root: Path) -> None:
    (root / "up").symlink_to("..")
    (root / "a.png").write_bytes(PICTURE)
    assert path_below(root, "up/images/a.png") == (root / "a.png").resolve()


def test_the_message_says_the_rule(root: Path) -> None:
    message = str(refusal(root, "../x.png"))
    assert f"../x.png: expected a path below {root}" in message
    assert "links in it are followed" in message and "'..'" in message


def test_a_hub_cache(tmp_path: Path) -> None:
    """Snapshots are links to `blobs`: data files, pictures, MMPR's annotations, and a set of ours that was uploaded."""
    blobs = tmp_path / "hub" / "blobs"
    snapshot = tmp_path / "hub" / "snapshots" / "abc"
    blobs.mkdir(parents=True)

    def link(name: str, content: bytes) -> None:
        blob = blobs / str(len(list(blobs.iterdir())))
        blob.write_bytes(content)
        path = snapshot / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(blob)

    link("images/0.png", PICTURE)
    line = json.dumps({"image": "images/0.png", "question": "What?", **ANSWERS})
    link("annotations/s.jsonl", line.encode())
    sections = {"s": {"root": "", "annotation": "annotations/s.jsonl"}}
    link("meta.json", json.dumps(sections).encode())
    pairs, dropped = imported("mmpr", snapshot, snapshot)
    assert [len(pair.prompt.images) for pair in pairs] == [1] and dropped == []

    made = tmp_path / "made"
    picture = ImageStore(made / IMAGES).add_bytes(PICTURE)
    message = Message("user", (Part("image"), Part("text", "What?")))
    prompt = Prompt("p", (message,), (picture,))
    pair = PreferencePair("p/0", prompt, Response("A."), Response("B."), "x")
    write_pairs(made, [pair])
    for file in made.rglob("*.*"):
        link(f"set/{file.relative_to(made)}", file.read_bytes())
    (read,) = read_pairs(snapshot / "set")
    assert Path(read.prompt.images[0].path).read_bytes() == PICTURE
    # Its images are known to lie in the store, so that writing the set again copies nothing.
    write_pairs(snapshot / "set", [read])
    assert read_pairs(snapshot / "set") == [read]


def test_absolute_paths_below_the_root(root: Path, tmp_path: Path) -> None:
    """As the user spells the root, as it is behind its links, and as a file: address."""
    (root / "a b.png").write_bytes(PICTURE)
    (tmp_path / "alias").symlink_to(root)
    for start in (root, tmp_path / "alias"):
        for spelled in (root, tmp_path / "alias"):
            intake = ImageIntake(start, ImageStore(tmp_path / "store"))
            assert intake.add(f"{spelled}/a b.png") == intake.add("a b.png")
            assert intake.add(f"file://{spelled}/a%20b.png") == intake.add("a b.png")


@pytest.mark.parametrize(
    ("path", "prefix"),
    [
        ("/elsewhere/data/coco/train2017/a.png", "/elsewhere/data/coco/train2017/"),
        ("../data/a.png", "../data/"),
        ("C:\\data\\coco\\a.png", "C:/data/coco/"),
        ("coco/train2017/a.png", "coco/train2017/"),
    ],
)
def test_the_prefix_that_it_saw_is_named_and_works(
    root: Path, tmp_path: Path, path: str, prefix: str
) -> None:
    (root / "a.png").write_bytes(PICTURE)
    store = ImageStore(tmp_path / "store")
    with pytest.raises(Refused, match="--strip-prefix ") as error:
        ImageIntake(root, store).add(path)
    assert str(error.value).endswith(f"--strip-prefix {prefix}")
    cut = ImageIntake(root, store, prefix)
    assert cut.add(path) == cut.add("a.png")


def test_a_prefix_is_named_where_no_file_fits(root: Path, tmp_path: Path) -> None:
    intake = ImageIntake(root, ImageStore(tmp_path / "store"))
    with pytest.raises(Refused, match=r"--strip-prefix /elsewhere/coco$") as error:
        intake.add("/elsewhere/coco/a.png")
    assert error.value.reason == "path_outside"


def povid_row(image: str) -> dict[str, object]:
    (row,) = case_rows("povid", {"image": image})
    return row


@pytest.mark.parametrize(
    "image", ["/elsewhere/train2017/a.png", "C:\\train2017\\a.png", "x/y/a.png"]
)
def test_povid_takes_paths_of_its_author_by_their_bare_name(
    root: Path, tmp_path: Path, image: str
) -> None:
    (root / "a.png").write_bytes(PICTURE)
    pairs, dropped = imported(
        "povid", write(tmp_path / "p.json", [povid_row(image)]), root
    )
    assert len(pairs) == 1 and dropped == []


@pytest.mark.parametrize("image", ["../x/a.png", "/x/../a.png", "up/a.png"])
def test_povid_takes_no_bare_name_of_a_path_that_climbs(
    root: Path, tmp_path: Path, image: str
) -> None:
    (root / "a.png").write_bytes(PICTURE)
    (root / "up").symlink_to("..")
    path = write(tmp_path / "p.json", [povid_row(image)])
    pairs, dropped = imported("povid", path, root)
    assert pairs == [] and [drop.reason for drop in dropped] == ["path_outside"]


JPEG = encoded(size=(40, 40), format="JPEG")
BASE64 = base64.b64encode(PICTURE).decode()


@pytest.mark.parametrize(
    ("text", "data"),
    [
        (BASE64, PICTURE),
        (base64.encodebytes(JPEG).decode(), JPEG),
        (base64.urlsafe_b64encode(JPEG).decode().rstrip("="), JPEG),
        (f"data:image/png;base64,{BASE64}", PICTURE),
        (f"DATA:;Base64,{BASE64}", PICTURE),
    ],
    ids=["png", "jpeg, broken into lines", "url-safe, unpadded", "data url", "capitals"],
)  # fmt: skip
def test_pictures_as_text(root: Path, tmp_path: Path, text: str, data: bytes) -> None:
    intake = ImageIntake(root, ImageStore(tmp_path / "store"))
    assert is_encoded(text) and decode(text) == data
    assert Path(intake.add(text).path).read_bytes() == data
    # In JSON, what `datasets` has as bytes is base64 as well.
    if not text.lower().startswith("data:"):
        assert intake.add({"bytes": text, "path": None}) == intake.add(data)


@pytest.mark.parametrize(
    ("text", "reason", "what"),
    [
        ("data:image/png;base64,%%%", "bad_row", "base64"),
        ("data:image/png;base64", "bad_row", "data:TYPE"),
        ("data:image/svg+xml,%3Csvg%3E%3C/svg%3E", "image_corrupt", "an SVG drawing"),
        ("data:text/html;base64,PGh0bWw+PC9odG1sPg==", "image_corrupt", "an HTML page"),
        ("QUJD" * 2000, "image_corrupt", "a plain text"),
        ("https://example.org/a.png", "image_url", "an address"),
    ],
)
def test_texts_that_are_no_picture(
    root: Path, tmp_path: Path, text: str, reason: str, what: str
) -> None:
    with pytest.raises(Refused, match=what) as error:
        ImageIntake(root, ImageStore(tmp_path / "store")).add(text)
    assert error.value.reason == reason and len(str(error.value)) < 300


def test_a_long_path_of_base64_letters_is_a_path(root: Path, tmp_path: Path) -> None:
    """64 letters and more without a dot may be a folder's name; the decoded bytes are no picture."""
    path = "train2017/" * 8 + "x" * 20
    (root / path).parent.mkdir(parents=True)
    (root / path).write_bytes(PICTURE)
    assert not is_encoded(path)
    ImageIntake(root, ImageStore(tmp_path / "store")).add(path)


def test_encoded_pictures_pass_importers_that_join_paths(
    root: Path, tmp_path: Path
) -> None:
    image = f"data:image/png;base64,{BASE64}"
    povid = write(tmp_path / "p.json", [povid_row(image)])
    mmpr = write(tmp_path / "m.jsonl", case_rows("mmpr", {"image": [image]}))
    for name, path in (("povid", povid), ("mmpr", mmpr)):
        pairs, dropped = imported(name, path, root)
        assert len(pairs) == 1 and dropped == []
