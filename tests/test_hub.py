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

from tests.conftest import ROOT
from tests.runs import metrics

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
