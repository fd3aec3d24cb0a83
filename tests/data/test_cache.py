"""A corpus in the cache is checked whenever it is opened, and one process at a time writes it."""

import functools
import json
import random
import re
import resource
import signal
import subprocess
import sys

import pytest

from data import DataConfig, open_corpus
from tests.conftest import ROOT
from tests.data.test_corpora import TEXT, all_bytes, stored_in
from utils import UserError
from utils.locks import try_lock


@pytest.fixture
def read(tmp_path):
    (tmp_path / "text.txt").write_bytes(TEXT)
    (tmp_path / ".hidden").write_bytes(TEXT)
    settings = DataConfig(name="files", path=str(tmp_path / "*.txt"), cache_dir=str(tmp_path / "cache"))
    return functools.partial(open_corpus, settings)


DAMAGED = r"warning: the corpus in .* is damaged or incomplete: it is read again"


@pytest.mark.parametrize("seed", range(3))
def test_every_damaged_byte_is_noticed(read, seed, capsys):
    path = read().folder / "bytes.bin"
    draw = random.Random(seed)
    damaged = bytearray(path.read_bytes())
    damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
    path.write_bytes(damaged)
    capsys.readouterr()
    assert all_bytes(read()) == TEXT
    assert re.match(DAMAGED, capsys.readouterr().err)
    assert path.read_bytes() == TEXT


NONSENSE = ["", "null", "[]", "{}", "1", '"text"', "[" * 10**5, '{"sizes": ' * 10**5, "\ud800", "NaN", "9" * 5000]
CHANGES = {
    "sizes": [None, [1, 2, 3], {}, {"train": 1}, {"train": "1", "valid": 1, "test": 1}, 7, {"a": [[]]}, True],
    "sha256": [None, [], {}, "x", {"train": 5, "valid": [], "test": {}}],
    "name": [None, 5, []],
    "source": [None, {"a": 1}, 0.5],
    "report": [None, [], {}, 5, "x", {"left_out": None}],
    "unknown": [1],
}


@pytest.mark.parametrize("content", NONSENSE, ids=lambda content: content[:10])
def test_nonsense_in_corpus_json_is_damage(read, content, capsys):
    path = read().folder / "corpus.json"
    path.write_bytes(content.encode("utf-8", errors="surrogatepass"))
    capsys.readouterr()
    assert all_bytes(read()) == TEXT
    assert re.match(DAMAGED, capsys.readouterr().err)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in CHANGES.items() for value in values])
def test_values_that_do_not_fit_are_damage(read, name, value, capsys):
    path = read().folder / "corpus.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {name: value}))
    capsys.readouterr()
    assert all_bytes(read()) == TEXT
    assert re.match(DAMAGED, capsys.readouterr().err)


@pytest.mark.parametrize("change", [{"files": "1"}, {"bytes": -1}, {"rows": None}, {"revision": 5}, {"left_out": [[]]},
    {"left_out": [{"unit": 1, "reason": "", "count": 1, "bytes": 1, "names": []}]},
    {"left_out": [{"unit": "", "reason": "", "count": True, "bytes": 1, "names": []}]},
    {"left_out": [{"unit": "", "reason": "", "count": 1, "bytes": 1, "names": [None]}]},
    {"left_out": [{"unit": "", "reason": "", "count": 1, "bytes": 1}]},
])  # fmt: skip
def test_reports_that_do_not_fit_are_damage(read, change, capsys):
    path = read().folder / "corpus.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"report": record["report"] | change}))
    capsys.readouterr()
    assert all_bytes(read()) == TEXT
    assert re.match(DAMAGED, capsys.readouterr().err)


def test_a_cache_that_may_only_be_read_is_read(unprivileged):
    text = unprivileged / "text.txt"
    cache = unprivileged / "cache"
    text.write_bytes(TEXT)
    read = functools.partial(open_corpus, DataConfig(name="files", path=str(text), cache_dir=str(cache)))
    folder = read().folder
    for path in [*folder.iterdir(), *cache.iterdir(), cache]:
        path.chmod(0o500 if path.is_dir() else 0o400)
    assert all_bytes(read()) == TEXT
    text.write_bytes(TEXT[:-1])
    with pytest.raises(UserError, match=r"data\.cache_dir: cannot write a corpus to .*/cache \(.*Permission denied"):
        read()


def test_what_killed_processes_left_is_deleted(read, tmp_path):
    cache = tmp_path / "cache"
    for name in (".writing-files-0123456789abcdef", ".writing-x8k2_3", ".writing-files-live"):
        (cache / name).mkdir(parents=True)
        (cache / name / "bytes.bin").write_bytes(TEXT)
    lock = try_lock(cache / ".files-live.lock")  # this one is being written
    assert lock is not None
    corpus = read()
    lock.release()
    assert sorted(stored_in(cache)) == sorted([corpus.folder, cache / ".writing-files-live"])


def test_a_disk_that_is_full_is_named_and_left_as_it_was(read, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(TEXT) // 2, limits[1]))  # what goes beyond cannot be written
    try:
        with pytest.raises(UserError, match=r"data\.cache_dir: cannot write a corpus to .*/cache \(.*File too large"):
            read()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert stored_in(tmp_path / "cache") == []
    assert all_bytes(read()) == TEXT


# -- processes

OPEN = """
import sys, time
from data import DataConfig, open_corpus
settings = DataConfig(name="files", path=sys.argv[1], cache_dir=sys.argv[2])
if sys.argv[3] == "slowly":  # stop amid the writing, until a signal comes
    import data.corpora
    def stop(found, tally, max_bytes):
        yield b"the beginning"
        print("writing", flush=True)
        time.sleep(600)
    data.corpora.read_files = stop
else:
    sys.stdin.readline()
corpus = open_corpus(settings)
print(b"".join(corpus[split].tobytes() for split in corpus.sizes).hex())
"""


def start(read, how: str) -> subprocess.Popen:
    (settings,) = read.args
    command = [sys.executable, "-c", OPEN, settings.path, settings.cache_dir, how]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(command, cwd=ROOT, text=True, **pipes)


def test_processes_wait_for_another_and_take_over_when_it_is_killed(read, tmp_path):
    writer, *readers = (start(read, how) for how in ("slowly", "when told", "when told"))
    assert writer.stdout.readline() == "writing\n"
    (partial,) = (tmp_path / "cache").glob(".writing-*")
    for reader in readers:
        reader.stdin.write("now\n")
        reader.stdin.flush()
        line = reader.stderr.readline()
        assert re.search(rf"waiting for process {writer.pid} on \S+, which is reading the same corpus", line)
    assert all(reader.poll() is None for reader in readers) and partial.exists()

    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    for reader in readers:
        output, _ = reader.communicate(timeout=60)
        assert bytes.fromhex(output) == TEXT
    assert stored_in(tmp_path / "cache") == [read().folder]
