"""Runs of the training program that are stopped, killed or left hanging, each forked from one that has imported it all.

A fresh start costs seconds of imports; a fork costs none. `Forks()` starts the parent, `run(...)` gives exit statuses.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Forks:
    """A parent of runs; `run` starts `world` processes with the same words and waits for them."""

    def __enter__(self):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
        self.parent = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        return self

    def __exit__(self, *_):
        self.parent.stdin.close()
        self.parent.wait(30)

    def run(self, words, **about):
        """Exit statuses of the ranks, and all that they said; negative ones are signals."""
        self.parent.stdin.write(json.dumps({"words": list(map(str, words)), "world": 1, **about}) + "\n")
        self.parent.stdin.flush()
        answer = json.loads(self.parent.stdout.readline())
        return answer["statuses"], answer["said"]


def serve():
    import coh.coh_train  # noqa: F401  what the forks share

    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        print(json.dumps(start(json.loads(line))), file=answers, flush=True)


def start(about):
    log = Path(about["words"][about["words"].index("--output_dir") + 1] + ".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("")
    port, began = random.randint(20000, 60000), time.monotonic()
    children = {rank: fork(rank, port, log, about) for rank in range(about["world"])}
    statuses = {}
    while len(statuses) < len(children):
        for rank, child in children.items():
            if rank not in statuses:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    statuses[rank] = os.waitstatus_to_exitcode(status)
                elif time.monotonic() - began > about.get("kill_after", 200):
                    os.kill(child, signal.SIGKILL)
        failed = [status for status in statuses.values() if status]
        if failed and about.get("like_torchrun"):  # which ends the others where one fails
            for rank in set(children) - set(statuses):
                os.kill(children[rank], signal.SIGKILL)
        time.sleep(0.01)
    return {"statuses": [statuses[rank] for rank in sorted(statuses)], "said": log.read_text(errors="replace")}


def fork(rank, port, log, about):
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.setsid()
        for stream in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND), stream)
        if about["world"] > 1:
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": about["world"], "LOCAL_WORLD_SIZE": about["world"]}
            names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in names.items()})
        code = train(rank, about)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def train(rank, about):
    from coh import coh_train

    coh_train.CoHTrainer = disturbed(coh_train.CoHTrainer, rank, about)
    if "kill_at" in about:
        kill_in_a_save(about)
    try:
        coh_train.main(about["words"])
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    return 0


def disturbed(trainer, rank, about):
    """The trainer, to which something happens in its forward: `at` is [rank, step, what]."""

    class Disturbed(trainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            step = self.state.global_step
            if "rows_to" in about:
                with open(f"{about['rows_to']}.{rank}", "a") as file:
                    file.write(json.dumps([step, inputs["row"].tolist()]) + "\n")
            if [rank, step] == about.get("at", [])[:2]:
                what = about["at"][2]
                if what == "hang":
                    time.sleep(1000)
                if what == "group":  # as SLURM does it: from outside, and the loader's workers get it, too
                    sender = os.fork()
                    if not sender:
                        os.killpg(os.getpgid(0), signal.SIGTERM)
                        os._exit(0)
                    os.waitpid(sender, 0)
                else:
                    os.kill(os.getpid(), getattr(signal, what))
            return super().compute_loss(model, inputs, *args, **kwargs)

    return Disturbed


def kill_in_a_save(about):
    """SIGKILL `delay` seconds behind the file operation number `kill_at` on what is being saved."""
    place = str(Path(about["words"][about["words"].index("--output_dir") + 1], "unfinished"))
    seen = 0

    def kill():
        time.sleep(about["delay"])
        os.kill(os.getpid(), signal.SIGKILL)

    def hook(event, args):
        nonlocal seen
        if event in ("open", "os.mkdir", "os.rename", "os.rmdir", "os.remove", "os.scandir") and place in str(args[0]):
            seen += 1
            if seen == about["kill_at"]:
                threading.Thread(target=kill).start() if about["delay"] else kill()

    sys.addaudithook(hook)


if __name__ == "__main__":
    serve()
