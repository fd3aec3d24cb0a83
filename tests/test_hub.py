"""A trained model is pushed to the hub and loaded back, with the hub's own library and a fake server."""

import base64
import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from data import DataConfig
from model import HierarchicalTransformer
from tests.conftest import ROOT
from tests.runs import NO_GPU, metrics
from training.config import Config
from training.summary import in_markdown, model_card
from utils.errors import UserError
from utils.terminal import one_line

PUSH = """
import sys
from model import HierarchicalTransformer
HierarchicalTransformer.from_pretrained(sys.argv[1]).push_to_hub("someone/bytes")
HierarchicalTransformer.from_pretrained("someone/bytes").save_pretrained(sys.argv[2])
"""


class Hub(http.server.ThreadingHTTPServer):
    """One repository, `someone/bytes`, with weights kept as Git LFS does and all other files in its commits."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Request)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files, self.objects = {}, {}  # by path; what LFS keeps, by checksum


class Request(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"  # keeps connections, as the library expects

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != "Bearer hf_of_someone":
            return self.answer(401)
        if self.path == "/api/repos/create":
            repo = json.loads(body)
            self.answer(200, {"url": f"{self.server.url}/{repo['organization']}/{repo['name']}"})
        elif self.path == "/api/validate-yaml":
            yaml.safe_load(re.match(r"---\n(.*?)\n---\n", json.loads(body)["content"], re.DOTALL)[1])
            self.answer(200, {"errors": [], "warnings": []})
        elif self.path == "/api/models/someone/bytes/preupload/main":
            files = [
                {"path": f["path"], "shouldIgnore": False, "uploadMode": self.mode(f["path"])}
                for f in json.loads(body)["files"]
            ]
            self.answer(200, {"files": files})
        elif self.path == "/someone/bytes.git/info/lfs/objects/batch":
            objects = [
                {**o, "actions": {"upload": {"href": f"{self.server.url}/lfs/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            self.answer(200, {"transfer": "basic", "objects": objects})
        elif self.path == "/api/models/someone/bytes/commit/main":
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.server.files[value["path"]] = self.server.objects[value["oid"]]
            self.answer(200, {"commitUrl": f"{self.server.url}/someone/bytes/commit/{'1' * 40}", "commitOid": "1" * 40})
        else:
            self.answer(404)

    def do_PUT(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        oid = self.path.removeprefix("/lfs/")
        if hashlib.sha256(content).hexdigest() != oid:
            return self.answer(400)
        self.server.objects[oid] = content
        self.answer(200)

    def do_GET(self):
        content = self.server.files.get(self.path.removeprefix("/someone/bytes/resolve/main/"))
        if content is None:
            return self.answer(404, headers={"X-Error-Code": "EntryNotFound"})
        etag = hashlib.sha256(content).hexdigest()
        self.answer(200, content, {"X-Repo-Commit": "1" * 40, "ETag": f'"{etag}"'})

    do_HEAD = do_GET

    def mode(self, path: str) -> str:
        return "lfs" if path.endswith(".safetensors") else "regular"

    def answer(self, status: int, content: bytes | dict = b"", headers: dict | None = None):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_model_and_its_card_are_pushed_to_the_hub_and_loaded_back(whole, hub, tmp_path):
    # without Xet, a binary protocol of the hub, the library uploads through Git LFS
    environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_of_someone", "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-c", PUSH, str(whole / "model"), str(tmp_path / "back")]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=os.environ | environment)
    assert done.returncode == 0, done.stderr

    assert set(hub.files) == {"README.md", "config.json", "model.safetensors"}
    scores = {line["validation/bits_per_byte"]: line["step"] for line in metrics(whole) if line["step"] in (6, 12)}
    card = hub.files["README.md"].decode()
    assert f"| bits per byte | {min(scores):.4f}, after step {scores[min(scores)]} of 12 |" in card
    assert yaml.safe_load(re.search(r"```yaml\n(.*?)\n```", card, re.DOTALL)[1]) == yaml.safe_load(
        (whole / "config.yaml").read_text()
    )

    for name, content in hub.files.items():  # the card, the configuration and the weights, bit for bit
        assert content == (whole / "model" / name).read_bytes() == (tmp_path / "back" / name).read_bytes(), name


def test_a_push_without_a_network_is_a_clear_error():
    model = HierarchicalTransformer(dim=8, depth=1, heads=2, dim_head=4, seq_len=16, hierarchies=(1,))
    with pytest.raises(UserError, match=r"push_to_hub: someone/bytes cannot be pushed \(Cannot reach .*offline mode"):
        model.push_to_hub("someone/bytes")
    with pytest.raises(UserError, match="push_to_hub: a name with spaces cannot be pushed"):
        model.push_to_hub("a name with spaces")


def test_the_card_loads_the_weights_from_any_folder(whole, tmp_path):
    """Its lines as they are, beside a checkout and in the folder of the weights."""
    for file in (whole / "model").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "hierarchical-byte-transformer").symlink_to(ROOT)
    (code,) = re.findall(r"```python\n(.*?)\n```", (tmp_path / "README.md").read_text(), re.DOTALL)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | NO_GPU
    line = [sys.executable, "-c", f"{code}\nprint(model.training, sum(p.numel() for p in model.parameters()))"]
    done = subprocess.run(line, cwd=tmp_path, env=environment | {"PYTHONUTF8": "1"}, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    model = HierarchicalTransformer.from_pretrained(whole / "model")
    assert done.stdout.splitlines()[-1] == f"False {sum(p.numel() for p in model.parameters())}"


ANY_TEXT = st.text(st.characters() | st.sampled_from("`|<\\\n\r\x1b\u202e[]*_&")) | st.sampled_from(
    ["a\n```\n# Title", "---\nlicense: mit\n---", "a\\|<script>", "````", "~~~\n", "</td>", "`", "<!--"]
)


@given(ANY_TEXT)
def test_text_of_others_has_no_meaning_in_a_card(text):
    written = in_markdown(text)
    assert re.sub(r"\\(.)", r"\1", written) == one_line(text)
    assert not set(re.sub(r"\\.", "", written)) & set("\\`|<>&*_[]\n\r\x1b\u202e")


@settings(max_examples=40)
@given(ANY_TEXT, ANY_TEXT)
def test_a_card_has_its_parts_whatever_the_names_are(path, run_dir):
    config = Config(run_dir=run_dir or "a", data=DataConfig(name="files", path=path or "a"))
    card = model_card(config, path, 5, 1.25)
    assert not set(card) & set("\r\x1b\u202e")
    _, front, rest = card.split("---\n", 2)
    assert yaml.safe_load(front).keys() == {"library_name", "tags"}  # no license for weights of somebody's own text

    # the settings, up to the first line that ends the block in Markdown, which is the last line
    text, fence, after = re.split(r"^(`{3,})yaml\n", rest, flags=re.MULTILINE)
    block = re.split(rf"^ {{0,3}}{fence}`*[ \t]*$", after, flags=re.MULTILINE)
    assert len(block) == 2 and block[1] == "\n"
    assert yaml.safe_load(block[0]) == config.to_dict()
    assert len(re.findall(r"^#", text, re.MULTILINE)) == 1
    row = next(line for line in text.split("\n") if line.startswith("| data |"))
    assert re.sub(r"\\.", "", row).count("|") == 3
