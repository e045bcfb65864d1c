"""Downloads from a local server that breaks off, forgets ranges, changes the file or lies; archives that lead out."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from dulvos.__main__ import main
from dulvos.datasets import load_davis
from dulvos.errors import InputError
from dulvos.study import download
from dulvos.study.download import ARCHIVES, check, fetch, unpack

CONTENT = np.random.default_rng(0).bytes(300_000)


class Server(ThreadingHTTPServer):
    """Serves `content`; `breaks`: the bytes after which each connection in turn is cut; `ranges`: whether it honours Range."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.tag, self.breaks, self.ranges, self.lie, self.status = CONTENT, '"one"', [], True, 0, 200
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/data.zip"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        if server.status != 200:
            self.send_error(server.status)
            return
        start, total = 0, len(server.content)
        if wanted and server.ranges and self.headers.get("If-Range", server.tag) == server.tag:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            if start >= total:
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start + server.lie}-{total - 1}/{total}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(total - start))
        if server.tag:
            self.send_header("ETag", server.tag)
        self.end_headers()
        stop = start + server.breaks.pop(0) if server.breaks else total
        self.wfile.write(server.content[start:stop])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setattr(download, "BLOCK", 1 << 12)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "data.zip"


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_download_that_breaks_off_goes_on_where_it_was(server, target):
    server.breaks = [100_000, 50_000]
    assert fetch(server.url, target, size=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest()).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=150000-"] and names(target.parent) == ["data.zip"]
    fetch(server.url, target, size=len(CONTENT))
    assert len(server.asked) == 3  # what is there is not asked for again


def test_so_does_a_later_call(server, target):
    server.breaks = [70_000, 0, 0, 0]
    with pytest.raises(InputError, match="3 attempts .* 70,000 bytes are kept"):
        fetch(server.url, target, attempts=3)
    assert names(target.parent) == ["data.zip.part", "data.zip.part.tag"]
    server.breaks = []
    assert fetch(server.url, target).read_bytes() == CONTENT and server.asked[-1] == "bytes=70000-"


def test_a_server_without_ranges_is_read_from_the_beginning(server, target):
    server.ranges, server.breaks = False, [100_000]
    assert fetch(server.url, target).read_bytes() == CONTENT  # and not a part followed by the whole
    server.breaks = [10_000] * 10
    target.unlink()
    with pytest.raises(InputError, match="brought nothing"):
        fetch(server.url, target, attempts=3)


@pytest.mark.parametrize("tag", ['"two"', ""])
def test_a_file_that_changed_meanwhile_is_not_patched_together(server, target, tag):
    server.breaks = [100_000, 0]
    with pytest.raises(InputError):
        fetch(server.url, target, attempts=1)
    server.content, server.tag, server.breaks = CONTENT[::-1], tag, []
    if tag:
        assert fetch(server.url, target).read_bytes() == CONTENT[::-1]
    else:  # a server without tags: the checksum notices
        (target.parent / "data.zip.part.tag").unlink()
        with pytest.raises(InputError, match="SHA-256 .* removed"):
            fetch(server.url, target, sha256=hashlib.sha256(server.content).hexdigest())
        assert names(target.parent) == []


def test_a_part_that_is_no_part_of_the_file_is_given_up(server, target):
    part = target.with_name("data.zip.part")
    part.write_bytes(bytes(len(CONTENT) + 5))
    assert fetch(server.url, target).read_bytes() == CONTENT
    target.unlink()
    part.write_bytes(CONTENT[:1000])
    server.lie = 7  # the first byte that the server says to send is another
    assert fetch(server.url, target).read_bytes() == CONTENT and server.asked[-2:] == ["bytes=1000-", None]
    target.unlink()
    part.write_bytes(CONTENT)  # whole, but cut off before it was renamed
    assert fetch(server.url, target, size=len(CONTENT)).read_bytes() == CONTENT


def test_another_file_than_expected_is_refused_before_it_is_read(server, target):
    with pytest.raises(InputError, match="offers 300,000 bytes, expected 299,999"):
        fetch(server.url, target, size=299_999)
    assert names(target.parent) == []
    with pytest.raises(InputError, match="SHA-256"):
        fetch(server.url, target, sha256="0" * 64)
    assert names(target.parent) == []
    target.write_bytes(b"mine")  # a file of the user's is named, not removed
    with pytest.raises(InputError, match="has 4 bytes, expected 300,000; remove it"):
        fetch(server.url, target, size=300_000)
    assert target.read_bytes() == b"mine"


