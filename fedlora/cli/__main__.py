"""Where `fedlora` starts: runs a command and turns every error into a message and an exit code (docs/exit-codes.md)."""

import gc
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from fedlora.cli.app import make_command
from fedlora.cli.crash import write_crash_log
from fedlora.cli.output import emit_json, stderr
from fedlora.errors import ConfigError, ExitCode, FedloraError


def main() -> NoReturn:
    """The entry point of the `fedlora` command."""
    # Importing torch and its like makes a million objects that stay; looking through them again and again for garbage
    # took a fifth of the start-up.
    gc.set_threshold(50_000, 20, 100)
    code = run(sys.argv[1:])
    gc.freeze()  # nor when the interpreter ends: that took two seconds
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Runs the command line `arguments` and returns its exit code. With `--json`, errors are JSON on stdout."""
    as_json = "--json" in arguments
    try:
        code = make_command().main(list(arguments), prog_name="fedlora", standalone_mode=False)
    except FedloraError as error:
        return _failed(error, error.exit_code, as_json)
    except click.ClickException as error:
        return _misused(error, as_json)
    except (KeyboardInterrupt, click.Abort):
        return _failed(KeyboardInterrupt("interrupted"), ExitCode.INTERRUPTED, as_json)
    except Exception as error:  # noqa: BLE001 - the last place where an unexpected error can become a message
        return _crashed(error, as_json)
    return code if isinstance(code, int) else ExitCode.OK


def _failed(error: BaseException, code: ExitCode, as_json: bool) -> int:
    if as_json:
        emit_json({"error": _as_dict(error, str(error), code)})
    else:
        stderr().print(f"fedlora: {error}", style="red", markup=False, soft_wrap=True)
    return code


def _misused(error: click.ClickException, as_json: bool) -> int:
    if as_json:
        emit_json({"error": _as_dict(error, error.format_message(), error.exit_code)})
    else:
        error.show()
    return error.exit_code


def _crashed(error: Exception, as_json: bool) -> int:
    message = f"unexpected error, a bug in fedlora: {type(error).__name__}: {error}. {write_crash_log(error)}"
    if as_json:
        emit_json({"error": _as_dict(error, message, ExitCode.INTERNAL)})
    else:
        stderr().print(f"fedlora: {message}", style="red", markup=False, soft_wrap=True)
    return ExitCode.INTERNAL


def _as_dict(error: BaseException, message: str, code: int) -> dict[str, Any]:
    problems = {"problems": error.problems} if isinstance(error, ConfigError) else {}
    return {"type": type(error).__name__, "message": message, "exit_code": int(code), **problems}


if __name__ == "__main__":
    main()
