from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JoinRequest(_message.Message):
    __slots__ = ("token", "signing_request")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    SIGNING_REQUEST_FIELD_NUMBER: _ClassVar[int]
    token: str
    signing_request: bytes
    def __init__(self, token: _Optional[str] = ..., signing_request: _Optional[bytes] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("signing_request",)
    SIGNING_REQUEST_FIELD_NUMBER: _ClassVar[int]
    signing_request: bytes
    def __init__(self, signing_request: _Optional[bytes] = ...) -> None: ...

class Certificate(_message.Message):
    __slots__ = ("name", "certificate", "authority", "link")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_FIELD_NUMBER: _ClassVar[int]
    LINK_FIELD_NUMBER: _ClassVar[int]
    name: str
    certificate: bytes
    authority: bytes
    link: str
    def __init__(self, name: _Optional[str] = ..., certificate: _Optional[bytes] = ..., authority: _Optional[bytes] = ..., link: _Optional[str] = ...) -> None: ...

class EraseRequest(_message.Message):
    __slots__ = ("leave", "keep")
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    leave: bool
    keep: bool
    def __init__(self, leave: bool = ..., keep: bool = ...) -> None: ...

class EraseReply(_message.Message):
    __slots__ = ("runs",)
    RUNS_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[ErasedRun]
    def __init__(self, runs: _Optional[_Iterable[_Union[ErasedRun, _Mapping]]] = ...) -> None: ...

class ErasedRun(_message.Message):
    __slots__ = ("run", "rounds", "restart_after")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    RESTART_AFTER_FIELD_NUMBER: _ClassVar[int]
    run: str
    rounds: _containers.RepeatedScalarFieldContainer[int]
    restart_after: int
    def __init__(self, run: _Optional[str] = ..., rounds: _Optional[_Iterable[int]] = ..., restart_after: _Optional[int] = ...) -> None: ...

class FromClient(_message.Message):
    __slots__ = ("hello", "heartbeat", "accept", "decline", "failed", "upload", "chunk", "is_open", "fetch")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_FIELD_NUMBER: _ClassVar[int]
    DECLINE_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    IS_OPEN_FIELD_NUMBER: _ClassVar[int]
    FETCH_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    heartbeat: Heartbeat
    accept: Accept
    decline: Decline
    failed: Failed
    upload: Upload
    chunk: Chunk
    is_open: IsOpen
    fetch: Fetch
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., accept: _Optional[_Union[Accept, _Mapping]] = ..., decline: _Optional[_Union[Decline, _Mapping]] = ..., failed: _Optional[_Union[Failed, _Mapping]] = ..., upload: _Optional[_Union[Upload, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ..., is_open: _Optional[_Union[IsOpen, _Mapping]] = ..., fetch: _Optional[_Union[Fetch, _Mapping]] = ...) -> None: ...

class FromServer(_message.Message):
    __slots__ = ("welcome", "heartbeat", "offer", "chunk", "resume", "acknowledged", "openness", "closed", "goodbye")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    OPENNESS_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    heartbeat: Heartbeat
    offer: Offer
    chunk: Chunk
    resume: Resume
    acknowledged: Acknowledged
    openness: Openness
    closed: Closed
    goodbye: Goodbye
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., offer: _Optional[_Union[Offer, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ..., resume: _Optional[_Union[Resume, _Mapping]] = ..., acknowledged: _Optional[_Union[Acknowledged, _Mapping]] = ..., openness: _Optional[_Union[Openness, _Mapping]] = ..., closed: _Optional[_Union[Closed, _Mapping]] = ..., goodbye: _Optional[_Union[Goodbye, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol", "version", "instance", "capabilities", "data", "state", "device", "policy")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    version: str
    instance: str
    capabilities: _containers.RepeatedScalarFieldContainer[str]
    data: _containers.RepeatedCompositeFieldContainer[DataSet]
    state: State
    device: str
    policy: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, protocol: _Optional[int] = ..., version: _Optional[str] = ..., instance: _Optional[str] = ..., capabilities: _Optional[_Iterable[str]] = ..., data: _Optional[_Iterable[_Union[DataSet, _Mapping]]] = ..., state: _Optional[_Union[State, _Mapping]] = ..., device: _Optional[str] = ..., policy: _Optional[_Iterable[str]] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("number", "state")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    number: int
    state: State
    def __init__(self, number: _Optional[int] = ..., state: _Optional[_Union[State, _Mapping]] = ...) -> None: ...

class State(_message.Message):
    __slots__ = ("paused", "reason", "work")
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    WORK_FIELD_NUMBER: _ClassVar[int]
    paused: bool
    reason: str
    work: str
    def __init__(self, paused: bool = ..., reason: _Optional[str] = ..., work: _Optional[str] = ...) -> None: ...

class DataSet(_message.Message):
    __slots__ = ("name", "nominal_size", "fingerprint")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NOMINAL_SIZE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    name: str
    nominal_size: int
    fingerprint: bytes
    def __init__(self, name: _Optional[str] = ..., nominal_size: _Optional[int] = ..., fingerprint: _Optional[bytes] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("protocol", "version", "name", "heartbeat_seconds")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    version: str
    name: str
    heartbeat_seconds: float
    def __init__(self, protocol: _Optional[int] = ..., version: _Optional[str] = ..., name: _Optional[str] = ..., heartbeat_seconds: _Optional[float] = ...) -> None: ...

class Offer(_message.Message):
    __slots__ = ("work", "run", "round", "kind", "facts", "size", "sha256", "seconds_left")
    WORK_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SECONDS_LEFT_FIELD_NUMBER: _ClassVar[int]
    work: str
    run: str
    round: int
    kind: str
    facts: Content
    size: int
    sha256: bytes
    seconds_left: float
    def __init__(self, work: _Optional[str] = ..., run: _Optional[str] = ..., round: _Optional[int] = ..., kind: _Optional[str] = ..., facts: _Optional[_Union[Content, _Mapping]] = ..., size: _Optional[int] = ..., sha256: _Optional[bytes] = ..., seconds_left: _Optional[float] = ...) -> None: ...

class Accept(_message.Message):
    __slots__ = ("work", "offset")
    WORK_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    work: str
    offset: int
    def __init__(self, work: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class Decline(_message.Message):
    __slots__ = ("work", "reason")
    WORK_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    work: str
    reason: str
    def __init__(self, work: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Failed(_message.Message):
    __slots__ = ("work", "reason")
    WORK_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    work: str
    reason: str
    def __init__(self, work: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Upload(_message.Message):
    __slots__ = ("work", "size", "sha256")
    WORK_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    work: str
    size: int
    sha256: bytes
    def __init__(self, work: _Optional[str] = ..., size: _Optional[int] = ..., sha256: _Optional[bytes] = ...) -> None: ...

class Resume(_message.Message):
    __slots__ = ("work", "offset")
    WORK_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    work: str
    offset: int
    def __init__(self, work: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("work", "offset", "data")
    WORK_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    work: str
    offset: int
    data: bytes
    def __init__(self, work: _Optional[str] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Acknowledged(_message.Message):
    __slots__ = ("work", "counted", "reason")
    WORK_FIELD_NUMBER: _ClassVar[int]
    COUNTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    work: str
    counted: bool
    reason: str
    def __init__(self, work: _Optional[str] = ..., counted: bool = ..., reason: _Optional[str] = ...) -> None: ...

class IsOpen(_message.Message):
    __slots__ = ("work",)
    WORK_FIELD_NUMBER: _ClassVar[int]
    work: str
    def __init__(self, work: _Optional[str] = ...) -> None: ...

class Openness(_message.Message):
    __slots__ = ("work", "open")
    WORK_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    work: str
    open: bool
    def __init__(self, work: _Optional[str] = ..., open: bool = ...) -> None: ...

class Fetch(_message.Message):
    __slots__ = ("work", "offset")
    WORK_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    work: str
    offset: int
    def __init__(self, work: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class Closed(_message.Message):
    __slots__ = ("work", "reason")
    WORK_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    work: str
    reason: str
    def __init__(self, work: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Goodbye(_message.Message):
    __slots__ = ("reason", "retry")
    REASON_FIELD_NUMBER: _ClassVar[int]
    RETRY_FIELD_NUMBER: _ClassVar[int]
    reason: str
    retry: bool
    def __init__(self, reason: _Optional[str] = ..., retry: bool = ...) -> None: ...

class Content(_message.Message):
    __slots__ = ("arrays", "configs", "metrics")
    ARRAYS_FIELD_NUMBER: _ClassVar[int]
    CONFIGS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    arrays: _containers.RepeatedCompositeFieldContainer[Arrays]
    configs: _containers.RepeatedCompositeFieldContainer[Values]
    metrics: _containers.RepeatedCompositeFieldContainer[Values]
    def __init__(self, arrays: _Optional[_Iterable[_Union[Arrays, _Mapping]]] = ..., configs: _Optional[_Iterable[_Union[Values, _Mapping]]] = ..., metrics: _Optional[_Iterable[_Union[Values, _Mapping]]] = ...) -> None: ...

class Arrays(_message.Message):
    __slots__ = ("name", "tensors")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    name: str
    tensors: _containers.RepeatedCompositeFieldContainer[Tensor]
    def __init__(self, name: _Optional[str] = ..., tensors: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("name", "dtype", "shape", "encoding", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    encoding: str
    data: bytes
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., encoding: _Optional[str] = ..., data: _Optional[bytes] = ...) -> None: ...

class Values(_message.Message):
    __slots__ = ("name", "values")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    name: str
    values: _containers.RepeatedCompositeFieldContainer[Value]
    def __init__(self, name: _Optional[str] = ..., values: _Optional[_Iterable[_Union[Value, _Mapping]]] = ...) -> None: ...

class Value(_message.Message):
    __slots__ = ("name", "integer", "real", "flag", "text", "raw")
    NAME_FIELD_NUMBER: _ClassVar[int]
    INTEGER_FIELD_NUMBER: _ClassVar[int]
    REAL_FIELD_NUMBER: _ClassVar[int]
    FLAG_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    name: str
    integer: int
    real: float
    flag: bool
    text: str
    raw: bytes
    def __init__(self, name: _Optional[str] = ..., integer: _Optional[int] = ..., real: _Optional[float] = ..., flag: bool = ..., text: _Optional[str] = ..., raw: _Optional[bytes] = ...) -> None: ...
