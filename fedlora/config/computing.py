"""How a client computes, and where virtual clients do."""

from typing import Literal

from pydantic import Field

from fedlora.config.section import Section


class TrainConfig(Section):
    """One client's local training in one round."""

    lr: float = Field(3e-3, gt=0, description="learning rate in round 1")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="fresh in each round")
    momentum: float = Field(0.0, ge=0, lt=1, description="sgd's momentum")
    weight_decay: float = Field(0.0, ge=0, description="decoupled for adamw, L2 for sgd")
    batch: int = Field(16, ge=1, description="records in a step")
    steps: int = Field(10, ge=1, description="steps a client takes in a round")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "linear", description="how the learning rate falls over the rounds (to 0 after the last)"
    )
    clip_norm: float | None = Field(None, gt=0, description="bound on the norm of each step's gradient; null: none")
    threads: int | None = Field(
        None,
        ge=1,
        description="torch threads of one client's training; null: 1 in worker processes, else OMP_NUM_THREADS or one a"
        " core. Same bits need the same",
    )
    packing: bool = Field(
        True,
        description="pack texts into shared rows where that is exact (BERT, GPT-2, Llama): less padding",
    )
    keep_prefix: bool = Field(
        False,
        description="compute what enters the first adapted layer once for each record, and keep it while the run lasts;"
        " for adapters in upper layers only (`adapter.targets=[4.attention.self.query]`), of BERT, GPT-2 and Llama, in"
        " float32 without model.dropout. Same results up to rounding",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA if there is one")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="of the frozen base; adapter, head, optimizer and all privacy arithmetic are float32. bfloat16:"
        " half the memory and, with instructions for it, about twice the speed, for a base rounded to 8 bits (`fedlora"
        " doctor` measures both)",
    )
    matmul: Literal["auto", "highest", "high", "medium"] = Field(
        "auto",
        description="torch's float32 matmul precision; below highest some hardware rounds to bf16 or tf32. auto:"
        " highest, or on a CPU without `prepack` medium, where it was measured to be as exact and at least 1.5 times as"
        " fast",
    )
    prepack: bool | None = Field(
        None,
        description="on a CPU, lay the frozen weights out once as its matrix kernels want them: the same arithmetic,"
        " faster; twice their memory on top, shared by worker processes. null: where that was measured to be as exact"
        " and not slower, and takes at most an eighth of the machine's memory",
    )


class EngineConfig(Section):
    """Where virtual clients are trained. It changes the time, never the bits: `group` and `train.threads` do."""

    name: Literal["auto", "sequential", "processes", "ray"] = Field(
        "auto",
        description="sequential: one client after another, in this process, on all threads; processes: several at once,"
        " in worker processes of one thread each that share the base model (CPU); ray: in Ray actors, one a GPU or CPU"
        " thread, on this machine or a cluster; auto: processes where that works and more than one core is there",
    )
    workers: int | None = Field(
        None,
        ge=1,
        description="processes, ray: how many; null: one a core or GPU, and no more than clients are asked in a round",
    )
    address: str | None = Field(
        None,
        description="ray: HOST:PORT of a cluster's head, ray://HOST:PORT or auto (the cluster that this host is in);"
        " null: Ray is started on this machine, for this run",
    )
    group: int | None = Field(
        1,
        ge=1,
        description="clients that are trained in one pass over the base model, each as alone up to rounding (1e-5);"
        " null, as with engine=auto: as many as are worth it on this kind of device. Not with"
        " dropout",
    )

    @property
    def together(self) -> int:
        """Clients that train in one pass."""
        return self.group or 1
