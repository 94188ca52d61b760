"""The model card (README.md) of an exported adapter or a merged model."""

from collections.abc import Mapping
from typing import Any

import yaml

from fedlora.config.schema import RunConfig
from fedlora.data.catalog import datasets, models
from fedlora.privacy.account import Account


def model_card(
    kind: str, config: RunConfig, card: Mapping[str, Any], summary: Mapping[str, float], account: Account
) -> str:
    """The text of README.md.

    kind: "adapter" or "merged model". card: the task's (`Task.card`). summary: the run's final figures. account: what
    is known of its privacy.
    """
    sections = [
        f"---\n{_front_matter(kind, config)}---",
        f"# {config.name or config.strategy.name}: {_KINDS[kind]}",
        _origin(config, card),
        _usage(kind, card),
        _privacy(account),
        _figures(summary),
        _licences(config),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


_KINDS = {
    "adapter": "a LoRA adapter trained by federated learning",
    "merged model": "a model fine-tuned by federated learning, its LoRA adapter merged in",
}


def _front_matter(kind: str, config: RunConfig) -> str:
    fields: dict[str, Any] = {
        "library_name": "peft" if kind == "adapter" else "transformers",
        "tags": ["federated-learning", "fedlora", "lora"],
    }
    if config.model.source == "hub":
        fields["base_model"] = config.model.name
        fields["base_model_relation"] = "adapter" if kind == "adapter" else "finetune"
    text: str = yaml.safe_dump(fields, sort_keys=True)
    return text


def _origin(config: RunConfig, card: Mapping[str, Any]) -> str:
    adapter, federation, train = config.adapter, config.federation, config.train
    lines = [
        f"- Base model: {card['base']}",
        f"- Task: {config.task.name}" + (f", labels {', '.join(card['labels'])}" if card["labels"] else ""),
        f"- Data: {config.data.name} ({config.data.source}), dealt to the clients by `{config.data.partition.name}`",
        f"- Method: `{config.strategy.name}`, rank {adapter.r}, scaling {adapter.s:g}",
        f"- Federation: {federation.clients} clients, {federation.cohort} a round, {federation.rounds} rounds",
        f"- Local training: {train.steps} steps of {train.batch} with {train.optimizer}, seed {config.seed}",
        f"- Learning rate: {train.lr:g}, {train.schedule} over the rounds",
    ]
    return "## Where it comes from\n\n" + "\n".join(lines)


def _usage(kind: str, card: Mapping[str, Any]) -> str:
    snippet = card["snippet" if kind == "adapter" else "merged_snippet"]
    return f"## Use\n\n```python\n{snippet}\n```"


def _figures(summary: Mapping[str, float]) -> str:
    if not summary:
        return ""
    rows = "\n".join(f"| {name} | {value:.6g} |" for name, value in summary.items())
    return f"## Figures\n\n| name | value |\n|---|---|\n{rows}"


def _privacy(account: Account) -> str:
    promise, figures = account.promise, account.promise["figures"]
    lines = [account.sentence() + "."]
    if figures is not None:
        mechanism = (
            f"- Mechanism: {promise['mode']}; σ = {figures['noise_multiplier']:.4g}, C = {figures['clip']:g},"
            f" q = {figures['rate']:g}, {figures['steps']} steps in each of up to {figures['participations']} rounds,"
            f" divisor {figures['divisor']:g}"
        )
        lines += [
            mechanism,
            f"- Unit: {figures['unit']}; adjacency: {figures['adjacency']}; accountant: {figures['accountant']}",
            f"- Trusted: {promise['trusted']}",
            f"- Released: {promise['released']}",
            *(f"- It rests on this: {assumption}" for assumption in promise["assumptions"]),
        ]
    return "## Privacy\n\n" + "\n".join(lines)


def _licences(config: RunConfig) -> str:
    """What is known of the licences; fedlora adds none of its own."""
    notes = [
        _licence("Base model", config.model.source, config.model.name, models()),
        _licence("Data", config.data.source, config.data.name, datasets()),
    ]
    return "## Licence\n\nThe licences of the base model and of the data apply.\n\n" + "\n".join(notes)


def _licence(what: str, source: str, name: str, known: Mapping[str, Any]) -> str:
    licence = known[name].licence if source == "asset" and name in known else "see its own page or owner"
    return f"- {what} {name}: {licence}"
