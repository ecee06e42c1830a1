"""`--push_to_hub` against a stand-in of the hub that listens here: what arrives, when, and what a failing hub costs."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load
from test_coh_train import options
from toys import training_folder

from coh.checkpoints import checkpoints_in
from coh.saved import load_words

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
TOKEN = "hf_" + "SecretOfSomebody" * 2
REPO = "someone/model"


class Hub:
    """Answers what huggingface_hub asks when a folder is pushed, and keeps every commit as {path: content}.

    `failing` are patterns of paths with a status; so many calls as `most` are answered with it.
    """

    def __init__(self):
        self.commits, self.blobs, self.asked, self.tokens = [], {}, [], set()
        self.failing, self.most = {}, sys.maxsize
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                hub.answer(self)

            do_GET = do_HEAD = do_PUT = do_POST

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def files(self):
        """What the repository holds after all commits."""
        return {path: content for commit in self.commits for path, content in commit["files"].items()}

    def answer(self, request):
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        path = request.path.partition("?")[0]
        self.asked.append(f"{request.command} {path}")
        if request.command != "PUT":  # the addresses of blobs are secrets themselves
            self.tokens.add(request.headers.get("Authorization"))
        status, content = 404, {"error": "there is nothing"}
        wrong = next((code for pattern, code in self.failing.items() if fnmatch(path, pattern)), None)
        if wrong and self.most > 0:
            self.most -= 1
            status, content = wrong, {"error": "refused"}
        elif (found := self.route(path, body)) is not None:
            status, content = 200, found
        answer = json.dumps(content).encode()
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(answer)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(answer)

    def route(self, path, body):
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            return {"url": f"{self.url}/{name}", "name": name}
        if path == "/api/validate-yaml":
            ModelCard(json.loads(body)["content"])  # raises, and so fails the push, where it is no metadata
            return {"errors": [], "warnings": []}
        if path.startswith(f"/api/models/{REPO}/preupload/"):
            kinds = {True: "lfs", False: "regular"}
            files = [file["path"] for file in json.loads(body)["files"]]
            large = [file.endswith((".safetensors", ".bin", ".pt", ".pth")) for file in files]
            return {
                "files": [
                    {"path": file, "uploadMode": kinds[is_large], "shouldIgnore": False}
                    for file, is_large in zip(files, large)
                ]
            }
        if path == f"/{REPO}.git/info/lfs/objects/batch":
            wanted = json.loads(body)["objects"]
            href = {one["oid"]: {"upload": {"href": f"{self.url}/blobs/{one['oid']}"}} for one in wanted}
            return {"transfer": "basic", "objects": [{**one, "actions": href[one["oid"]]} for one in wanted]}
        if path.startswith("/blobs/"):
            oid = path.rpartition("/")[2]
            assert hashlib.sha256(body).hexdigest() == oid
            self.blobs[oid] = body
            return {}
        if path.startswith(f"/api/models/{REPO}/commit/"):
            return self.commit([json.loads(line) for line in body.splitlines()])
        return None

    def commit(self, lines):
        files = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.blobs[value["oid"]]
        self.commits.append({"message": message, "files": files})
        oid = f"{len(self.commits):040x}"
        return {"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{REPO}/commit/{oid}", "hookOutput": ""}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return training_folder(tmp_path_factory.mktemp("push"))


@pytest.fixture
def hub():
    hub = Hub()
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def train(hub, folder, output, **changes):
    """A run of six steps in a process of its own, with everything of the hub pointed at the stand-in."""
    words = options(folder, output, max_steps=6, push_to_hub="true", hub_model_id=REPO, hub_token=TOKEN, **changes)
    own = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment = {**os.environ, **own, "HF_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "coh.coh_train", *words]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=folder, timeout=280, check=False
    )


def whole(files, tmp_path):
    """A folder with these files."""
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    return tmp_path


def test_the_finished_folder_arrives(hub, folder, tmp_path):
    output = tmp_path / "out"
    found = train(hub, folder, output, eval_pairs=3, eval_prompts=1, write_report="true")
    assert found.returncode == 0, found.stderr[-3000:]
    (commit,) = hub.commits  # one, of what is whole: none of a model without its words
    assert commit["message"] == "End of training"
    files = commit["files"]
    wanted = {"README.md", "coh.json", "model.safetensors", "config.json", "generation_config.json", "tokenizer.json"}
    assert wanted | {"chat_template.jinja", "trainer_state.json", "report.html", "evaluation.json"} <= set(files)
    assert not {"training_args.bin", "complete.json"} & set(files)
    for path, content in files.items():
        assert content == (output / path).read_bytes(), path
        assert TOKEN.encode() not in content, path
    assert TOKEN not in found.stdout + found.stderr
    assert hub.tokens == {f"Bearer {TOKEN}"}
    card = ModelCard(files["README.md"].decode())
    assert "chain-of-hindsight" in card.data.tags and card.data.base_model is None
    assert f'coh.load("{REPO}")' in card.text and str(folder) not in str(card)
    names = {result.metric_type for result in card.data.eval_results}
    assert {"loss", "accuracy", "steering_gap"} <= names
    assert set(load(files["model.safetensors"])) == set(load((folder / "model" / "model.safetensors").read_bytes()))
    # The chat template that steers, not the one that Trainer would save over it.
    assert "helpful answer" in files["chat_template.jinja"].decode()
    assert load_words(whole(files, tmp_path / "pulled")).family.name == "marker"


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint"])
def test_checkpoints_are_pushed_whole(hub, folder, tmp_path, strategy):
    from coh import load as load_model

    more = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1, "hub_always_push": "true"}
    output = tmp_path / "out"
    found = train(hub, folder, output, hub_strategy=strategy, **more)
    assert found.returncode == 0, found.stderr[-3000:]
    messages = [commit["message"] for commit in hub.commits]
    assert [one for one in messages if one.endswith(tuple("246"))] == [
        f"Training in progress, step {n}" for n in (2, 4, 6)
    ]
    assert messages[-1] == "End of training"
    first = hub.commits[0]["files"]
    assert {"README.md", "coh.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= set(first)
    assert not [path for path in first if re.search(r"optimizer|rng|training_args|_pushing|unfinished", path)]
    assert REPO in first["README.md"].decode() and "| max\\_steps | 6 |" in first["README.md"].decode()
    model = load_model(str(whole(first, tmp_path / "first")))
    assert isinstance(model.generate("Question 1?", feedback="good", max_new_tokens=4), str)
    assert first["model.safetensors"] != hub.files["model.safetensors"]
    assert ("last-checkpoint/optimizer.pt" in hub.files) == (strategy == "checkpoint")
    assert not (output / "_pushing").exists()
    assert [one.step for one in checkpoints_in(output)[0]] == [6] and not checkpoints_in(output)[1]  # untouched
    assert all(TOKEN.encode() not in content for content in hub.files.values())


@pytest.mark.parametrize("status", [401, 500])
def test_a_hub_that_refuses_does_so_before_training(hub, folder, tmp_path, status):
    hub.failing = {"/api/repos/create": status}
    found = train(hub, folder, tmp_path / "out")
    assert found.returncode == 1
    last = found.stderr.strip().splitlines()[-1]
    assert last.startswith(f"coh.coh_train: --push_to_hub: {REPO} cannot be made on the hub (")
    assert f"'{status} " in last and "hf auth login" in last and hub.url not in last and "Traceback" not in found.stderr
    assert not list((tmp_path / "out").glob("*.safetensors")) and TOKEN not in found.stderr


@pytest.mark.parametrize(("status", "where"), [(401, "*/preupload/*"), (500, "*/commit/*"), (500, "/blobs/*")])
def test_a_hub_that_fails_at_the_end_costs_no_model(hub, folder, tmp_path, status, where):
    from coh import load as load_model

    hub.failing = {where: status}
    output = tmp_path / "out"
    found = train(hub, folder, output, save_strategy="steps", save_steps=3)
    assert found.returncode == 1
    assert "Traceback" not in found.stderr, found.stderr[-3000:]
    assert "checkpoint-3 was not pushed (" in found.stderr and "training goes on" in found.stderr
    said = found.stderr[found.stderr.index(f"coh.coh_train: {REPO} was not pushed (") :]
    assert str(status) in said and f"The model is saved in {output}" in said and f"hf upload {REPO} {output} ." in said
    assert not hub.commits and TOKEN not in found.stderr
    assert json.loads((output / "complete.json").read_text())["step"] == 6
    assert (output / "README.md").is_file() and (output / "test_results.json").is_file()
    assert isinstance(load_model(str(output)).generate("Question 1?", max_new_tokens=4), str)


def test_a_hub_that_comes_back_gets_the_end(hub, folder, tmp_path):
    hub.failing, hub.most = {"*/commit/*": 403}, 1
    found = train(hub, folder, tmp_path / "out", save_strategy="steps", save_steps=6)
    assert found.returncode == 0, found.stderr[-3000:]
    assert "checkpoint-6 was not pushed (" in found.stderr and "training goes on" in found.stderr
    assert [commit["message"] for commit in hub.commits] == ["End of training"]
