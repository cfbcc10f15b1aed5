#!/usr/bin/env python3
"""Measures how soon a new egress serves: from its registration with control to the first answer that came over it.

usage: tests/bench registration [--times N] [--no-build]     how many new nodes, one after the other (default 10)

Starts a network of its own with deploy/local/up (ports from VECTOR_BENCH_PORT_BASE on, 18800), with a model whose
provider only egress nodes of one region may call, and there is none. Each time a new node of that region is invited
and started while a client asks for that model without a pause. Three moments count, all on this machine's clock:
when its process was started, when control had registered it ("node enrolled" in control's log; "node connected" is
its first stream), and when the client had the head of the first answer that names it (x-vector-egress). Then the
node is removed. The sample provider answers at once. The runs, the machine and the commit go to target/bench/.
"""

import datetime
import http.client
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

GOAL_MS = 500
PATIENCE = 20.0  # seconds after which something never comes
REGION = "fresh"

TOP = pathlib.Path(__file__).resolve().parent.parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", TOP / "target"))
BIN = pathlib.Path(os.environ.get("VECTOR_BIN_DIR") or TARGET / "release")
BASE = int(os.environ.get("VECTOR_BENCH_PORT_BASE", "18800"))
# Places in the network's row of ports that deploy/local/network.sh gives to nobody.
TUNNEL, ADMIN = BASE + 15, BASE + 28

PLAN = """
[[provider]]
name = "fresh"
kind = "openai"
base_url = "http://127.0.0.1:{provider}/v1"
allow_private = true
egress = ["{region}"]

[[credential]]
name = "fresh-1"
provider = "fresh"
secret = "sample-key"

[[model]]
name = "fresh"
upstreams = [{{ provider = "fresh", model = "bench" }}]
"""

NODE = """
[node]
id = "{name}"
region = "{region}"
roles = ["egress"]
state_dir = "{folder}/state"

[control]
url = ["https://127.0.0.1:{control}"]
invite_file = "{folder}/invite"

[tunnel]
listen = ["127.0.0.1:{tunnel}"]

[admin]
listen = "127.0.0.1:{admin}"
"""


def fail(text):
    sys.exit(f"tests/bench registration: {text}")


class Network:
    """A network of deploy/local/up in a folder of its own."""

    def __init__(self, folder, build):
        self.folder = folder
        own = {name: value for name, value in os.environ.items() if not name.startswith(("VECTOR_", "OPENAI_"))}
        own |= {"VECTOR_LOCAL_DIR": str(folder), "VECTOR_PORT_BASE": str(BASE), "VECTOR_BIN_DIR": str(BIN)}
        self.environment = own
        self.build = build

    def up(self):
        self.run(TOP / "deploy/local/up", "--fast-provider", *([] if self.build else ["--no-build"]))
        for line in (self.folder / "env").read_text().splitlines():
            if line.startswith("export "):
                name, value = line.removeprefix("export ").split("=", 1)
                self.environment[name] = value
        self.ctl("apply", "-f", "-", text=PLAN.format(provider=BASE + 2, region=REGION))

    def down(self):
        self.run(TOP / "deploy/local/down", "--wipe")

    def run(self, *words, text=None):
        done = subprocess.run(words, env=self.environment, input=text, capture_output=True, text=True)
        if done.returncode != 0:
            fail(f"{pathlib.Path(words[0]).name} {words[1] if words[1:] else ''}: {done.stdout[-400:]}{done.stderr[-2000:]}")
        return done.stdout

    def ctl(self, *words, text=None):
        return self.run(BIN / "vectorctl", *words, text=text)

    def told(self, message, node):
        """When control's log has said this of a node, in seconds; None as long as it has not."""
        for line in (self.folder / "log/control.log").read_text().splitlines():
            if f'"{node}"' in line and f'"{message}"' in line:
                said = json.loads(line)["timestamp"].replace("Z", "+00:00")
                return datetime.datetime.fromisoformat(said).timestamp()
        return None


