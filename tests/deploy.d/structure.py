#!/usr/bin/env python3
"""What no tool that can be had here says of deploy/: images, dashboards, and what its files say of one another.

`structure.py all` prints every fault and ends with 1 if there is one; `structure.py queries` prints each query of the
dashboards as a recording rule, for promtool to parse.
"""

import json
import re
import sys
import tomllib
from pathlib import Path

import yaml

TOP = Path(__file__).resolve().parents[2]
DEPLOY = TOP / "deploy"
faults: list[str] = []


def expect(holds: object, what: str) -> None:
    if not holds:
        faults.append(what)


def name(path: Path) -> str:
    return str(path.relative_to(TOP))


def everything_parses() -> None:
    for path in sorted(DEPLOY.rglob("*")):
        readers = {
            ".yaml": lambda text: list(yaml.safe_load_all(text)),
            ".json": json.loads,
            ".toml": tomllib.loads,
        }
        reader = readers.get(path.suffix)
        if reader is None or not path.is_file():
            continue
        try:
            expect(reader(path.read_text()), f"{name(path)}: is empty")
        except (yaml.YAMLError, ValueError) as error:
            faults.append(f"{name(path)}: {error}")


def images() -> None:
    path = DEPLOY / "docker/Dockerfile"
    text = re.sub(r"\\\n", " ", path.read_text())
    stages: dict[str, list[str]] = {}
    stage = ""
    for line in text.splitlines():
        begun = re.match(r"FROM (\S+)(?: AS (\S+))?$", line)
        if begun:
            image, stage = begun[1], begun[2] or ""
            expect(":" in image and not image.endswith(":latest"), f"{name(path)}: {image} is not pinned")
            expect(stage and stage not in stages, f"{name(path)}: a stage without a name of its own")
            stages[stage] = []
        elif line.strip() and not line.lstrip().startswith("#") and stage:
            stages[stage].append(line.strip())
    for stage in ("edge", "control"):
        lines = stages.get(stage, [])
        users = [line.split()[1] for line in lines if line.startswith("USER ")]
        expect(users and not users[-1].startswith(("0", "root")), f"{name(path)}: {stage} runs as root")
        for word in ("HEALTHCHECK", "ENTRYPOINT", "VOLUME", "EXPOSE"):
            expect(any(line.startswith(word) for line in lines), f"{name(path)}: {stage} has no {word}")
        for line in lines:
            source = re.search(r"--from=(\S+)", line)
            expect(source is None or source[1] in stages, f"{name(path)}: {line}: no such stage")
    build = " ".join(stages.get("build", []))
    profile = re.search(r"--profile (\S+)", build)
    manifest = tomllib.loads((TOP / "Cargo.toml").read_text())
    expect(profile and profile[1] in manifest["profile"], f"{name(path)}: builds with no profile of Cargo.toml")
    expect(f"target/{profile[1]}/" in build, f"{name(path)}: takes the programs from another profile's folder")
    compiler = manifest["workspace"]["package"]["rust-version"]
    expect(f"FROM rust:{compiler}-" in text, f"{name(path)}: builds with another Rust than {compiler}")


def compose() -> None:
    path = DEPLOY / "docker/compose.yaml"
    file = yaml.safe_load(path.read_text())
    services = file["services"]
    script = (DEPLOY / "docker/up").read_text()
    invited = set(re.findall(r'^  "(\S+) (?:ingress|relay|egress) \S+"$', script, re.M))
    nodes = {key for key, service in services.items() if service.get("image") == "vector-edge"}
    expect(invited == nodes, f"{name(path)}: nodes {nodes ^ invited} stand in one of it and deploy/docker/up only")
    made = {"postgres", "master.key", "etcd-ca.pem", "etcd.pem", "etcd.key", "etcd-client.pem", "etcd-client.key"}
    expect(set(file["secrets"]) == nodes | made, f"{name(path)}: secrets are not those of the nodes")
    for key in nodes:
        service = services[key]
        expect(service["secrets"] == [{"source": key, "target": "invite"}], f"{name(path)}: {key} has another's invite")
        expect(f"{key}:/var/lib/vector" in service["volumes"], f"{name(path)}: {key} forgets who it is")
        address = service["environment"].get("VECTOR_TUNNEL_ADVERTISE")
        expect(address in (None, f"{key}:7440"), f"{name(path)}: {key} advertises {address}")
    for key, service in services.items():
        expect(":" in service["image"] or service.get("build"), f"{name(path)}: {key} is not pinned")
        for port in service.get("ports", []):
            expect(port.startswith("127.0.0.1:"), f"{name(path)}: {key} is open to everybody on {port}")
        joined = service.get("network_mode", "").removeprefix("service:")
        expect(not joined or joined in services, f"{name(path)}: {key} joins {joined}, which is not there")
    scraped = yaml.safe_load((DEPLOY / "grafana/prometheus.yaml").read_text())["scrape_configs"]
    hosts = {target.split(":")[0] for job in scraped for row in job["static_configs"] for target in row["targets"]}
    missing = hosts ^ (nodes | {key for key in services if key.startswith("control")})
    expect(not missing, f"deploy/grafana/prometheus.yaml: {missing} stand in one of it and compose.yaml only")


