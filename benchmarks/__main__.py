"""`python -m benchmarks NAME …` runs one of the benchmarks; without a name it lists them."""

import ast
import sys
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).parent
NAMES = (
    "simulation",
    "bound",
    "memory",
    "overhead",
    "scaling",
    "rounds",
    "faults",
    "packing",
    "last_layer",
    "precision",
    "dp_step",
    "dp_cohort",
    "dashboard",
    "leakage",
    "results",
    "private_results",
)


def main() -> None:
    """The command."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in NAMES:
        sys.argv = [f"python -m benchmarks {name}", *sys.argv[2:]]
        import_module(f"benchmarks.{name}").main()  # by its own name, so that processes it starts find its functions
        return
    for each in NAMES:
        about = ast.get_docstring(ast.parse((HERE / f"{each}.py").read_text())) or ""
        print(f"  {each:<16} {about.splitlines()[0]}")
    if name not in ("", "-h", "--help"):
        raise SystemExit(f"there is no benchmark {name!r}")


if __name__ == "__main__":
    main()