def test_a_refusal_is_said_at_once_and_trouble_after_some_attempts(server, target):
    server.status = 404
    with pytest.raises(InputError, match="answers 404"):
        fetch(server.url, target)
    assert len(server.asked) == 1
    server.status = 503
    with pytest.raises(InputError, match="4 attempts"):
        fetch(server.url, target, attempts=4)
    assert len(server.asked) == 5


def test_too_little_space_is_said_before_reading(server, target, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    with pytest.raises(InputError, match="are needed"):
        fetch(server.url, target)


def link() -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo("link")
    entry.external_attr = 0o120777 << 16
    return entry


@pytest.mark.parametrize("name", ["../out.txt", "a/../../out.txt", "/out.txt", "..\\out.txt", "C:/out.txt", link()])
def test_no_entry_leads_out_of_the_folder(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as file:
        file.writestr("fine.txt", "fine")
        file.writestr(name, "/etc")
    with pytest.raises(InputError, match="leads out of the folder"):
        unpack(tmp_path / "bad.zip", tmp_path / "in" / "folder")
    assert names(tmp_path) == ["bad.zip"]


def test_a_damaged_archive_is_noticed(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("text", CONTENT[:5000])
    whole = (tmp_path / "a.zip").read_bytes()
    for data in (whole[:3000], whole[:2000] + b"X" + whole[2001:], b""):
        (tmp_path / "a.zip").write_bytes(data)
        with pytest.raises(InputError, match="damaged"):
            unpack(tmp_path / "a.zip", tmp_path / "folder")
    (tmp_path / "a.zip").write_bytes(whole)
    unpack(tmp_path / "a.zip", tmp_path / "folder")
    assert (tmp_path / "folder/text").read_bytes() == CONTENT[:5000] and names(tmp_path / "folder") == ["text"]


@pytest.fixture
def archive(dataset, server, tmp_path, monkeypatch):  # noqa: F811
    """A miniature of DAVIS-2017, served in place of it."""
    with zipfile.ZipFile(tmp_path / "made", "w") as file:
        for path in sorted(dataset.root.rglob("*")):
            if path.is_file() and path.name != "benchmark.json":
                file.write(path, "DAVIS" / path.relative_to(dataset.root))
    server.content = (tmp_path / "made").read_bytes()
    sequences = dataset.sequences
    counts = {"val": (2, 12, sum(int(sequence.mask(0).max()) for sequence in sequences))}
    archive = dataclasses.replace(ARCHIVES["davis2017"], url=server.url, counts=counts, size=len(server.content),
                                  sha256=hashlib.sha256(server.content).hexdigest())
    monkeypatch.setitem(ARCHIVES, "davis2017", archive)
    return archive


def test_the_command_leaves_a_checked_data_set_and_nothing_else(archive, server, tmp_path, capsys):
    server.breaks = [10_000, 20_000]
    to = tmp_path / "to"
    assert main(["download", "davis2017", "--to", str(to)]) == 0
    assert names(to) == ["davis-2017"] and names(to / "davis-2017") == ["Annotations", "ImageSets", "JPEGImages"]
    assert "CC BY-NC 4.0" in capsys.readouterr().out and len(server.asked) == 3
    assert main(["download", "davis2017", "--to", str(to)]) == 0 and len(server.asked) == 3
    next((to / "davis-2017/Annotations/480p/translation").iterdir()).unlink()  # the folder is not in the order of names
    assert main(["download", "davis2017", "--to", str(to)]) == 2
    assert re.search("missing|no such|11 masks|12 frames", capsys.readouterr().err)


@pytest.fixture
def older(dataset, server, tmp_path, monkeypatch):  # noqa: F811
    """A miniature of DAVIS-2016, served in place of it in its layout: 0/255 masks, lists of paths, two resolutions."""
    with zipfile.ZipFile(tmp_path / "made", "w") as file:
        lines = []
        for sequence in dataset.sequences:
            for index in range(len(sequence.video)):
                name = f"{sequence.name}/{sequence.video.frame_name(index)}"
                mask = Image.fromarray(255 * (sequence.mask(index) > 0).astype(np.uint8))
                for resolution in ("480p", "1080p"):
                    file.write(sequence.video.path / f"{index:05d}.jpg", f"DAVIS/JPEGImages/{resolution}/{name}.jpg")
                    mask.save(tmp_path / "mask.png")
                    file.write(tmp_path / "mask.png", f"DAVIS/Annotations/{resolution}/{name}.png")
                lines.append(f"/JPEGImages/480p/{name}.jpg /Annotations/480p/{name}.png\n")
        file.writestr("DAVIS/ImageSets/480p/train.txt", "".join(lines[:6]))
        file.writestr("DAVIS/ImageSets/480p/val.txt", "".join(lines[6:]))
    server.content = (tmp_path / "made").read_bytes()
    archive = dataclasses.replace(ARCHIVES["davis2016"], url=server.url, counts={"train": (1, 6, 1), "val": (1, 6, 1)})
    monkeypatch.setitem(ARCHIVES, "davis2016", archive)
    return archive


def test_davis_2016_is_checked_by_its_structure_for_want_of_a_checksum(older, server, tmp_path, monkeypatch, capsys):
    assert older.size is older.sha256 is None
    server.breaks, to = [10_000, 20_000], tmp_path / "to"
    assert main(["download", "davis2016", "--to", str(to)]) == 0 and len(server.asked) == 3
    assert names(to) == ["davis-2016"] and load_davis(to / "davis-2016", "val").name == "DAVIS-2016"
    assert main(["download", "davis2016", "--to", str(to)]) == 0 and len(server.asked) == 3
    frames = to / "davis-2016/JPEGImages/480p/translation"
    for gone in (frames / "00003.jpg", to / "davis-2016/Annotations/480p/translation/00003.png"):
        content = gone.read_bytes()
        gone.unlink()
        assert main(["download", "davis2016", "--to", str(to)]) == 2
        assert f"{gone}: missing on disk" in capsys.readouterr().err
        gone.write_bytes(content)
    monkeypatch.setitem(ARCHIVES, "davis2016", dataclasses.replace(older, counts={"train": (1, 6, 1), "val": (2, 6, 1)}))
    assert main(["download", "davis2016", "--to", str(tmp_path / "other")]) == 2
    assert "val has 1 sequences, 6 frames" in capsys.readouterr().err and names(tmp_path / "other") == ["data.zip"]


def test_what_is_missing_from_the_lists_of_davis_2016_too_is_counted(older, tmp_path, capsys):
    to = tmp_path / "to"
    main(["download", "davis2016", "--to", str(to)])
    listed = to / "davis-2016/ImageSets/480p/val.txt"
    listed.write_text("".join(listed.read_text().splitlines(keepends=True)[:-1]))
    for folder, suffix in (("JPEGImages", "jpg"), ("Annotations", "png")):
        (to / f"davis-2016/{folder}/480p/late-entry/00005.{suffix}").unlink()
    assert main(["download", "davis2016", "--to", str(to)]) == 2
    assert "val has 1 sequences, 5 frames" in capsys.readouterr().err


@pytest.mark.parametrize("counts", [(3, 12, 2), (2, 13, 2), (2, 12, 9)])
def test_another_structure_than_expected_leaves_nothing_that_looks_right(archive, tmp_path, monkeypatch, counts, capsys):
    monkeypatch.setitem(ARCHIVES, "davis2017", dataclasses.replace(archive, counts={"val": counts}))
    assert main(["download", "davis2017", "--to", str(tmp_path / "to")]) == 2
    assert "has 2 sequences, 12 frames" in capsys.readouterr().err and names(tmp_path / "to") == ["data.zip"]


def test_an_archive_of_something_else_is_named(archive, server, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "other", "w") as file:
        file.writestr("readme", "hello")
    server.content = (tmp_path / "other").read_bytes()
    monkeypatch.setitem(ARCHIVES, "davis2017", dataclasses.replace(archive, size=None, sha256=None))
    with pytest.raises(InputError, match="holds no folder ImageSets"):
        download.download("davis2017", tmp_path / "to")


def test_nothing_is_fetched_without_being_asked_where_to(server):
    with pytest.raises(SystemExit):
        main(["download", "davis2017"])
    with pytest.raises(InputError, match="davis2017, davis2016"):
        download.download("kinetics", "somewhere")
    assert all(archive.url.startswith("https://") and archive.licence for archive in ARCHIVES.values())


def test_the_expected_counts_are_those_of_davis_2016(shared_data):
    check(shared_data / "DAVIS", ARCHIVES["davis2016"])
    with pytest.raises(InputError, match="val has 20 sequences, 1,376 frames, 20 objects"):
        check(shared_data / "DAVIS", dataclasses.replace(ARCHIVES["davis2016"], counts={"val": (30, 1_999, 61)}))
