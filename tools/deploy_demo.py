"""`make deploy-demo`: a federation of processes, from certificates to the adapter, compared with a simulation.

    python tools/deploy_demo.py [--folder FOLDER] [--keep] [--again] [KEY=VALUE …]

Starts the commands of docker-compose.yml on loopback: an authority, a server, three clients with the quick start's
questions dealt to them, all over mutual TLS; trains the quick start; then trains the same experiment with
`engine=sequential` and compares the adapters, bit for bit. What the simulation gave is kept in the user's cache, by the
code, the libraries, the processor and the experiment: a second demonstration with the same of all of them compares with
that; --again simulates anew.
"""

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import distributions
from pathlib import Path

from platformdirs import user_cache_path

from tools.compose_processes import Composition

PACKAGE = Path(__file__).parents[1] / "fedlora"

EXPERIMENT = ("federation.clients=3", "federation.cohort=3", "train.threads=1")


def digest(folder: Path) -> str:
    """SHA-256 of the newest adapter under a run store."""
    newest = max(folder.glob("*/adapter/adapter_model.safetensors"), key=lambda path: path.stat().st_mtime)
    return hashlib.sha256(newest.read_bytes()).hexdigest()


def circumstances(experiment: Sequence[str]) -> Iterator[str]:
    """All that the bits of a simulation on this machine can depend on."""
    yield json.dumps(list(experiment))
    yield from sorted({f"{found.name}=={found.version}" for found in distributions()})
    yield from sorted(
        {line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("model name", "flags"))}
    )
    for path in sorted(PACKAGE.rglob("*")):
        if path.suffix in (".py", ".yaml"):
            yield f"{path.relative_to(PACKAGE)} {hashlib.sha256(path.read_bytes()).hexdigest()}"


def kept_at(experiment: Sequence[str]) -> Path:
    """Where the digest of the simulated adapter is kept."""
    name = hashlib.sha256("\n".join(circumstances(experiment)).encode()).hexdigest()[:32]
    return user_cache_path("fedlora") / "deploy-demo" / f"{name}.json"


def simulated(found: Composition, experiment: Sequence[str], *, again: bool) -> str:
    """The digest of the adapter that `engine=sequential` gives."""
    kept = kept_at(experiment)
    if kept.is_file() and not again:
        known = json.loads(kept.read_text())
        print(f"the simulation with this code ran on {known['when']} ({known['seconds']:.0f} s); --again repeats it")
        return str(known["adapter"])
    print("now the same experiment on virtual clients, one after another", flush=True)
    store, began = found.folder / "simulated", time.perf_counter()
    done = found.fedlora("simulate", "-q", *experiment, "engine=sequential", f"store={store}", show=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    facts = {"adapter": digest(store), "seconds": time.perf_counter() - began, "when": time.strftime("%Y-%m-%d %H:%M")}
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(facts))
    return str(facts["adapter"])


def main() -> None:
    """The command. Ends with 1 if the adapters differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where everything goes; a temporary one otherwise")
    parser.add_argument("--keep", action="store_true", help="do not delete it afterwards")
    parser.add_argument("--again", action="store_true", help="simulate although it was done before")
    parser.add_argument("overrides", nargs="*", help="of the experiment")
    asked = parser.parse_args()
    found = Composition(asked.folder or Path(tempfile.mkdtemp(prefix="fedlora-demo-")))
    experiment = [*EXPERIMENT, *asked.overrides]
    try:
        began = time.perf_counter()
        found.start()
        print(f"authority, server and three clients are up: {time.perf_counter() - began:.1f} s", flush=True)
        done = found.fedlora("run", "start", "--home", str(found.home), "--watch", *experiment, show=True)
        deployed = time.perf_counter() - began
    finally:
        found.stop()
    if done.returncode:
        raise SystemExit(done.returncode)
    print(f"\nset-up and run took {deployed:.1f} s", flush=True)
    ours, theirs = digest(found.home / "runs"), simulated(found, experiment, again=asked.again)
    print(f"\nadapter over mutual TLS   {ours}\nadapter of the simulation {theirs}")
    if not asked.keep:
        found.remove()
    if ours != theirs:
        raise SystemExit("the adapters differ")
    print("the same, bit for bit")


if __name__ == "__main__":
    main()