def changes_are_staged() -> None:
    for path in sorted(DEPLOY.rglob("control.toml")):
        settings = tomllib.loads(path.read_text())
        expect(settings["control"].get("rollout_pause_ms") == 5000, f"{name(path)}: changes reach everybody at once")


# The first of each line that reads what its leader has acknowledged, whatever was paused.
ETCD_LEAST = {(3, 5): 28, (3, 6): 9}


def stores() -> None:
    """etcd is new enough and speaks TLS only, to whoever shows a certificate."""
    for path in (DEPLOY / "docker/compose.yaml", DEPLOY / "kubernetes/etcd.yaml"):
        text = path.read_text()
        for major, minor, patch in re.findall(r"coreos/etcd:v(\d+)\.(\d+)\.(\d+)", text):
            least = ETCD_LEAST.get((int(major), int(minor)))
            expect(least is not None and int(patch) >= least, f"{name(path)}: etcd {major}.{minor}.{patch} is too old")
        plain = re.findall(r"http://\S*:23(?:79|80)\b", text)
        expect(not plain, f"{name(path)}: {plain} is not TLS")
        for word in ("CLIENT_CERT_AUTH", "PEER_CLIENT_CERT_AUTH"):
            flag = "--" + word.lower().replace("_", "-")
            stands = re.search(rf"\bETCD_{word}: \"true\"|^ *- {flag}$", text, re.M)
            expect(stands, f"{name(path)}: nobody has to show a certificate ({flag})")
    for path in sorted(DEPLOY.rglob("control.toml")):
        settings = tomllib.loads(path.read_text())
        for endpoint in settings["etcd"]["endpoints"]:
            expect(endpoint.startswith("https://"), f"{name(path)}: {endpoint} is not TLS")


