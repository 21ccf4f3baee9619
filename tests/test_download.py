"""`download_fsdnoisy18k` and `acl_download` against a real web server on this machine.

The server answers Range requests, or not; it can close a connection in the middle of a file, answer slowly or with an
error; and it notes each request and how many bytes of the file it sent.
"""
import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from acl_paper.console import DatasetError
from acl_paper.data import audio_path, load_clips, missing_audio
from acl_paper.download import FSDNOISY18K_MD5, acl_download, download_files, download_fsdnoisy18k

CHUNK = 65536  # the downloader writes whole chunks of this size


class Server(ThreadingHTTPServer):
    """Serves `files` (name -> bytes) on loopback."""

    daemon_threads = True

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.requests = files, []
        self.can_resume, self.cut_after, self.errors, self.pause_s, self.claims = True, {}, {}, 0.0, {}
        self.length_text = None  # what it says instead of a number of bytes

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def gets(self, name):
        return [r for r in self.requests if r["name"] == name and r["method"] == "GET"]


class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        name = self.path.lstrip("/").split("?")[0]
        seen = {"name": name, "method": self.command, "range": self.headers.get("Range"), "sent": 0}
        self.server.requests.append(seen)
        errors = self.server.errors.get(name, [])
        if body and errors:
            return self.send_error(errors.pop(0))
        if name not in self.server.files:
            return self.send_error(404)
        content = self.server.files[name]
        start = int(seen["range"].removeprefix("bytes=").rstrip("-")) if body and seen["range"] and self.server.can_resume else None
        if start is not None and start >= len(content):
            return self.send_error(416)
        self.send_response(200 if start is None else 206)
        if start is not None:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        length = self.server.claims.get(name, len(content)) - (start or 0)
        self.send_header("Content-Length", self.server.length_text or str(length))
        self.end_headers()
        if body:
            self.send_body(content[start or 0:], seen)

    def send_body(self, content, seen):
        """Send the body, or as much as the connection is to live for, once."""
        content = content[: self.server.cut_after.pop(seen["name"], len(content))]
        for at in range(0, len(content), CHUNK):
            try:
                self.wfile.write(content[at:at + CHUNK])
                self.wfile.flush()
            except OSError:  # the client was killed
                return
            seen["sent"] += len(content[at:at + CHUNK])
            time.sleep(self.server.pause_s)

    def log_message(self, *_):
        pass