class Client:
    """Asks for the model without a pause."""

    def __init__(self, key):
        self.headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self.line = http.client.HTTPConnection("127.0.0.1", BASE, timeout=PATIENCE)
        self.body = json.dumps({"model": "fresh", "messages": [{"role": "user", "content": "ping"}]})

    def until_answered_by(self, node, process):
        """When the first answer over this node has come, and how often it was refused before."""
        refused, end = 0, time.time() + PATIENCE
        while time.time() < end:
            self.line.request("POST", "/v1/chat/completions", self.body, self.headers)
            answer = self.line.getresponse()
            now = time.time()
            said = answer.read()
            if answer.status == 200 and answer.getheader("x-vector-egress") == node:
                return now, refused
            if answer.status == 200:
                fail(f"{answer.getheader('x-vector-egress')} has answered in the place of {node}")
            if process.poll() is not None:
                fail(f"{node} has ended with {process.returncode}")
            refused += 1
        fail(f"no answer over {node} within {PATIENCE:.0f} s; the last one: {said[:300]}")


def measure(network, client, folder, number):
    """One new egress: milliseconds to its first answer, from each moment."""
    name = f"fresh-{number}"
    folder = folder / name
    folder.mkdir()
    invite = json.loads(network.ctl("--json", "node", "invite", "--node", name, "--role", "egress", "--region", REGION))
    (folder / "invite").write_text(next(value for value in invite.values() if str(value).startswith("vinv_")))
    settings = NODE.format(
        name=name, region=REGION, folder=folder, control=BASE + 3, tunnel=TUNNEL, admin=ADMIN
    )
    (folder / "edge.toml").write_text(settings)
    clean = {key: value for key, value in network.environment.items() if not key.startswith(("VECTOR_", "OPENAI_"))}
    with open(folder / "log", "wb") as log:
        began = time.time()
        process = subprocess.Popen(
            [BIN / "vector-edge", "--config", folder / "edge.toml"],
            env=clean, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )
    try:
        answered, refused = client.until_answered_by(name, process)
    finally:
        process.kill()
        process.wait()
    enrolled, connected = network.told("node enrolled", name), network.told("node connected", name)
    network.ctl("node", "remove", name)
    if enrolled is None or connected is None:
        fail(f"control's log does not tell when {name} was registered")
    moments = {"started": began, "registered": enrolled, "connected": connected}
    told = {f"from_{moment}_ms": round((answered - at) * 1000, 1) for moment, at in moments.items()}
    return told | {"refused_before": refused}


def output(*words):
    done = subprocess.run(words, cwd=TOP, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def about():
    """The machine and the build."""
    cpus = [line.split(": ", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "commit": output("git", "rev-parse", "--short=12", "HEAD") or "unknown",
        "uncommitted": bool(output("git", "status", "--porcelain", "-uno")),
        "started": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "cpu": cpus[0] if cpus else "",
        "cores": os.cpu_count(),
        "kernel": os.uname().release,
        "load_average_before": os.getloadavg()[0],
    }


def show(runs):
    """Medians and worst of each moment, on the terminal and for the results."""
    words = {
        "registered": "control has registered it (enrolled)",
        "connected": "its first stream to control",
        "started": "its process is started",
    }
    figures = {}
    print(f"First answer over a new egress, {len(runs)} times, ms:".ljust(47) + "median    worst  goal")
    for moment, what in words.items():
        times = [run[f"from_{moment}_ms"] for run in runs]
        figures[moment] = {"median_ms": round(statistics.median(times), 1), "worst_ms": max(times)}
        goal = GOAL_MS if moment == "registered" else ""
        print(f"  from: {what:36}  {statistics.median(times):9.1f}{max(times):9.1f}  {goal:>4}".rstrip())
    return figures


def read_options(words):
    times, build = 10, True
    while words:
        word = words.pop(0)
        if word == "--no-build":
            build = False
        elif word == "--times" and words and words[0].isdigit() and int(words[0]) > 0:
            times = int(words.pop(0))
        elif word in ("-h", "--help"):
            print(__doc__)
            sys.exit(0)
        else:
            print(__doc__, file=sys.stderr)
            sys.exit(2)
    return times, build


def main():
    times, build = read_options(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    facts = about()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="vector-registration."))
    network = Network(folder / "network", build)
    try:
        network.up()
        client = Client(network.environment["OPENAI_API_KEY"])
        runs = [measure(network, client, folder, number) for number in range(1, times + 1)]
    finally:
        network.down()
        shutil.rmtree(folder)
    figures = show(runs)
    results = TARGET / "bench"
    results.mkdir(parents=True, exist_ok=True)
    results /= f"registration-{facts['started'].replace('-', '').replace(':', '')}.json"
    results.write_text(json.dumps({"test": "registration", "about": facts, "goal_ms": GOAL_MS, "figures": figures, "runs": runs}) + "\n")
    print(f"Load before the run: {facts['load_average_before']:.2f}. All of it: {results}")


main()
