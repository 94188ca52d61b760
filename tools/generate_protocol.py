"""Generates the Python of `fedlora.v1` from its .proto file.

`python tools/generate_protocol.py [FOLDER]`; without a folder, in the package itself.
"""

import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parents[1]
PROTO = "fedlora/link/v1/link.proto"
NAMES = ("link_pb2.py", "link_pb2.pyi", "link_pb2_grpc.py")


def generate(target: Path) -> list[Path]:
    """Writes the generated files under `target`, in the package's folders, and returns their paths."""
    includes = [f"-I{ROOT}", f"-I{files('grpc_tools') / '_proto'}"]
    outputs = [f"--{kind}_out={target}" for kind in ("python", "pyi", "grpc_python")]
    if protoc.main(["protoc", *includes, *outputs, PROTO]):
        raise SystemExit(f"protoc refused {PROTO}")
    return [target / Path(PROTO).parent / name for name in NAMES]


if __name__ == "__main__":
    for path in generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT):
        print(path)