def zip_bytes(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path.read_bytes()


@pytest.fixture
def files(tmp_path):
    """Four small zips in the layout of FSDnoisy18k; the training part is some 500 kB."""
    noise = random.Random(0)
    train = "fname,label,aso_id,manually_verified,noisy_small\n" + "".join(f"{i}.wav,{'Rain' if i % 2 else 'Wind'},/m/{i % 2},1,0\n" for i in range(5))
    contents = {
        "meta": {"FSDnoisy18k.meta/train.csv": train, "FSDnoisy18k.meta/test.csv": "fname,label,aso_id\n0.wav,Wind,/m/0\n"},
        "doc": {"FSDnoisy18k.doc/README.md": "about"},
        "audio_test": {"0.wav": noise.randbytes(1000)},  # without the top folder
        "audio_train": {"FSDnoisy18k.audio_train/": b"", **{f"FSDnoisy18k.audio_train/{i}.wav": noise.randbytes(100_000) for i in range(5)}},
    }
    return {f"FSDnoisy18k.{part}.zip": zip_bytes(tmp_path / "made.zip", members) for part, members in contents.items()}


@pytest.fixture
def server(files, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server(files)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def sums(files):
    return {part: hashlib.md5(files[f"FSDnoisy18k.{part}.zip"]).hexdigest() for part in FSDNOISY18K_MD5}


def names(folder):
    return sorted(p.name for p in folder.iterdir())


FOLDERS = ["FSDnoisy18k.audio_test", "FSDnoisy18k.audio_train", "FSDnoisy18k.doc", "FSDnoisy18k.meta"]
TRAIN = "FSDnoisy18k.audio_train.zip"


def test_fetches_checks_and_unpacks(server, files, tmp_path, capsys):
    dest = download_fsdnoisy18k(tmp_path / "data" / "set", base_url=server.url, md5s=sums(files))
    assert names(dest) == FOLDERS
    clips = load_clips(dest)
    assert len(clips) == 6 and missing_audio(dest, clips) == []
    with zipfile.ZipFile(io.BytesIO(files[TRAIN])) as archive:
        assert audio_path(dest, "train", "3.wav").read_bytes() == archive.read("FSDnoisy18k.audio_train/3.wav")
    out = capsys.readouterr().out
    assert "\r" not in out and "FSDnoisy18k.audio_train.zip" in out and "unpacking FSDnoisy18k.meta" in out


def test_second_call_fetches_nothing(server, files, tmp_path, capsys):
    dest = download_fsdnoisy18k(tmp_path / "set", base_url=server.url, md5s=sums(files))
    before = {p: p.stat().st_mtime_ns for p in dest.rglob("*")}
    server.requests.clear()
    capsys.readouterr()
    download_fsdnoisy18k(dest, base_url=server.url, md5s=sums(files))
    assert server.requests == []
    assert {p: p.stat().st_mtime_ns for p in dest.rglob("*")} == before
    assert capsys.readouterr().out.count("is already there and is left as it is") == 4


def test_some_parts(server, files, tmp_path):
    dest = download_fsdnoisy18k(tmp_path / "set", parts=["doc", "meta"], base_url=server.url, md5s=sums(files), keep_zips=True)
    assert names(dest) == ["FSDnoisy18k.doc", "FSDnoisy18k.doc.zip", "FSDnoisy18k.meta", "FSDnoisy18k.meta.zip"]
    assert (dest / "FSDnoisy18k.doc.zip").read_bytes() == files["FSDnoisy18k.doc.zip"]


def test_wrong_checksum(server, files, tmp_path):
    expected = sums(files)
    changed = bytearray(files[TRAIN])
    changed[1000] ^= 1
    server.files = files | {TRAIN: bytes(changed)}
    with pytest.raises(DatasetError) as caught:
        download_fsdnoisy18k(tmp_path / "set", base_url=server.url, md5s=expected)
    for text in (TRAIN, expected["audio_train"], hashlib.md5(changed).hexdigest(), "removed"):
        assert text in str(caught.value)
    assert names(tmp_path / "set") == [name for name in FOLDERS if name != "FSDnoisy18k.audio_train"]
    server.files = files  # mended: the same call gets what is missing, and only that
    server.requests.clear()
    assert names(download_fsdnoisy18k(tmp_path / "set", base_url=server.url, md5s=expected)) == FOLDERS
    assert {r["name"] for r in server.requests} == {TRAIN}


def test_interrupted_then_resumed_by_a_second_call(server, files, tmp_path):
    server.cut_after = {TRAIN: 3 * CHUNK}
    with pytest.raises(DatasetError, match="the same command resumes"):
        download_fsdnoisy18k(tmp_path / "set", base_url=server.url, md5s=sums(files), retries=0)
    assert names(tmp_path / "set") == sorted([*(f for f in FOLDERS if f != "FSDnoisy18k.audio_train"), TRAIN + ".part"])
    assert (tmp_path / "set" / f"{TRAIN}.part").read_bytes() == files[TRAIN][: 3 * CHUNK]
    assert names(download_fsdnoisy18k(tmp_path / "set", base_url=server.url, md5s=sums(files), retries=0)) == FOLDERS
    first, second = server.gets(TRAIN)
    assert second["range"] == f"bytes={3 * CHUNK}-"
    assert (first["sent"], second["sent"]) == (3 * CHUNK, len(files[TRAIN]) - 3 * CHUNK)


def test_interrupted_and_resumed_within_one_call(server, files, tmp_path, capsys):
    server.cut_after, server.errors = {TRAIN: 2 * CHUNK}, {"FSDnoisy18k.meta.zip": [503]}
    assert names(download_fsdnoisy18k(tmp_path / "set", base_url=server.url, md5s=sums(files), retries=1)) == FOLDERS
    assert [r["range"] for r in server.gets(TRAIN)] == ["bytes=0-", f"bytes={2 * CHUNK}-"]
    assert sum(r["sent"] for r in server.gets(TRAIN)) == len(files[TRAIN])
    assert len(server.gets("FSDnoisy18k.meta.zip")) == 2
    waits = [line for line in capsys.readouterr().out.splitlines() if "The next try is in 2 s." in line]
    assert [line.partition(":")[0] for line in waits] == ["FSDnoisy18k.meta.zip", TRAIN]


def test_a_server_that_cannot_resume_starts_over(server, files, tmp_path):
    server.can_resume, server.cut_after = False, {TRAIN: 3 * CHUNK}
    assert names(download_fsdnoisy18k(tmp_path / "set", base_url=server.url, md5s=sums(files), retries=1)) == FOLDERS
    assert [r["sent"] for r in server.gets(TRAIN)] == [3 * CHUNK, len(files[TRAIN])]


def test_stopped_between_the_last_byte_and_the_check(server, files, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / f"{TRAIN}.part").write_bytes(files[TRAIN])
    assert "FSDnoisy18k.audio_train" in names(download_fsdnoisy18k(tmp_path / "set", parts=["audio_train"], base_url=server.url, md5s=sums(files)))
    assert [r["sent"] for r in server.gets(TRAIN)] == [0]


def test_stopped_while_unpacking(server, files, tmp_path):
    unfinished = tmp_path / "set" / "FSDnoisy18k.audio_train.part"
    unfinished.mkdir(parents=True)
    (unfinished / "0.wav").write_bytes(b"half a cl")
    dest = download_fsdnoisy18k(tmp_path / "set", parts=["audio_train"], base_url=server.url, md5s=sums(files))
    assert names(dest) == ["FSDnoisy18k.audio_train"]
    assert audio_path(dest, "train", "0.wav").stat().st_size == 100_000


@pytest.mark.parametrize("member", ["../../evil.txt", "/evil.txt", "FSDnoisy18k.audio_test/../../evil.txt"])
def test_members_that_lead_out_of_the_folder_are_refused(server, files, tmp_path, member):
    name = "FSDnoisy18k.audio_test.zip"
    server.files = files | {name: zip_bytes(tmp_path / "made.zip", {"0.wav": b"good", member: b"gotcha"})}
    with pytest.raises(DatasetError, match="leads out of the folder"):
        download_fsdnoisy18k(tmp_path / "set", parts=["audio_test"], base_url=server.url, md5s=sums(server.files))
    assert list(tmp_path.rglob("evil.txt")) == [] and not Path("/evil.txt").exists()
    assert names(tmp_path / "set") == [name]  # nothing unpacked


def test_symbolic_links_are_refused(server, files, tmp_path):
    link = zipfile.ZipInfo("0.wav")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "made.zip", "w") as archive:
        archive.writestr(link, "/etc/hostname")
    server.files = files | {"FSDnoisy18k.audio_test.zip": (tmp_path / "made.zip").read_bytes()}
    with pytest.raises(DatasetError, match="leads out of the folder"):
        download_fsdnoisy18k(tmp_path / "set", parts=["audio_test"], base_url=server.url, md5s=sums(server.files))


def test_what_was_there_is_left_as_it_is(server, files, tmp_path):
    mine = tmp_path / "set" / "FSDnoisy18k.audio_train" / "mine.wav"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"my own recording")
    (tmp_path / "set" / "FSDnoisy18k.doc.zip").write_bytes(files["FSDnoisy18k.doc.zip"])
    dest = download_fsdnoisy18k(tmp_path / "set", base_url=server.url, md5s=sums(files))
    assert names(mine.parent) == ["mine.wav"] and mine.read_bytes() == b"my own recording"
    assert names(dest) == sorted([*FOLDERS, "FSDnoisy18k.doc.zip"])  # the user's own zip was used and kept
    assert server.gets(TRAIN) == server.gets("FSDnoisy18k.doc.zip") == []


