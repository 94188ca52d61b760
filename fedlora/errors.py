"""Every error that fedlora raises on purpose, and the exit code that the command line gives for it.

FedloraError                 anything below; catch this one
├── ConfigError              the configuration has mistakes (all of them are listed)
├── DataError                a data set cannot be read, split or partitioned as asked
├── ModelError               a model cannot be loaded, adapted, exported or merged as asked
├── AssetError               a download failed, is corrupted, or the cache cannot be used
├── StrategyError            a strategy was asked for something that its mathematics does not allow
├── PrivacyError             a private step would not be private, or a privacy figure cannot be given
├── StoreError               the run store cannot be read or written
│   └── UnknownRunError      no run of that name or id
├── IdentityError            a certificate, key or token is missing, wrong, expired or revoked
├── LinkError                server and client cannot reach or understand each other
├── PolicyError              a site policy has mistakes (all of them are listed)
└── RunError                 a run cannot go on (a diverged model, ...)
    └── QuorumError          too few clients reported in a round
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """What a `fedlora` command ends with; `docs/exit-codes.md` explains each (held by a test)."""

    OK = 0
    INTERNAL = 1
    CONFIG = 2
    DATA = 10
    MODEL = 11
    ASSET = 12
    STRATEGY = 13
    PRIVACY = 14
    STORE = 20
    UNKNOWN_RUN = 21
    RUN_FAILED = 30
    PROBLEMS_FOUND = 40
    IDENTITY = 50
    LINK = 51
    POLICY = 52
    INTERRUPTED = 130


class FedloraError(Exception):
    """An error with a message for people: what, which value, why it is wrong and what to do about it."""

    exit_code: ExitCode = ExitCode.INTERNAL


class ConfigError(FedloraError):
    """A configuration with one or more mistakes; `problems` holds one full sentence for each."""

    exit_code = ExitCode.CONFIG

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        super().__init__(f"the configuration has {count}:\n" + "\n".join(f"  - {p}" for p in problems))


class DataError(FedloraError):
    """A data set cannot be read, split or partitioned as asked."""

    exit_code = ExitCode.DATA


class ModelError(FedloraError):
    """A model cannot be loaded, adapted, exported or merged as asked."""

    exit_code = ExitCode.MODEL


class AssetError(FedloraError):
    """A download failed, is corrupted, or the cache cannot be used."""

    exit_code = ExitCode.ASSET


class StrategyError(FedloraError):
    """A strategy was asked for something that its mathematics does not allow."""

    exit_code = ExitCode.STRATEGY


class PrivacyError(FedloraError):
    """A private step would not be private, or a privacy figure cannot be given."""

    exit_code = ExitCode.PRIVACY


class StoreError(FedloraError):
    """The run store cannot be read or written."""

    exit_code = ExitCode.STORE


class UnknownRunError(StoreError):
    """No run of that name or id."""

    exit_code = ExitCode.UNKNOWN_RUN


class RunError(FedloraError):
    """A run cannot go on."""

    exit_code = ExitCode.RUN_FAILED


class QuorumError(RunError):
    """Too few clients reported in a round; another try may do better."""


class IdentityError(FedloraError):
    """A certificate, key or token is missing, wrong, expired or revoked."""

    exit_code = ExitCode.IDENTITY


class LinkError(FedloraError):
    """Server and client cannot reach or understand each other."""

    exit_code = ExitCode.LINK


class PolicyError(FedloraError):
    """A site policy with one or more mistakes; `problems` holds one full sentence for each."""

    exit_code = ExitCode.POLICY

    def __init__(self, path: object, problems: list[str]) -> None:
        self.problems = problems
        count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        super().__init__(f"the site policy {path} has {count}:\n" + "\n".join(f"  - {p}" for p in problems))
