"""`make deploy-demo`: a federation of processes, from certificates to the adapter, compared with a simulation.

    python tools/deploy_demo.py [--folder FOLDER] [--keep] [KEY=VALUE …]

Starts the commands of docker-compose.yml on loopback: an authority, a server, three clients with the quick start's
questions dealt to them, all over mutual TLS; trains the quick start; then trains the same experiment with
`engine=sequential` and compares the adapters, bit for bit.
"""

import argparse
import hashlib
import tempfile
import time
from pathlib import Path

from tools.compose_processes import Composition

EXPERIMENT = ("federation.clients=3", "federation.cohort=3", "train.threads=1")


def digest(folder: Path) -> str:
    """SHA-256 of the newest adapter under a run store."""
    newest = max(folder.glob("*/adapter/adapter_model.safetensors"), key=lambda path: path.stat().st_mtime)
    return hashlib.sha256(newest.read_bytes()).hexdigest()


def main() -> None:
    """The command. Ends with 1 if the adapters differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where everything goes; a temporary one otherwise")
    parser.add_argument("--keep", action="store_true", help="do not delete it afterwards")
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
    print(f"\nset-up and run took {deployed:.1f} s; now the same experiment on virtual clients", flush=True)
    simulated = found.folder / "simulated"
    found.fedlora("simulate", "-q", *experiment, "engine=sequential", f"store={simulated}", show=True)
    ours, theirs = digest(found.home / "runs"), digest(simulated)
    print(f"\nadapter over mutual TLS   {ours}\nadapter of the simulation {theirs}")
    if not asked.keep:
        found.remove()
    if ours != theirs:
        raise SystemExit("the adapters differ")
    print("the same, bit for bit")


if __name__ == "__main__":
    main()