def test_a_foreign_zip_is_not_touched(server, files, tmp_path):
    foreign = tmp_path / "set" / "FSDnoisy18k.meta.zip"
    foreign.parent.mkdir()
    foreign.write_bytes(b"something else")
    with pytest.raises(DatasetError, match="It was not touched"):
        download_fsdnoisy18k(tmp_path / "set", base_url=server.url, md5s=sums(files))
    assert foreign.read_bytes() == b"something else" and names(tmp_path / "set") == [foreign.name]


def test_a_missing_file_is_not_asked_for_again(server, files, tmp_path):
    server.files = {}
    with pytest.raises(DatasetError, match="404"):
        download_fsdnoisy18k(tmp_path / "set", base_url=server.url, md5s=sums(files), retries=5)
    assert len(server.gets("FSDnoisy18k.meta.zip")) == 1


def test_no_server(files, tmp_path):
    with pytest.raises(DatasetError, match="could not be fetched"):
        download_fsdnoisy18k(tmp_path / "set", base_url="http://127.0.0.1:9", md5s=sums(files), retries=0)


def test_too_little_space_is_seen_before_anything_is_fetched(server, files, tmp_path):
    server.claims = {TRAIN: 10**18}
    with pytest.raises(DatasetError, match="GB are free"):
        download_fsdnoisy18k(tmp_path / "set", base_url=server.url, md5s=sums(files))
    assert {r["method"] for r in server.requests} == {"HEAD"} and names(tmp_path / "set") == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full to stand for a full disk")
