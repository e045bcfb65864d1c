"""Downloads from a local server that hangs up, refuses or sends something else; damaged archives."""

import dataclasses
import hashlib
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from dulvos.__main__ import main
from dulvos.errors import InputError
from dulvos.study.download import ARCHIVES, Archive, check, download, unpack
from dulvos.study.paper import DAVIS_2017_VAL

CONTENT = np.random.default_rng(0).bytes(300_000)


class Handler(BaseHTTPRequestHandler):
    """Sends the server's `content` with its `status`; the connection is cut after `end` bytes."""

    def do_GET(self) -> None:
        self.server.asked += 1
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content[: self.server.end])


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.url = f"http://127.0.0.1:{server.server_port}/data.zip"
        server.content, server.end, server.status, server.asked = CONTENT, None, 200, 0
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_archive_is_noticed(tmp_path, kind):
    path, folder = tmp_path / "a.zip", tmp_path / "folder"
    with zipfile.ZipFile(path, "w", kind) as file:
        file.writestr("text", CONTENT[:5000])
    whole = path.read_bytes()
    for data in (b"", whole[:3000], *(whole[:at] + b"\xff" * 9 + whole[at + 9:] for at in (34, 2000))):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"a\.zip"):
            unpack(path, folder)
    path.write_bytes(whole)
    unpack(path, folder)
    assert (folder / "text").read_bytes() == CONTENT[:5000] and names(folder) == ["text"]


@pytest.fixture
def archive(dataset, server, tmp_path, monkeypatch) -> Archive:
    """A miniature of DAVIS-2017, served in place of it."""
    with zipfile.ZipFile(tmp_path / "made", "w") as file:
        for path in sorted(dataset.root.rglob("*")):
            if path.is_file() and path.name != "benchmark.json":
                file.write(path, "DAVIS" / path.relative_to(dataset.root))
    server.content = (tmp_path / "made").read_bytes()
    objects = sum(int(sequence.mask(0).max()) for sequence in dataset.sequences)
    counts = {"val": {"sequences": 2, "frames": 12, "objects": objects}}
    mark = hashlib.sha256(server.content).hexdigest()
    small = dataclasses.replace(ARCHIVES["davis2017"], url=server.url, counts=counts, sha256=mark)
    monkeypatch.setitem(ARCHIVES, "davis2017", small)
    return small


def test_the_command_leaves_a_checked_data_set_and_nothing_else(archive, server, tmp_path, capsys):
    to = tmp_path / "to"
    (to / ".davis-2017").mkdir(parents=True)
    (to / ".davis-2017" / "tmp9").touch()  # of a call that was killed
    for _ in range(2):
        assert main(["download", "davis2017", "--to", str(to)]) == 0 and server.asked == 1
        assert names(to) == ["davis-2017"]
        assert names(to / "davis-2017") == ["Annotations", "ImageSets", "JPEGImages"]
    assert archive.title in capsys.readouterr().out
    next((to / "davis-2017/Annotations/480p/translation").iterdir()).unlink()
    assert main(["download", "davis2017", "--to", str(to)]) == 2
    assert "davis-2017" in capsys.readouterr().err


@pytest.mark.parametrize(("status", "end", "sha256", "words"), [
    (404, None, None, "404"), (200, 10_000, None, ""), (200, None, "0" * 64, "0" * 64)])
def test_what_the_server_refuses_or_gets_wrong_is_named_and_nothing_stays(
        archive, server, tmp_path, monkeypatch, status, end, sha256, words):
    server.status, server.end = status, end
    monkeypatch.setitem(ARCHIVES, "davis2017", dataclasses.replace(archive, sha256=sha256))
    with pytest.raises(InputError, match=f"{server.url}.*{words}.*data.zip"):
        download("davis2017", tmp_path / "to")
    assert names(tmp_path / "to" / ".davis-2017") == []


def test_another_structure_than_expected_gets_no_name_that_looks_right(
        archive, server, tmp_path, monkeypatch):
    """The archive is kept, and the next call does not ask for it again."""
    for slip in ({"sequences": 3}, {"frames": 13}, {"objects": 9}):
        counts = {"val": archive.counts["val"] | slip}
        monkeypatch.setitem(ARCHIVES, "davis2017", dataclasses.replace(archive, counts=counts))
        with pytest.raises(InputError, match="2, .*12, .*expected"):
            download("davis2017", tmp_path / "to")
    assert names(tmp_path / "to") == [".davis-2017"] and server.asked == 1
    with zipfile.ZipFile(tmp_path / "to/.davis-2017/data.zip", "w") as file:
        file.writestr("readme", "hello")
    monkeypatch.setitem(ARCHIVES, "davis2017", dataclasses.replace(archive, sha256=None))
    with pytest.raises(InputError, match=r"\.davis-2017.*ImageSets"):
        download("davis2017", tmp_path / "to")


def test_an_archive_without_a_checksum_is_checked_by_its_structure(archive, tmp_path, monkeypatch):
    monkeypatch.setitem(ARCHIVES, "davis2017", dataclasses.replace(archive, sha256=None))
    folder = download("davis2017", tmp_path / "to")
    for files, named in (("JPEGImages/480p/translation/00005.jpg", "translation"),
                         ("Annotations/480p/translation/00005.png", "'masks': 11")):
        gone = (folder / files).rename(tmp_path / "gone")
        with pytest.raises(InputError, match=named):
            check(folder, archive)
        gone.rename(folder / files)
    check(folder, archive)


def test_nothing_is_fetched_without_being_asked_where_to(server):
    with pytest.raises(SystemExit):
        main(["download", "davis2017"])
    with pytest.raises(InputError, match="davis2017, davis2016"):
        download("kinetics", "somewhere")
    for archive in ARCHIVES.values():
        assert archive.url.startswith("https://") and "CC BY-NC" in archive.title


def test_the_expected_counts_are_those_of_davis_2016(shared_data):
    check(shared_data / "DAVIS", ARCHIVES["davis2016"])
    with pytest.raises(InputError, match="20.*1376.*1999"):
        other = dataclasses.replace(ARCHIVES["davis2016"], counts={"val": DAVIS_2017_VAL})
        check(shared_data / "DAVIS", other)