def manifests() -> None:
    folder = DEPLOY / "kubernetes"
    whole = yaml.safe_load((folder / "kustomization.yaml").read_text())
    files = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml", "secrets.example.yaml"}
    expect(set(whole["resources"]) == files, f"kustomization.yaml: does not list {files ^ set(whole['resources'])}")
    version = tomllib.loads((TOP / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    for image in whole["images"]:
        expect(image["newTag"] == version, f"kustomization.yaml: {image['name']} is {image['newTag']}, not {version}")
    made = {row["name"] for row in whole["configMapGenerator"]}
    literals = {text.split("=")[0] for row in whole["configMapGenerator"] for text in row.get("literals", [])}
    things = [thing for file in sorted(files) for thing in yaml.safe_load_all((folder / file).read_text())]
    examples = yaml.safe_load_all((folder / "secrets.example.yaml").read_text())
    secrets = {
        thing["metadata"]["name"]: {*thing.get("stringData", {}), *thing.get("data", {})} for thing in examples
    }
    claims = {thing["metadata"]["name"] for thing in things if thing["kind"] == "PersistentVolumeClaim"}
    pods = {thing["metadata"]["name"]: thing["spec"]["template"] for thing in things if "template" in thing.get("spec", {})}
    for key, pod in pods.items():
        check_pod(key, pod)
        for volume in pod["spec"]["volumes"]:
            config = volume.get("configMap", {}).get("name")
            expect(config in made | {None}, f"{key}: no config map {config}")
            secret = volume.get("secret", {}).get("secretName")
            expect(secret is None or secret in secrets, f"{key}: no secret {secret}")
            items = {item["key"] for item in volume.get("secret", {}).get("items", [])}
            unknown = items - secrets.get(secret, set())
            expect(not unknown, f"{key}: the secret {secret} has no {unknown}")
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            expect(claim in claims | {None}, f"{key}: no claim {claim}")
        for variable in pod["spec"]["containers"][0].get("env", []):
            of = variable.get("valueFrom", {}).get("configMapKeyRef")
            expect(of is None or of["key"] in literals, f"{key}: no address {of}")
    for thing in things:
        kind, key = thing["kind"], thing["metadata"]["name"]
        if kind not in ("Service", "PodDisruptionBudget"):
            continue
        wanted = thing["spec"]["selector"]
        wanted = wanted.get("matchLabels", wanted)
        hit = [pod for pod in pods.values() if wanted.items() <= pod["metadata"]["labels"].items()]
        expect(hit, f"{kind} {key}: selects nothing")
        for port in thing["spec"].get("ports", []):
            open_ports = {p["name"]: p.get("protocol", "TCP") for pod in hit for p in pod["spec"]["containers"][0]["ports"]}
            expect(open_ports.get(port["targetPort"]) == port.get("protocol", "TCP"), f"Service {key}: {port} leads nowhere")
    # Of these, a drain of several machines may take one at a time.
    budgets = [thing["spec"] for thing in things if thing["kind"] == "PodDisruptionBudget"]
    for key in ("control", "etcd"):
        labels = pods[key]["metadata"]["labels"].items()
        own = [spec for spec in budgets if spec["selector"]["matchLabels"].items() <= labels]
        keeps = [spec for spec in own if spec.get("minAvailable") or spec.get("maxUnavailable")]
        expect(keeps, f"kubernetes: no PodDisruptionBudget keeps {key}")


def check_pod(key: str, pod: dict) -> None:
    spec = pod["spec"]
    container = spec["containers"][0]
    for probe, path in (("livenessProbe", "/livez"), ("readinessProbe", "/readyz"), ("startupProbe", "/")):
        expect(container.get(probe, {}).get("httpGet", {}).get("path", "").startswith(path), f"{key}: no {probe}")
    own, shared = container["securityContext"], spec.get("securityContext", {})
    expect((own.get("runAsNonRoot") or shared.get("runAsNonRoot")) is True, f"{key}: may run as root")
    expect(own.get("readOnlyRootFilesystem") is True, f"{key}: may write to its image")
    expect(own.get("allowPrivilegeEscalation") is False, f"{key}: may gain rights")
    expect("ALL" in own.get("capabilities", {}).get("drop", []), f"{key}: has capabilities")
    expect("requests" in container["resources"] and "limits" in container["resources"], f"{key}: no resources")
    expect(spec["terminationGracePeriodSeconds"] >= 20, f"{key}: no time to drain")
    expect(spec.get("automountServiceAccountToken") is False, f"{key}: has a token of the cluster")


def dashboards() -> list[tuple[str, dict]]:
    return [(path.stem, json.loads(path.read_text())) for path in sorted((DEPLOY / "grafana/dashboards").glob("*.json"))]


def panels_are_sound() -> None:
    boards = dashboards()
    expect(len(boards) >= 3, "deploy/grafana/dashboards: fewer than three")
    expect(len({board["uid"] for _, board in boards}) == len(boards), "dashboards share a uid")
    for key, board in boards:
        known = {variable["name"] for variable in board["templating"]["list"]}
        panels = board["panels"]
        expect(len({panel["id"] for panel in panels}) == len(panels), f"{key}: panels share an id")
        taken: set[tuple[int, int]] = set()
        for panel in panels:
            title, at = panel["title"], panel["gridPos"]
            expect(panel["description"] and panel["targets"], f"{key}: {title}: no description or no query")
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            expect(at["x"] + at["w"] <= 24 and not cells & taken, f"{key}: {title} lies on another panel")
            taken |= cells
            for target in panel["targets"]:
                for variable in re.findall(r"\$(?!__)(\w+)", target["expr"]):
                    expect(variable in known, f"{key}: {title}: no variable {variable}")
        used = {word for panel in panels for target in panel["targets"] for word in re.findall(r"\$(\w+)", target["expr"])}
        unused = known - used - {"source"}
        expect(not unused, f"{key}: nobody uses {unused}")


def queries() -> None:
    rules = []
    for key, board in dashboards():
        for panel in board["panels"]:
            for target in panel["targets"]:
                text = target["expr"].replace("$__rate_interval", "5m")
                text = re.sub(r"\$\w+", ".*", text)
                rules.append({"record": f"{key}:panel_{panel['id']}_{target['refId']}", "expr": text})
    yaml.safe_dump({"groups": [{"name": "dashboards", "rules": rules}]}, sys.stdout)


if __name__ == "__main__":
    if sys.argv[1:] == ["queries"]:
        queries()
        sys.exit(0)
    everything_parses()
    images()
    compose()
    changes_are_staged()
    stores()
    manifests()
    panels_are_sound()
    for fault in faults:
        print(fault)
    sys.exit(1 if faults else 0)
