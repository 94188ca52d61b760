"""The workload: a BERT with random values, LoRA on query and value and a head, and clients with a few batches each.

It is written to a folder once; fedlora and its peers read the same files. A peer's process imports this module, so
it needs torch, transformers, peft and safetensors alone.
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

VOCABULARY = 30_522
_FIRST = 1000  # token ids below are not drawn
_SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
RANK, ALPHA, RATE = 8, 16, 0.01


@dataclass(frozen=True)
class Shape:
    """clients: of a round, which all take part. ragged: texts have 6 to `tokens` tokens, lognormal, and not all."""

    clients: int = 20
    steps: int = 5
    batch: int = 8
    tokens: int = 64
    ragged: bool = False
    layers: int = 6
    width: int = 384

    @property
    def rows(self) -> int:
        """Of one client."""
        return self.steps * self.batch


@dataclass(frozen=True)
class Workload:
    """In a folder: model/ (weights, tokenizer), texts.csv, rows.json."""

    folder: Path
    shape: Shape

    @classmethod
    def build(cls, folder: Path, shape: Shape) -> "Workload":
        """Writes it."""
        folder.mkdir(parents=True, exist_ok=True)
        found = cls(folder, shape)
        _save_model(folder / "model", shape)
        rows = list(_rows(shape))
        (folder / "rows.json").write_text(json.dumps({"shape": asdict(shape), "rows": rows}))
        with (folder / "texts.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label", "client"])
            for row in rows:
                writer.writerow([" ".join(f"w{token}" for token in row["ids"][1:-1]), row["label"], row["client"]])
        return found

    @classmethod
    def read(cls, folder: Path) -> "Workload":
        """What `build` wrote."""
        return cls(folder, Shape(**json.loads((folder / "rows.json").read_text())["shape"]))

    def batches(self) -> list[list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]:
        """By client: (ids, mask, labels) of each batch, padded to the longest text of the batch."""
        rows = json.loads((self.folder / "rows.json").read_text())["rows"]
        size, each = self.shape.batch, self.shape.rows
        return [
            [
                _padded(rows[client * each + step * size : client * each + (step + 1) * size])
                for step in range(self.shape.steps)
            ]
            for client in range(self.shape.clients)
        ]

    def model(self, attention: str | None, *, half: bool = False) -> Any:
        """PEFT's model with a fresh adapter. attention: eager or sdpa; None: what transformers takes by itself.

        half: the base in bfloat16; adapter and head are float32, as PEFT would have it.
        """
        from peft import LoraConfig, TaskType, get_peft_model
        from transformers import AutoModelForSequenceClassification

        chosen = {} if attention is None else {"attn_implementation": attention}
        base = AutoModelForSequenceClassification.from_pretrained(self.folder / "model", **chosen).eval()
        if half:
            base.to(torch.bfloat16)
            base.classifier.float().register_forward_pre_hook(lambda _, args: tuple(each.float() for each in args))
        torch.manual_seed(1)
        settings = LoraConfig(
            task_type=TaskType.SEQ_CLS, r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=["query", "value"]
        )
        return get_peft_model(base, settings)


def _save_model(folder: Path, shape: Shape) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.width // 64,
        intermediate_size=4 * shape.width,
        num_labels=2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(folder)
    words = {word: index for index, word in enumerate(_SPECIAL.values())}
    words |= {f"w{index}": index for index in range(_FIRST, VOCABULARY)}
    core = Tokenizer(models.WordLevel(words, unk_token=_SPECIAL["unk_token"]))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=512, **_SPECIAL).save_pretrained(folder)


def _rows(shape: Shape) -> Iterator[dict[str, Any]]:
    draw = torch.Generator().manual_seed(7)
    for client in range(shape.clients):
        for _ in range(shape.rows):
            length = shape.tokens
            if shape.ragged:
                length = int(torch.exp(2.9 + 0.6 * torch.randn((), generator=draw)).clamp(6, shape.tokens))
            ids = torch.randint(_FIRST, VOCABULARY, (length - 2,), generator=draw).tolist()
            yield {"ids": [2, *ids, 3], "label": int(torch.randint(0, 2, (), generator=draw)), "client": client}


def _padded(rows: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    longest = max(len(row["ids"]) for row in rows)
    ids = torch.tensor([row["ids"] + [0] * (longest - len(row["ids"])) for row in rows])
    mask = torch.tensor([[1] * len(row["ids"]) + [0] * (longest - len(row["ids"])) for row in rows])
    return ids, mask, torch.tensor([row["label"] for row in rows])


@dataclass(frozen=True)
class Settings:
    """How a peer computes. attention, matmul: None leaves what the libraries do by themselves. fresh: a new model for
    each client, as quick starts do. half: a bfloat16 base. threads: of one process. device: as torch calls it; a GPU
    is shared by all workers."""

    attention: str | None = None
    matmul: str | None = None
    fresh: bool = False
    half: bool = False
    threads: int = 1
    rounds: int = 4
    workers: int = 2
    device: str = "cpu"


class Trainer:
    """Trains clients one after another, as a careful user of a peer would: one model, its adapter's values set anew."""

    def __init__(self, workload: Workload, settings: Settings) -> None:
        torch.set_num_threads(settings.threads)
        if settings.matmul is not None:
            torch.set_float32_matmul_precision(settings.matmul)
        self._workload, self._settings = workload, settings
        self._batches = [
            [tuple(part.to(settings.device) for part in batch) for batch in client] for client in workload.batches()
        ]
        self._model = self._fresh()

    def _fresh(self) -> Any:
        return self._workload.model(self._settings.attention, half=self._settings.half).to(self._settings.device)

    def start(self) -> dict[str, torch.Tensor]:
        """The adapter's and the head's values."""
        from peft import get_peft_model_state_dict

        return {name: value.detach().cpu().clone() for name, value in get_peft_model_state_dict(self._model).items()}

    def train(self, client: int, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What `state` becomes."""
        from peft import set_peft_model_state_dict

        if self._settings.fresh:
            self._model = self._fresh()
        set_peft_model_state_dict(self._model, state)
        optimizer = torch.optim.SGD([each for each in self._model.parameters() if each.requires_grad], lr=RATE)
        for ids, mask, labels in self._batches[client]:
            optimizer.zero_grad()
            self._model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
            optimizer.step()
        return self.start()
