"""Arrivals: data or an expert from anywhere is checked in full, kept by the project, and appended to the stream.

`arrive` does it for one arrival, `tasks.inbox` for whatever lies finished in a folder or an S3 prefix.
"""

from tasks.arrive.arriving import ChangedError, arrive, refusal
from tasks.arrive.copying import Memo
from tasks.arrive.known import withdrawals
from tasks.arrive.request import CHECKPOINTS, Request, without_part
from tasks.arrive.s3 import UnreachableError
from tasks.arrive.stream_file import rewritten
from tasks.arrive.verdict import Verdict

__all__ = [
    "CHECKPOINTS",
    "ChangedError",
    "Memo",
    "Request",
    "UnreachableError",
    "Verdict",
    "arrive",
    "refusal",
    "rewritten",
    "withdrawals",
    "without_part",
]