def test_a_full_disk(server, files, tmp_path):
    part = tmp_path / "set" / f"{TRAIN}.part"
    part.parent.mkdir()
    part.symlink_to("/dev/full")
    with pytest.raises(DatasetError, match="is full"):
        download_fsdnoisy18k(tmp_path / "set", parts=["audio_train"], base_url=server.url, md5s=sums(files))


# The command itself, as a user runs it.

COMMAND = [str(Path(sys.executable).with_name("acl_download"))]


@pytest.fixture
def md5_file(files, tmp_path):
    path = tmp_path / "MD5SUMS"
    path.write_text("".join(f"{hashlib.md5(content).hexdigest()}  {name}\n" for name, content in files.items()))
    return path


def run(*arguments, cwd):
    return subprocess.run([*COMMAND, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=120)


def test_command(server, md5_file, tmp_path):
    done = run("--dest", "my/data", "--base_url", server.url, "--md5s", md5_file, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert names(tmp_path / "my" / "data") == FOLDERS
    assert "5 training clips and 1 test clips in 2 classes" in done.stdout
    assert "-p subset clean -p data_dir my/data" in done.stdout
    assert "do not compare with the paper's" in done.stdout and "\r" not in done.stdout


def test_command_default_folder(server, md5_file, tmp_path):
    done = run("--parts", "meta,doc", "--base_url", server.url, "--md5s", md5_file, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert names(tmp_path / "data" / "FSDnoisy18k") == ["FSDnoisy18k.doc", "FSDnoisy18k.meta"]
    assert "not complete, FSDnoisy18k.audio_train, FSDnoisy18k.audio_test not there yet" in done.stdout


def test_command_tells_other_data_from_fsdnoisy18k(server, tmp_path):
    """Without --md5s the published sums hold, so these small zips are refused in one line and without a traceback."""
    done = run("--dest", "set", "--base_url", server.url, cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("acl_download: FSDnoisy18k.meta.zip") and FSDNOISY18K_MD5["meta"] in done.stderr
    assert names(tmp_path / "set") == []


def test_command_killed_and_run_again(server, files, md5_file, tmp_path):
    arguments = ["--dest", "set", "--parts", "audio_train", "--base_url", server.url, "--md5s", str(md5_file)]
    server.pause_s = 0.5
    process = subprocess.Popen([*COMMAND, *arguments], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    part = tmp_path / "set" / f"{TRAIN}.part"
    for _ in range(600):
        if part.exists() and part.stat().st_size >= CHUNK:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert names(tmp_path / "set") == [part.name]
    kept, server.pause_s = part.stat().st_size, 0.0
    assert 0 < kept < len(files[TRAIN])
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert names(tmp_path / "set") == ["FSDnoisy18k.audio_train"]
    assert server.gets(TRAIN)[-1]["range"] == f"bytes={kept}-"
    assert server.gets(TRAIN)[-1]["sent"] == len(files[TRAIN]) - kept


def test_two_downloads_at_once(server, files, md5_file, tmp_path):
    """The second one waits, says for what, and fetches nothing of its own."""
    server.pause_s = 0.1
    arguments = ["--dest", "set", "--base_url", server.url, "--md5s", str(md5_file)]
    both = [subprocess.Popen([*COMMAND, *arguments], cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(2)]
    told = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert names(tmp_path / "set") == FOLDERS
    assert len(server.gets(TRAIN)) == 1 and server.gets(TRAIN)[0]["sent"] == len(files[TRAIN])
    assert sorted("waiting: set is downloaded to by another process" in text for text in told) == [False, True]


def test_a_call_that_was_killed_last_of_all(server, files, tmp_path):
    """The folder has its name, the zip it came from is still there: the next call removes it, and fetches nothing."""
    dest = download_fsdnoisy18k(tmp_path / "set", base_url=server.url, md5s=sums(files))
    (dest / f"{TRAIN}.part").write_bytes(files[TRAIN])
    server.requests.clear()
    download_fsdnoisy18k(dest, base_url=server.url, md5s=sums(files))
    assert names(dest) == FOLDERS and server.requests == []


def test_nothing_has_its_final_name_before_it_is_on_the_disk(server, files, tmp_path, monkeypatch):
    """Otherwise a power cut leaves empty files that look complete."""
    order = []
    for name in ("fsync", "sync", "replace", "rename"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *arguments, name=name, real=real: (order.append(name), real(*arguments))[1])
    download_fsdnoisy18k(tmp_path / "set", parts=["doc"], base_url=server.url, md5s=sums(files), keep_zips=True)
    assert order == ["sync", "rename", "fsync", "replace", "fsync"]  # the folder; the zip, its new name


@pytest.mark.parametrize("text", ["many", "-5", "1e6", ""])
def test_a_length_that_is_no_number(server, files, tmp_path, text):
    """As a broken proxy may send it: what comes is still checked by its sum."""
    server.length_text = text or " "
    dest = download_fsdnoisy18k(tmp_path / "set", parts=["meta"], base_url=server.url, md5s=sums(files))
    assert names(dest) == ["FSDnoisy18k.meta"]


def encrypted(content):
    """A zip file with the flag that says that its first member is encrypted."""
    changed = bytearray(content)
    changed[6] |= 1
    directory = content.index(b"PK\x01\x02")
    changed[directory + 8] |= 1
    return bytes(changed)


@pytest.mark.parametrize("damage", [encrypted, lambda content: content[:-30], lambda content: b"PK", lambda content: content.replace(b"about", b"ABOUT")],
                         ids=["encrypted", "cut short", "two bytes", "other content"])
def test_a_zip_that_cannot_be_unpacked(server, files, tmp_path, damage):
    """Its sum is the published one: the mirror's list is of such a file. It is named, and kept to be looked at."""
    name = "FSDnoisy18k.doc.zip"
    server.files = files | {name: damage(files[name])}
    with pytest.raises(DatasetError, match=name):
        download_fsdnoisy18k(tmp_path / "set", parts=["doc"], base_url=server.url, md5s=sums(server.files))
    assert "FSDnoisy18k.doc" not in names(tmp_path / "set") and name in names(tmp_path / "set")


def test_names_that_lead_out_of_the_folder(server, tmp_path):
    for name in ("../evil.pt", "a/../../evil.pt", "/evil.pt"):
        with pytest.raises(DatasetError, match="leads out of the folder"):
            download_files(tmp_path / "got", server.url, {name: "0" * 64})
    assert server.requests == [] and list(tmp_path.rglob("evil.pt")) == []


@pytest.mark.parametrize(("arguments", "told"), [
    (["--dest", "~nosuchuser/data"], "~nosuchuser/data: there is no such home folder"),
    (["--base_url", "zenodo.org"], "is no address"),
    (["--dest", "a file"], "a file is a file, not a folder"),
    (["--dest", "a file/data"], "cannot take the download: Not a directory"),
    (["--md5s", "no list"], "no list cannot be read"),
    (["--parts", "audio"], "There is no part audio"),
])
def test_command_says_what_is_wrong_in_one_line(server, tmp_path, arguments, told):
    (tmp_path / "a file").touch()
    (tmp_path / "settings.ini").touch()
    done = run("--retries", 0, *arguments, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("acl_download: ") and told in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(("arguments", "told"), [
    ({"parts": ""}, "--parts names none: give all, or some of meta,doc,audio_test,audio_train"), ({"parts": " , "}, "--parts names none"),
    ({"weights": True, "embeddings": True}, "give one of them"), ({"weights": True, "parts": "meta"}, "are of FSDnoisy18k, not of --weights"),
    ({"embeddings": True, "md5s": "list"}, "are of FSDnoisy18k, not of --embeddings"), ({"md5s": "list"}, "list lists no zip files"),
    ({"md5s": "."}, "cannot be read: Is a directory"), ({"parts": "meta,meta,x"}, "There is no part x"),
    *[({"base_url": url}, "is no address") for url in ("http://" + "a" * 300, "http://[::1", "http://a:99999", "file:///tmp", "http://", "http://a b", "http://x\udc80")],
])
def test_odd_arguments(server, tmp_path, monkeypatch, arguments, told):
    """Nothing is asked for where what was meant is not known."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list").touch()
    with pytest.raises(DatasetError, match=told):
        acl_download(**{"base_url": server.url, "retries": 0, "dest": "set"} | arguments)
    assert server.requests == []


def test_command_stopped_by_ctrl_c(server, md5_file, tmp_path):
    server.pause_s = 0.5
    process = subprocess.Popen([*COMMAND, "--dest", "set", "--parts", "audio_train", "--base_url", server.url, "--md5s", str(md5_file)],
                               cwd=tmp_path, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not server.gets(TRAIN):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and told.strip() == "acl_download: stopped. The same command resumes from here."


def test_files_are_checked_one_by_one_and_fetched_once(server, tmp_path):
    """The way the published embeddings and weights are fetched: resumed, checked by SHA-256, never replaced."""
    contents = {"a/0.pt": random.Random(1).randbytes(3 * CHUNK), "a/1.pt": b"one", "b/0.pt": b"two"}
    server.files.update(contents)
    server.cut_after["a/0.pt"] = CHUNK
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    assert len(download_files(tmp_path / "got", server.url, sums)) == 3
    assert {name: (tmp_path / "got" / name).read_bytes() for name in contents} == contents
    assert [r["range"] for r in server.gets("a/0.pt")] == ["bytes=0-", f"bytes={CHUNK}-"]
    assert download_files(tmp_path / "got", server.url, sums) == [], "a second call fetches nothing"
    (tmp_path / "got/a/1.pt").write_bytes(b"mine")
    with pytest.raises(DatasetError, match="Move it away"):
        download_files(tmp_path / "got", server.url, sums)
    assert (tmp_path / "got/a/1.pt").read_bytes() == b"mine"
    with pytest.raises(DatasetError, match="is not the published file"):
        download_files(tmp_path / "other", server.url, sums | {"b/0.pt": "0" * 64})
    assert sorted(p.name for p in (tmp_path / "other").rglob("*") if p.is_file()) == ["0.pt", "1.pt"], "the wrong file is not kept"


def test_command_fetches_the_published_weights_only_if_they_are(server, tmp_path):
    server.files["VGG_best.pth"] = b"something else"
    command = [Path(sys.executable).with_name("acl_download"), "--weights", "--dest", tmp_path / "w", "--base_url", server.url]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0 and "VGG_best.pth is not the published file" in done.stderr
