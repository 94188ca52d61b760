"""What a run asks of a site, as far as a policy has a say in it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedlora.client.policy import NEEDED
from fedlora.config.schema import RunConfig

_OPTIONAL = {"text_classification": ("text_pair",)}


@dataclass(frozen=True)
class Asked:
    """What a run asks of a site.

    server: "host:port". kind: "train" or "query". columns: role → the run's own name of the column. labels: of the
    classes, in the order of their ids; None: the run does not say. epsilon: of the whole run, as this client computes
    it from the announced mechanism (under central DP the server's word is all there is); None: there is none. noise:
    "system" or "seeded". steps, batch: of one round. base_digest: of the run's base model; "": the run does not say.
    """

    server: str
    run: str
    kind: str
    task: str
    strategy: str
    model: str
    data: str
    privacy: str
    epsilon: float | None
    delta: float
    unit: str
    rounds: int
    steps: int
    batch: int
    columns: Mapping[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None
    base_digest: str = ""
    noise: str = "system"

    @classmethod
    def of(
        cls,
        config: RunConfig,
        *,
        server: str,
        run: str,
        kind: str,
        epsilon: float | None,
        labels: tuple[str, ...] | None = None,
        base_digest: str = "",
    ) -> "Asked":
        """What the run with `config` asks; the rest is described at the class."""
        return cls(
            server=server,
            run=run,
            kind=kind,
            task=config.task.name,
            strategy=config.strategy.name,
            model=config.model.name,
            data=config.data.name,
            privacy=config.privacy.name,
            epsilon=epsilon,
            delta=config.privacy.delta,
            unit=config.privacy.unit,
            rounds=config.federation.rounds,
            steps=config.train.steps,
            batch=config.train.batch,
            columns=_columns(config),
            labels=labels,
            base_digest=base_digest,
            noise=config.privacy.noise,
        )

    @property
    def protection(self) -> str:
        """The privacy mode, if its noise is real: whoever knows a seed can take the noise off."""
        return self.privacy if self.noise == "system" else "none"


def _columns(config: RunConfig) -> dict[str, str]:
    """What the task reads: columns of other tasks do no harm, and a role without a column is called as it is."""
    needed = {role: getattr(config.data, role) or role for role in NEEDED[config.task.name]}
    more = {role: getattr(config.data, role) for role in _OPTIONAL.get(config.task.name, ())}
    return needed | {role: column for role, column in more.items() if column is not None}
